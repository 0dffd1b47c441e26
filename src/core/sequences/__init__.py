"""Sequences of items: a log by user, the rows that point into it, and the files in which both are kept."""
