"""The weights that the encoders of a study start from.

``weights: auto`` is resolved once, when a study is created, and stored with it as
``encoder_weights``: a file that is found or missing later, or on another worker, changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from lesionseg.config import TrialConfig
from lesionseg.errors import InputError
from lesionseg.models.weight_files import BUNDLED
from lesionseg.models.weights import HUB_FILE, resolve_weights, source_of
from search.spec import baselines
from search.spec.formatting import format_encoder_weights
from search.spec.study_spec import DEFAULTS, StudySpec


def choose_weights(spec: StudySpec) -> StudySpec:
    """Return a new study with the weights of all encoders that are left to ``auto``.

    Files are downloaded if the hub can be reached. Weights that the study names are not changed.
    """
    encoders = spec.space.auto_encoders()
    for name in spec.warm_start_names:
        if name != DEFAULTS:
            params = baselines.build_config(name, **spec.run_settings).model.params
            if params.get("weights") == "auto":
                encoders.append(str(params["encoder"]))
    given = spec.encoder_weights or {}
    found = {e: resolve_weights(e, fetch=True) for e in encoders if e not in given}
    return spec.with_encoder_weights({**given, **found})


def take_stored_weights(spec: StudySpec, stored: Mapping[str, Any]) -> StudySpec:
    """Return a study with the weights of the stored one, given as plain data, if it names none."""
    if spec.encoder_weights is not None:
        return spec
    return spec.with_encoder_weights(stored.get("encoder_weights"))


def replace_auto(config: TrialConfig, encoder_weights: Mapping[str, str] | None) -> TrialConfig:
    """Return a configuration with the study's weights in place of ``auto``.

    Args:
        config: a configuration of the study, or one that was queued. Weights of an encoder that the
            study does not name are determined now.
        encoder_weights: of the StudySpec.
    """
    params = config.model.params
    if params.get("weights") != "auto":
        return config
    encoder = str(params["encoder"])
    if encoder_weights is None:
        weights = "none"
    else:
        weights = encoder_weights.get(encoder) or resolve_weights(encoder, fetch=True)
    return replace(config, model=replace(config.model, params={**params, "weights": weights}))


def describe_weights(encoder_weights: Mapping[str, str] | None) -> str:
    """Return one line on the weights that ``auto`` stands for; "" if no encoder has ``auto``.

    If none of the encoders has pretrained weights, the line says how to get some.
    """
    if not encoder_weights:
        return ""
    line = f"encoder weights: {format_encoder_weights(encoder_weights)}"
    if set(encoder_weights.values()) != {"none"}:
        return line
    return (
        f"{line}. Random weights cost accuracy; in a new study, use an encoder with bundled "
        f"weights such as {next(iter(BUNDLED))}{_describe_download(encoder_weights)}; "
        f"`weights: none` disables this message"
    )


def _describe_download(encoders: Iterable[str]) -> str:
    """Return how to get the weights of one of the encoders; "" if the hub has none."""
    for encoder in encoders:
        with suppress(InputError):
            repository, revision = source_of(encoder)
            return (
                f", or download those of {encoder} on a machine with a network (`hf download "
                f"{repository} {HUB_FILE} --revision {revision}`) and set HF_HOME to a copy of the "
                f"folder of its cache"
            )
    return ""
