"""Weights and their configuration in one safetensors file, of a network or of an ensemble.

A safetensors file holds tensors and a JSON header and cannot execute code. The configuration and
the inference settings are in the header, so that the file alone is enough to rebuild the network.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lesionseg.config import TrialConfig
from lesionseg.errors import InputError, one_line
from lesionseg.inference.ensemble import MAX_MEMBERS, Ensemble, check_members
from lesionseg.inference.selection import DEFAULT_INFERENCE, Inference
from lesionseg.models import build_model, check_size
from lesionseg.runtime.files import atomic_write

#: Formats of a single network and of an ensemble, whose tensors are called NUMBER.NAME.
NETWORK_FORMAT, ENSEMBLE_FORMAT = "lesionsearch/1", "lesionsearch/2"

Tensors = Mapping[str, Tensor]


class MemberWeights(NamedTuple):
    """A member of an ensemble to be saved: weights and configuration of a network, its weight."""

    tensors: Tensors
    config: TrialConfig
    weight: float


def save(path: Path, weights: Tensors, config: TrialConfig) -> None:
    """Write a complete file or none."""
    metadata = {"format": NETWORK_FORMAT, "config": json.dumps(config.to_dict())}
    _write(path, weights, metadata)


def save_ensemble(path: Path, members: Sequence[MemberWeights]) -> None:
    """Write a complete file or none; with one member the file of a single network.

    Raises:
        InputError: the members cannot be an ensemble; see ``ensemble.check_members``.
    """
    check_members([m.config for m in members], [m.weight for m in members])
    if len(members) == 1:
        save(path, members[0].tensors, members[0].config)
        return
    described = [{"weight": m.weight, "config": m.config.to_dict()} for m in members]
    metadata = {"format": ENSEMBLE_FORMAT, "members": json.dumps(described)}
    tensors = {
        f"{i}.{name}": tensor
        for i, member in enumerate(members)
        for name, tensor in member.tensors.items()
    }
    _write(path, tensors, metadata)


def set_inference(path: Path, inference: Inference) -> None:
    """Store the inference settings in a checkpoint; raises InputError as ``load``."""
    metadata = _read_metadata(path) | {"inference": json.dumps(inference.to_dict())}
    _write(path, load_file(path), metadata)


def read_inference(path: Path) -> Inference:
    """Return the inference settings of a checkpoint; raises InputError as ``load``."""
    text = _read_metadata(path).get("inference")
    with _content_checked(path, "inference settings"):
        return Inference.from_dict(json.loads(text)) if text else DEFAULT_INFERENCE


def load(path: Path) -> tuple[nn.Module, TrialConfig]:
    """Return the network with its weights, in evaluation mode on the CPU, and its configuration.

    The file need not be trusted. Its configuration, and the names and shapes of its weights, are
    checked before memory is allocated for the network; of an ensemble those of all members.

    Returns:
        A network, or an Ensemble and its ``config``.

    Raises:
        InputError: no such file, another format, a configuration that cannot be built, members that
            cannot be an ensemble, or weights that do not fit the network or are not finite.
    """
    metadata = _read_metadata(path)
    if metadata["format"] == ENSEMBLE_FORMAT:
        ensemble = _load_ensemble(path, metadata)
        return ensemble.eval(), ensemble.config
    with _content_checked(path, "configuration"):
        config = TrialConfig.from_dict(json.loads(metadata.get("config", "")))
        empty = _build_empty(config)
    tensors = load_file(path)
    _check_tensors(path, config, empty, tensors)
    return _build(config, tensors).eval(), config


def _load_ensemble(path: Path, metadata: Mapping[str, str]) -> Ensemble:
    with _content_checked(path, "members"):
        configs, weights = _parse_members(metadata.get("members", ""))
        empties = list(map(_build_empty, configs))
    parts: list[dict[str, Tensor]] = [{} for _ in configs]
    numbers = {str(i): part for i, part in enumerate(parts)}
    for full_name, tensor in load_file(path).items():
        number, _, name = full_name.partition(".")
        if number not in numbers:
            raise InputError(f"{path}: has weights of no member ({full_name!r:.80})")
        numbers[number][name] = tensor
    for i, (config, empty, tensors) in enumerate(zip(configs, empties, parts, strict=True)):
        _check_tensors(path, config, empty, tensors, f", member {i}")
    return Ensemble(list(map(_build, configs, parts)), configs, weights)


def _parse_members(text: str) -> tuple[list[TrialConfig], list[float]]:
    """Return configurations and weights; the number of members is checked before these."""
    members = json.loads(text)
    if not isinstance(members, list) or not 1 <= len(members) <= MAX_MEMBERS:
        raise InputError(f"must be a list of 1 to {MAX_MEMBERS}, got {text!r:.60}")
    configs = [TrialConfig.from_dict(member.get("config")) for member in members]
    weights = [member.get("weight") for member in members]
    check_members(configs, weights)
    return configs, weights


def _build_empty(config: TrialConfig) -> nn.Module:
    """Build the network without memory for its weights."""
    check_size(config.model, config.image_size)
    with torch.device("meta"), _LinspaceOnCpu():
        return build_model(config.model, image_size=config.image_size, load_pretrained=False)


def _check_tensors(
    path: Path, config: TrialConfig, empty: nn.Module, tensors: Tensors, member: str = ""
) -> None:
    """Raise InputError for weights that do not fit the network or are not finite."""
    try:
        empty.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise InputError(
            f"{path}: the weights do not fit {config.model.name}{member}: {one_line(error)}"
        ) from None
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(
                f"{path}: its weights hold NaN or infinity ({name}{member}); train it again"
            )


def _build(config: TrialConfig, tensors: Tensors) -> nn.Module:
    model = build_model(config.model, image_size=config.image_size, load_pretrained=False)
    model.load_state_dict(tensors)
    return model


@contextmanager
def _content_checked(path: Path, part: str) -> Iterator[None]:
    """Raise InputError for what parsers and the registry raise for headers with any content."""
    try:
        yield
    except (ValueError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise InputError(f"{path}: invalid {part}: {one_line(error)}") from None


class _LinspaceOnCpu(TorchFunctionMode):
    """Compute torch.linspace on the CPU: builders read its values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        device = {"device": "cpu"} if func is torch.linspace else {}
        return func(*args, **{**(kwargs or {}), **device})


def _write(path: Path, weights: Tensors, metadata: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    # safetensors' save_file creates a file of mode 0600, which others cannot read.
    atomic_write(path, to_bytes(tensors, metadata=metadata))


def _read_metadata(path: Path) -> dict[str, str]:
    """Check a checkpoint's format and return its metadata; no tensor is read.

    safetensors limits the header's size and verifies that the tensors in it cover the file exactly,
    so that none can claim more memory than the file has.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a safetensors file ({one_line(error)})") from None
    if metadata.get("format") not in (NETWORK_FORMAT, ENSEMBLE_FORMAT):
        raise InputError(
            f"{path}: is not a {NETWORK_FORMAT} or {ENSEMBLE_FORMAT} model, its format is "
            f"{metadata.get('format')!r:.60}"
        )
    return metadata
