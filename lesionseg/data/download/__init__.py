"""Download and unpacking of public data sets."""
