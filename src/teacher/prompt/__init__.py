"""From histories and candidates to batches of token ids: wording, tokenization, candidate sets, batch sizes."""
