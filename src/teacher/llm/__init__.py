"""The base LM: found in a folder or on the Hugging Face hub, loaded, and read as it is, without adapter."""
