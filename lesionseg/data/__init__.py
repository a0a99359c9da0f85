"""Data sets: folder layouts, splits, the image cache, batches."""
