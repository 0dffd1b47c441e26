"""What may be compared with what, and what came out: models and references, paired tests, the verdict."""
