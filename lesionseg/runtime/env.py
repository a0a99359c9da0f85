"""Variables of the environment that say how trainings use the hardware.

They are no part of a configuration, whose meaning does not depend on them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from lesionseg.errors import InputError

#: Who augments: the device itself, or albumentations on its host.
AUGMENT = "LESIONSEARCH_AUGMENT"
#: Whether the network is compiled.
COMPILE = "LESIONSEARCH_COMPILE"

#: What each may say; the first is what counts where nothing is said.
ENV_OPTIONS: Mapping[str, tuple[str, ...]] = {
    AUGMENT: ("auto", "host", "device"),
    COMPILE: ("auto", "off", "on"),
}


def read_env_option(name: str) -> str:
    """What a variable says. InputError where it is none of its values."""
    choices = ENV_OPTIONS[name]
    asked = os.environ.get(name, choices[0])
    if asked not in choices:
        raise InputError(f"{name}: must be {', '.join(choices)}, got {asked!r}; or unset it")
    return asked


def check_env_options() -> None:
    """InputError where any says what it may not: before a study starts, not at its first trial."""
    for name in ENV_OPTIONS:
        read_env_option(name)
