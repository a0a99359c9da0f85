"""Fault injection: studies under random faults; see ``__main__``."""
