"""Read the JSON and CSV files of a study; a damaged file raises InputError with one line.

The content of a file is described by a type that pydantic checks, such as a TypedDict.
"""

from __future__ import annotations

import csv
from collections.abc import Hashable
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

from pydantic import AfterValidator, Field, InstanceOf, TypeAdapter, ValidationError
from typing_extensions import TypeForm

from lesionseg.data.pairs import escape_unprintable
from lesionseg.errors import InputError
from lesionseg.runtime.files import read_json


def _check_text(text: str) -> str:
    text.encode()  # raises ValueError
    return text


#: The name of an image or a group. It may contain surrogates, as names of files may have bytes that
#: are not UTF-8. ``str`` accepts them in some versions of pydantic only.
Name = InstanceOf[str]
#: A name without surrogates, which databases do not accept.
DatabaseName = Annotated[str, AfterValidator(_check_text)]
#: A number of objects or bytes.
Count = Annotated[int, Field(ge=0, lt=2**63)]

T = TypeVar("T")


def require_keys(*keys: str) -> AfterValidator:
    """Return a validator of a dict that may have other keys, too."""

    def check(plain: dict[str, Any]) -> dict[str, Any]:
        if missing := [key for key in keys if key not in plain]:
            raise ValueError(f"lacks {', '.join(missing)}")
        return plain

    return AfterValidator(check)


def read_json_file(path: Path, content: TypeForm[T], remedy: str) -> T:
    """Read a JSON file; unknown keys are left out.

    Args:
        path: The file.
        content: The type of its content.
        remedy: What the user can do if the file is damaged.

    Raises:
        InputError: The file cannot be read or is damaged.
    """
    try:
        plain = read_json(path)
    except InputError as error:
        raise InputError(f"{error}; {remedy}") from None
    return check_content(str(path), plain, content, remedy)


def read_csv_file(path: Path, row: TypeForm[T], remedy: str) -> list[T]:
    """Read a CSV file with at least one row; row: the type of each. See ``read_json_file``."""
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = list(csv.DictReader(file, strict=True))
    except (OSError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read: {reason}; {remedy}") from None
    if not rows:
        raise InputError(f"{path}: damaged, it has no rows; {remedy}")
    return check_content(str(path), rows, list[row], remedy)  # type: ignore[valid-type]


def check_content(where: str, plain: Any, content: TypeForm[T], remedy: str) -> T:
    """Check plain data; see ``read_json_file``. where: their origin, for the message."""
    try:
        return cast(T, _adapter(cast(Hashable, content)).validate_python(plain))
    except ValidationError as error:
        raise InputError(f"{where}: damaged: {describe_first(error)}; {remedy}") from None
    except UnicodeEncodeError as error:  # of pydantic, for half a pair of surrogates
        raise InputError(f"{where}: damaged: {error}; {remedy}") from None


@cache
def _adapter(content: Any) -> TypeAdapter[Any]:
    return TypeAdapter(content)


def describe_first(error: ValidationError) -> str:
    """Describe the first problem that pydantic found: ``trials.3.value: Field required``."""
    first = error.errors()[0]
    place = escape_unprintable(".".join(map(str, first["loc"])))[:100]
    message = first["msg"].removeprefix("Value error, ")
    got = "" if first["type"] == "missing" else f", got {first['input']!r:.60}"
    return f"{place}: {message}{got}" if place else f"{message}{got}"
