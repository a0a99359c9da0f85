"""One training: configuration and data in, weights and history out."""
