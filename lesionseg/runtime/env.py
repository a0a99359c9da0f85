"""The environment variable that selects where images are augmented.

It is not part of a configuration: it does not change what is trained.
"""

from __future__ import annotations

import os

from lesionseg.errors import InputError

AUGMENT = "LESIONSEARCH_AUGMENT"

#: On the device, on the host by albumentations, or on the device if the images fit there.
AUGMENT_VALUES = ("auto", "host", "device")


def read_augment_setting() -> str:
    """Return the variable's value, by default "auto"; InputError if it is invalid."""
    value = os.environ.get(AUGMENT, "auto")
    if value not in AUGMENT_VALUES:
        raise InputError(
            f"{AUGMENT}: must be {', '.join(AUGMENT_VALUES)}, got {value!r}; or unset it"
        )
    return value
