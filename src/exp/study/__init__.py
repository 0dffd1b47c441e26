"""Studies: variants of a training over several seeds, trained, gathered and compared in one table."""
