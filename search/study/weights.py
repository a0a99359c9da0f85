"""Pretrained weights that a search space may ask for."""

from __future__ import annotations

from lesionseg.models.weights import ensure_weights
from search.spec.search_space import SearchSpace, possible_values


def ensure_space_weights(space: SearchSpace) -> None:
    """Makes sure of the pretrained weights that a space may ask for, before anything is begun.

    InputError names what is lacking and how to put it in place.
    """
    for params in space.families["model"].values():
        if "weights" in params:
            for weights in possible_values(params["weights"]):
                for encoder in possible_values(params["encoder"]):
                    ensure_weights(str(encoder), str(weights))
