"""The teacher: an LLM with iLoRA's adapter that ranks items for the student to learn from."""
