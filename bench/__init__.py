"""Measurements anyone can repeat: ``make bench``. Results, with their machine, lie in results/."""
