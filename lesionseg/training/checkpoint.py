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
from safetensors.torch import save as to_bytes
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lesionseg.config import TrialConfig
from lesionseg.errors import InputError, format_some, one_line
from lesionseg.inference.selection import DEFAULT_INFERENCE, Inference
from lesionseg.models import build_model, check_size
from lesionseg.runtime.files import atomic_write

FORMAT = "lesionsearch/1"

#: Largest header in bytes that is read; those of the largest networks are 30 times smaller.
MAX_HEADER_SIZE = 8 * 2**20

#: safetensors' names of the dtypes that networks contain.
DTYPES = {torch.float32: "F32", torch.int64: "I64", torch.bool: "BOOL"}


def save(path: Path, weights: Mapping[str, Tensor], config: TrialConfig) -> None:
    """Write a complete file or none."""
    metadata = {"format": FORMAT, "config": json.dumps(config.to_dict())}
    _write(path, weights, metadata)


def set_inference(path: Path, inference: Inference) -> None:
    """Store the inference settings in a checkpoint; raises InputError as ``load``."""
    with _open_checked(path) as (file, metadata):
        weights = {name: file.get_tensor(name) for name in _read_specs(file)}
    _write(path, weights, metadata | {"inference": json.dumps(inference.to_dict())})


def read_inference(path: Path) -> Inference:
    """Return the inference settings of a checkpoint; raises InputError as ``load``."""
    with _open_checked(path) as (_, metadata), _content_checked(path, "inference settings"):
        text = metadata.get("inference")
        return Inference.from_dict(json.loads(text)) if text else DEFAULT_INFERENCE


def load(path: Path) -> tuple[nn.Module, TrialConfig]:
    """Return the network with its weights, in evaluation mode on the CPU, and its configuration.

    The file need not be trusted. The configuration and the names and shapes in the header are
    checked before memory is allocated for the network or a weight is read.

    Raises:
        InputError: no such file, another format, a configuration that cannot be built, or weights
            that do not fit the network or are not finite.
    """
    with _open_checked(path) as (file, metadata):
        with _content_checked(path, "configuration"):
            config = TrialConfig.from_dict(json.loads(metadata.get("config", "")))
            check_size(config.model, config.image_size)
            expected = _expected_specs(config)
        if difference := _find_difference(expected, _read_specs(file)):
            raise InputError(f"{path}: the weights do not fit {config.model.name}: {difference}")
        weights = {name: file.get_tensor(name) for name in expected}
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


def _expected_specs(config: TrialConfig) -> dict[str, str]:
    """Return dtype and shape of the network's tensors, built without allocating memory."""
    with torch.device("meta"), _LinspaceOnCpu():
        model = build_model(config.model, image_size=config.image_size, load_pretrained=False)
    return {
        name: f"{DTYPES.get(tensor.dtype, tensor.dtype)} {list(tensor.shape)}"
        for name, tensor in model.state_dict().items()
    }


class _LinspaceOnCpu(TorchFunctionMode):
    """Compute torch.linspace on the CPU: builders read its values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        device = {"device": "cpu"} if func is torch.linspace else {}
        return func(*args, **{**(kwargs or {}), **device})


def _read_specs(file: Any) -> dict[str, str]:
    """Return dtype and shape of the tensors that a file's header lists."""
    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    return {name: f"{s.get_dtype()} {list(s.get_shape())}" for name, s in slices.items()}


def _find_difference(expected: dict[str, str], actual: dict[str, str]) -> str:
    """Return how a file's tensors differ from the network's; empty if they do not."""
    difference = ""
    if missing := [name for name in expected if name not in actual]:
        difference = (
            f"{len(missing)} of {len(expected)} tensors are missing: {format_some(missing)}"
        )
    elif unexpected := [name for name in actual if name not in expected]:
        difference = f"{len(unexpected)} tensors are not the network's: {format_some(unexpected)}"
    elif different := [name for name in expected if actual[name] != expected[name]]:
        name = different[0]
        difference = f"{name} is {actual[name]}, it should be {expected[name]}"
    return " ".join(difference.split())[:200]


def _write(path: Path, weights: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    # safetensors' save_file creates a file of mode 0600, which others cannot read.
    atomic_write(path, to_bytes(tensors, metadata=metadata))


@contextmanager
def _open_checked(path: Path) -> Iterator[tuple[Any, dict[str, str]]]:
    """Open a checkpoint and yield it with its metadata; no tensor is read yet.

    safetensors itself verifies that the tensors in the header cover the file exactly, so that
    none can claim more memory than the file has.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with path.open("rb") as binary:
            header_size = int.from_bytes(binary.read(8), "little")
        # Parsing takes about ten times the memory of the header.
        if MAX_HEADER_SIZE < header_size <= path.stat().st_size:
            limit = f"more than {MAX_HEADER_SIZE:,}"
            raise SafetensorError(f"its header has {header_size:,} bytes, {limit}")
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise InputError(
                    f"{path}: is not a {FORMAT} model, its format is {metadata.get('format')!r:.60}"
                )
            yield file, metadata
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a safetensors file ({one_line(error)})") from None
