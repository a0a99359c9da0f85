"""Training of one configuration: the epoch loop, its state on disk, checkpoints."""
