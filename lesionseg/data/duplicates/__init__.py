"""Near-duplicate images and the leakage between splits that they cause."""
