"""Metrics of predicted masks: overlap, surface distances, curves, intervals and tests."""
