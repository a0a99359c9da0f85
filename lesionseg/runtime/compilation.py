"""Compilation of the network with torch.compile, for long trainings on CUDA.

torch.compile fuses the operations between convolutions and takes a minute or more. Most trainings
of a search end within a few epochs. By default a network is compiled only if the remaining epochs
are expected to take half an hour, which is known after the second epoch of a process.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lesionseg.runtime.env import COMPILE, read_env_option

#: Minimum expected duration of the remaining epochs. If compiling saves a tenth of it, that is
#: three times the minute that compiling takes.
MIN_SECONDS_LEFT = 1800.0

Forward = Callable[[Tensor], Any]


def is_worthwhile(device: torch.device, seconds_left: float) -> bool:
    """Return whether to compile, by LESIONSEARCH_COMPILE and the expected remaining seconds.

    Raises:
        InputError: the variable has an invalid value.
    """
    option = read_env_option(COMPILE)
    return option == "on" or (
        option == "auto" and device.type == "cuda" and seconds_left >= MIN_SECONDS_LEFT
    )


def compile_forward(model: nn.Module) -> Forward:
    """Return the forward pass, compiled at its first call, or the network if that fails."""
    try:
        # Static shapes: all training batches have one size; validation is not compiled.
        forward: Forward = torch.compile(model, dynamic=False)
    except Exception as error:  # compilers raise anything
        warn_compilation_failed(error)
        return model
    return forward


def warn_compilation_failed(error: Exception) -> None:
    """Warn that the network is trained without compilation."""
    message = " ".join(str(error).split())[:200]
    warnings.warn(
        f"the network could not be compiled ({type(error).__name__}: {message}); "
        f"it is trained uncompiled; {COMPILE}=off disables compilation",
        RuntimeWarning,
        stacklevel=2,
    )
