"""What a trained teacher says about rows: its answers and rankings, their evaluation, and the export for students."""
