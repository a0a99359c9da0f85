"""The normalisation of images that an encoder's pretrained weights expect.

Networks receive images that are normalised by ImageNet's mean and standard deviation. Some weights
were trained with others, such as 0.5 and 0.5 of EfficientNet-Lite. The conversion is part of the
network, so that checkpoints and exports are self-contained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

#: The encoder's submodule that converts its input.
SUBMODULE = "normalisation"


class InputNormalisation(nn.Module):
    """Converts images normalised by one mean and deviation to another: ``x * scale + shift``.

    A state dict without ``scale`` and ``shift``, of a network that was trained without the
    conversion, is loaded with the identity.

    Args:
        mean: of each channel, of images in [0, 1].
        std: standard deviation of each channel.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

        super().__init__()
        given_mean, given_std, target_mean, target_std = (
            torch.tensor(values, dtype=torch.float64).reshape(3, 1, 1)
            for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, mean, std)
        )
        self.register_buffer("scale", (given_std / target_std).float())
        self.register_buffer("shift", ((given_mean - target_mean) / target_std).float())

    def forward(self, x: Tensor) -> Tensor:
        """Convert images [N, 3, H, W]."""
        return x * self.scale + self.shift

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        names = (prefix + "scale", prefix + "shift")
        if not any(name in state_dict for name in names):
            identity = (torch.ones(3, 1, 1), torch.zeros(3, 1, 1))
            state_dict = {**state_dict, **dict(zip(names, identity, strict=True))}
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def normalise_input(model: nn.Module, encoder: str) -> None:
    """Convert the input of ``model.encoder`` if its weights expect another normalisation.

    Args:
        model: a network of segmentation-models-pytorch.
        encoder: smp's name of its encoder.
    """
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    mean, std = expected_normalisation(encoder)
    if (mean, std) != (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD):
        module = model.get_submodule("encoder")
        module.add_module(SUBMODULE, InputNormalisation(mean, std))
        # A hook keeps the names of the encoder's weights.
        module.register_forward_pre_hook(_convert)


def expected_normalisation(encoder: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation that an encoder's weights expect, of images in [0, 1]."""
    import timm
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    if encoder.startswith("tu-"):
        config = timm.models.get_pretrained_cfg(encoder.removeprefix("tu-"))
        if config is not None:
            return config.mean, config.std
    return IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD  # of smp's own encoders


def _convert(encoder: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (encoder.get_submodule(SUBMODULE)(inputs[0]), *inputs[1:])
