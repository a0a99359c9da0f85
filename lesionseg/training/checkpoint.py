"""Weights and their configuration in one safetensors file.

A safetensors file holds tensors and a JSON header and cannot execute code. The configuration and
the inference settings are in the header, so that the file alone is enough to rebuild the network.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lesionseg.config import TrialConfig
from lesionseg.errors import InputError, one_line
from lesionseg.inference.selection import DEFAULT_INFERENCE, Inference
from lesionseg.models import build_model, check_size
from lesionseg.runtime.files import atomic_write

FORMAT = "lesionsearch/1"


def save(path: Path, weights: Mapping[str, Tensor], config: TrialConfig) -> None:
    """Write a complete file or none."""
    metadata = {"format": FORMAT, "config": json.dumps(config.to_dict())}
    _write(path, weights, metadata)


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
    checked before memory is allocated for the network.

    Raises:
        InputError: no such file, another format, a configuration that cannot be built, or weights
            that do not fit the network or are not finite.
    """
    metadata = _read_metadata(path)
    with _content_checked(path, "configuration"):
        config = TrialConfig.from_dict(json.loads(metadata.get("config", "")))
        check_size(config.model, config.image_size)
        with torch.device("meta"), _LinspaceOnCpu():
            empty = build_model(config.model, image_size=config.image_size, load_pretrained=False)
    weights = load_file(path)
    try:
        empty.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise InputError(
            f"{path}: the weights do not fit {config.model.name}: {one_line(error)}"
        ) from None
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{path}: its weights hold NaN or infinity ({name}); train it again")
    model = build_model(config.model, image_size=config.image_size, load_pretrained=False)
    model.load_state_dict(weights)
    return model.eval(), config


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


def _write(path: Path, weights: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
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
    if metadata.get("format") != FORMAT:
        raise InputError(
            f"{path}: is not a {FORMAT} model, its format is {metadata.get('format')!r:.60}"
        )
    return metadata
