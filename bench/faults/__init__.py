"""Studies under faults that are drawn at random; see ``__main__``."""
