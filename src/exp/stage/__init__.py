"""What every command does around its own work: the run folder, its log and lock, and what is there already."""
