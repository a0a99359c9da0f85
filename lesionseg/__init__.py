"""Skin-lesion segmentation: data, models, training, evaluation. Knows nothing of the search."""
