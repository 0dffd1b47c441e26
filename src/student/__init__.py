"""The students: small sequential recommenders, their training, evaluation and use."""
