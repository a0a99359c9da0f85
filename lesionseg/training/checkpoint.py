"""Weights and the configuration that they belong to, in one file that is safe to open.

A safetensors file holds numbers and a JSON header, and nothing that could run; the
configuration is in its header, so that the file alone is enough to build the network again.
"""

from __future__ import annotations

import json
import os
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
from lesionseg.errors import InputError, some
from lesionseg.inference.selection import DEFAULT_INFERENCE, Inference
from lesionseg.models import build_model, check_size

FORMAT = "lesionsearch/1"

#: The longest header in bytes that is read; those of the largest networks take a thirtieth.
MOST_HEADER = 8 * 2**20

#: How safetensors calls the kinds of numbers that networks hold.
DTYPES = {torch.float32: "F32", torch.int64: "I64", torch.bool: "BOOL"}

#: What a header of any content makes the parsers and the tables raise; InputError is a ValueError.
_UNUSABLE = (ValueError, TypeError, AttributeError, RecursionError, OverflowError)

#: Shape and kind of each tensor by name.
Shapes = dict[str, tuple[tuple[int, ...], str]]


def save(path: Path, weights: Mapping[str, Tensor], config: TrialConfig) -> None:
    """Writes the file, or nothing: under its name lies a whole one."""
    metadata = {"format": FORMAT, "config": json.dumps(config.to_dict())}
    _write(path, weights, metadata)


def set_inference(path: Path, inference: Inference) -> None:
    """Notes in a checkpoint what is to be done to the network's output from now on."""
    with _opened(path) as (file, metadata):
        weights = {name: file.get_tensor(name) for name in _told(file)}
    _write(path, weights, metadata | {"inference": json.dumps(inference.to_dict())})


def read_inference(path: Path) -> Inference:
    """What a checkpoint says is to be done to the network's output; DEFAULT_INFERENCE if nothing.

    Raises InputError as ``load``.
    """
    with _opened(path) as (_, metadata):
        noted = metadata.get("inference")
    try:
        return Inference.from_dict(json.loads(noted)) if noted else DEFAULT_INFERENCE
    except _UNUSABLE as error:
        raise InputError(
            f"{path}: what it says of inference cannot be used: {_reason(error)}"
        ) from None


def load(path: Path) -> tuple[nn.Module, TrialConfig]:
    """The network with its weights, in evaluation mode on the CPU, and its configuration.

    The file may come from anywhere. Its configuration is checked against the tables, and the names
    and shapes in its header against the network, before the network is given memory or a weight
    is read.

    Raises InputError: no such file, another format, a configuration that cannot be built, weights
    that do not fit the network, or weights that are no numbers.
    """
    with _opened(path) as (file, metadata):
        config = _config(path, metadata)
        wanted = _described(path, config)
        _compare(path, config, wanted, _told(file))
        weights = {name: file.get_tensor(name) for name in wanted}
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{path}: its weights hold NaN or infinity ({name}); train it again")
    model = build_model(config.model, image_size=config.image_size, load_pretrained=False)
    model.load_state_dict(weights)
    return model.eval(), config


def _config(path: Path, metadata: Mapping[str, str]) -> TrialConfig:
    try:
        config = TrialConfig.from_dict(json.loads(metadata.get("config", "")))
        check_size(config.model, config.image_size)
    except _UNUSABLE as error:
        raise InputError(f"{path}: its configuration cannot be used: {_reason(error)}") from None
    return config


def _described(path: Path, config: TrialConfig) -> Shapes:
    """The network's tensors as they should be, without memory for a single one."""
    try:
        with torch.device("meta"), _NumbersOnCpu():
            model = build_model(config.model, image_size=config.image_size, load_pretrained=False)
    except InputError as error:
        raise InputError(f"{path}: its configuration cannot be used: {_reason(error)}") from None
    return {
        name: (tuple(tensor.shape), DTYPES.get(tensor.dtype, str(tensor.dtype)))
        for name, tensor in model.state_dict().items()
    }


class _NumbersOnCpu(TorchFunctionMode):
    """Rows of plain numbers that builders read back have a value on the meta device too."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        changed = {"device": "cpu"} if func is torch.linspace else {}
        return func(*args, **{**(kwargs or {}), **changed})


def _told(file: Any) -> Shapes:
    """What a file's header says of its tensors."""
    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    return {name: (tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}


def _compare(path: Path, config: TrialConfig, wanted: Shapes, found: Shapes) -> None:
    lacking, foreign = [n for n in wanted if n not in found], [n for n in found if n not in wanted]
    other = [n for n in wanted if n in found and found[n] != wanted[n]]
    reason = ""
    if lacking:
        reason = f"{len(lacking)} of {len(wanted)} tensors are missing: {some(lacking)}"
    elif foreign:
        reason = f"{len(foreign)} tensors are not the network's: {some(foreign)}"
    elif other:
        (shape, kind), (right, its) = found[other[0]], wanted[other[0]]
        reason = f"{other[0]} is {kind} {list(shape)}, it should be {its} {list(right)}"
    if reason:
        raise InputError(
            f"{path}: the weights do not fit {config.model.name}: {' '.join(reason.split())[:200]}"
        )


def _write(path: Path, weights: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    plain = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    try:
        # Its own save_file makes a file that nobody else may read; a lab shares its models.
        partial.write_bytes(to_bytes(plain, metadata=metadata))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, str]]]:
    """A checkpoint that is open, and its metadata; its tensors are still on disk.

    safetensors itself makes sure that the tensors in the header are exactly what lies in the file,
    one after the other, so that none claims more than is there.
    """
    _check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise InputError(
                    f"{path}: holds no {FORMAT} model, its format is {metadata.get('format')!r:.60}"
                )
            yield file, metadata
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a safetensors file ({_reason(error)})") from None


def _check_header(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            claimed = int.from_bytes(file.read(8), "little")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    # Parsing takes some ten times a header's length.
    if MOST_HEADER < claimed <= path.stat().st_size:
        raise InputError(
            f"{path}: not a safetensors file (its header claims {claimed:,} bytes, at most "
            f"{MOST_HEADER:,} are read)"
        )


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]} ..."
