"""iLoRA's adapter around an LM, by our code or iLoRA's own: layers, forward passes, files, weights of the original."""
