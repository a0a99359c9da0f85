"""What a status tells, made up for those who show it."""


def worker_of(**changes):
    """A worker at its third trial, but for what is changed."""
    return {
        "host": "here[1]",
        "pid": 42,
        "device": "cuda:0",
        "share": 0.5,
        "state": "training",
        "trial": 3,
        "epoch": 2,
        "beat_seconds_ago": 7.4,
        "silent": False,
    } | changes
