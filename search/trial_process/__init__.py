"""One training in a process of its own. Imports neither Optuna nor a database."""
