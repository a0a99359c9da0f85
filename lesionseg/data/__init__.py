"""From folders of pictures to batches: layouts, splits, the cache, the loader."""
