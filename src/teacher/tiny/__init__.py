"""A LLaMA small enough for a CPU, built from a data set's titles and training histories."""
