"""Whether a training is worth compiling, and what is done where that fails.

torch.compile fuses what lies between convolutions, and takes a minute or more to do so. Most
trainings of a search are stopped within a few epochs, so that it is the long ones alone that earn
it back: by itself nothing is compiled before an epoch has shown how long the others will take, and
not by a process's first epoch, in which loaders start and cuDNN tries its algorithms.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lesionseg.runtime.env import COMPILE, read_env_option

#: Seconds that the epochs to come must be expected to take. A gain of a tenth of them is then
#: thrice the minute that compiling takes.
LEAST_LEFT = 1800.0

Forward = Callable[[Tensor], Any]


def pays(device: torch.device, seconds_left: float = 0.0) -> bool:
    """Whether to compile a training, as LESIONSEARCH_COMPILE says, or by itself.

    seconds_left: what the epochs to come are expected to take; 0 before the first.
    Raises InputError where the variable says something else.
    """
    asked = read_env_option(COMPILE)
    return asked == "on" or (
        asked == "auto" and device.type == "cuda" and seconds_left >= LEAST_LEFT
    )


def compiled(model: nn.Module) -> Forward:
    """The network's forward pass, compiled at its first call; the network itself, if it cannot."""
    try:
        # Fixed shapes: an epoch has batches of one size, and validation is not compiled.
        forward: Forward = torch.compile(model, dynamic=False)
    except Exception as error:  # whatever a compiler that is missing here raises
        failed(error)
        return model
    return forward


def failed(error: Exception) -> None:
    """Warns that the training goes on without."""
    told = " ".join(str(error).split())[:200]
    warnings.warn(
        f"the network could not be compiled ({type(error).__name__}: {told}); "
        f"it is trained as it is; {COMPILE}=off spares the attempt",
        RuntimeWarning,
        stacklevel=2,
    )
