"""A comparison made and shown: tables, plots, and the pages of a run or of a study from templates."""
