"""Pretrained weights that a search space needs."""

from __future__ import annotations

from lesionseg.models.weights import ensure_weights
from search.spec.search_space import SearchSpace, possible_values


def ensure_space_weights(space: SearchSpace) -> None:
    """Raise InputError, with a remedy, if weights are missing that a trial may need."""
    for params in space.families["model"].values():
        if "weights" in params:
            for weights in possible_values(params["weights"]):
                for encoder in possible_values(params["encoder"]):
                    ensure_weights(str(encoder), str(weights))
