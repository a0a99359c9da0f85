"""Environment variables that control how trainings use the hardware.

They are not part of a configuration: they do not change what is trained.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from lesionseg.errors import InputError

#: Where images are augmented: on the device, or on the host by albumentations.
AUGMENT = "LESIONSEARCH_AUGMENT"
#: Whether networks are compiled.
COMPILE = "LESIONSEARCH_COMPILE"

#: Valid values of each variable; the first is the default.
ENV_OPTIONS: Mapping[str, tuple[str, ...]] = {
    AUGMENT: ("auto", "host", "device"),
    COMPILE: ("auto", "off", "on"),
}


def read_env_option(name: str) -> str:
    """Return the value of a variable in ENV_OPTIONS; InputError if it is invalid."""
    choices = ENV_OPTIONS[name]
    value = os.environ.get(name, choices[0])
    if value not in choices:
        raise InputError(f"{name}: must be {', '.join(choices)}, got {value!r}; or unset it")
    return value


def check_env_options() -> None:
    """Raise InputError for an invalid variable before a study starts."""
    for name in ENV_OPTIONS:
        read_env_option(name)
