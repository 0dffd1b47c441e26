"""The report of a run or of a study: paired tests, fair verdicts, plots, and pages from templates."""
