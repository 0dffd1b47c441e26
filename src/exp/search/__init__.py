"""A search (Optuna) that another start goes on with."""
