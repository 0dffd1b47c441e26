"""The commands: one entry point for each stage of a run, for studies of many runs, and for asking a student."""
