"""Weights and the configuration that they belong to, in one file that is safe to open.

A safetensors file holds numbers and a JSON header, and nothing that could run; the
configuration is in its header, so that the file alone is enough to build the network again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from lesionseg.config import TrialConfig
from lesionseg.errors import InputError
from lesionseg.inference import PLAIN, Inference
from lesionseg.models import build_model

FORMAT = "lesionsearch/1"


def save(path: Path, weights: Mapping[str, Tensor], config: TrialConfig) -> None:
    """Writes the file, or nothing: under its name lies a whole one."""
    metadata = {"format": FORMAT, "config": json.dumps(config.to_dict())}
    _write(path, weights, metadata)


def set_inference(path: Path, inference: Inference) -> None:
    """Notes in a checkpoint what is to be done to the network's output from now on."""
    metadata, weights = _read(path)
    _write(path, weights, metadata | {"inference": json.dumps(inference.to_dict())})


def read_inference(path: Path) -> Inference:
    """What a checkpoint says is to be done to the network's output; PLAIN if nothing.

    Raises InputError as ``load``.
    """
    metadata, _ = _read(path, header_only=True)
    try:
        noted = metadata.get("inference")
        return Inference.from_dict(json.loads(noted)) if noted else PLAIN
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: what it says of inference cannot be used: {error}") from None


def load(path: Path) -> tuple[nn.Module, TrialConfig]:
    """The network with its weights, in evaluation mode on the CPU, and its configuration.

    Raises InputError: no such file, another format, a configuration that cannot be built, or
    weights that do not fit the network.
    """
    metadata, weights = _read(path)
    try:
        config = TrialConfig.from_dict(json.loads(metadata.get("config", "")))
        model = build_model(config.model, image_size=config.image_size, fresh=False)
    except (ValueError, TypeError, AttributeError) as error:  # InputError is a ValueError
        raise InputError(f"{path}: its configuration cannot be used: {error}") from None
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: the weights do not fit {config.model.name}: {reason}") from None
    return model.eval(), config


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


def _read(path: Path, *, header_only: bool = False) -> tuple[dict[str, str], dict[str, Tensor]]:
    """A checkpoint's header and its weights, unless only the first is wanted."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = [] if header_only else file.keys()
            weights = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a safetensors file ({error})") from None
    if metadata.get("format") != FORMAT:
        raise InputError(
            f"{path}: holds no {FORMAT} model, its format is {metadata.get('format')!r}"
        )
    return metadata, weights
