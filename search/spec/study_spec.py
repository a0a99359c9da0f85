"""StudySpec: a study file, read and checked, all of its errors at once."""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from lesionseg.data.index import LAYOUTS
from lesionseg.errors import InputError, nearest
from lesionseg.registry import FAMILIES
from search.spec import baselines, yaml_loader
from search.spec.search_space import SearchSpace, parse_space, refused_sizes
from search.study.pruners import PRUNERS
from search.study.samplers import SAMPLERS


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SplitSpec(_Part):
    """How the records are parted.

    ``mode`` auto takes the data set's official parts where it has a test part, and else the
    shares; official insists on them; shares never looks at them. The shares must add up to 1.
    ``kfold``: into so many folds what is not for testing; there is no share of train and val then,
    and mode is auto where it is left out.
    """

    mode: Literal["auto", "official", "shares"] = "shares"
    train: float | None = Field(0.7, gt=0, lt=1)
    val: float | None = Field(0.15, gt=0, lt=1)
    test: float = Field(0.15, gt=0, lt=1)
    seed: int = Field(0, ge=0)
    kfold: int | None = Field(None, ge=2)

    @property
    def shares(self) -> dict[str, float]:
        """Those that are settled, by part."""
        given = {"train": self.train, "val": self.val, "test": self.test}
        return {part: share for part, share in given.items() if share is not None}

    @model_validator(mode="before")
    @classmethod
    def _without_shares(cls, plain: Any) -> Any:
        if isinstance(plain, Mapping) and plain.get("kfold") is not None:
            return {"mode": "auto", "train": None, "val": None, **plain}
        return plain

    @model_validator(mode="after")
    def _whole(self) -> SplitSpec:
        if self.kfold:
            given = [part for part in ("train", "val") if part in self.shares]
            if given:
                raise ValueError(
                    f"kfold deals all that is not for testing into equal folds, each of them val "
                    f"once; leave {' and '.join(given)} out"
                )
            return self
        if self.train is None or self.val is None:
            raise ValueError("train and val are shares, unless kfold is given")
        total = self.train + self.val + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train, val and test must add up to 1, got {total:g}")
        return self


class LimitSpec(_Part):
    """The most images of each part, spread evenly over lesion area; the rest is used nowhere."""

    train: int | None = Field(None, ge=1)
    val: int | None = Field(None, ge=1)
    test: int | None = Field(None, ge=1)


class DataSpec(_Part):
    """What of the data is used, and how.

    leaks: what is done where official splits share pictures: nothing is begun; the copies that
    are less held out are left out; or they are kept.
    """

    image_size: int = Field(256, ge=16, le=4096)
    layout: str = "auto"
    split: SplitSpec = SplitSpec(mode="auto")
    limit: LimitSpec = LimitSpec()
    leaks: Literal["refuse", "drop", "allow"] = "refuse"

    @field_validator("layout")
    @classmethod
    def _known(cls, value: str) -> str:
        return _one_of(value, ["auto", *LAYOUTS])

    @field_validator("split", mode="before")
    @classmethod
    def _word(cls, value: object) -> object:
        return {"mode": value} if isinstance(value, str) else value


class BudgetSpec(_Part):
    """trials: of the whole study, whoever runs them.

    hours: by the clock, while anybody trains, over all sessions. gpu_hours: of all GPUs together.
    trial_minutes: that one trial may take. stall_minutes: that it may be silent within a step.
    """

    trials: int = Field(50, ge=1)
    epochs: int = Field(40, ge=1, le=100_000)
    hours: float | None = Field(None, gt=0)
    gpu_hours: float | None = Field(None, gt=0)
    trial_minutes: float | None = Field(None, gt=0)
    stall_minutes: float | None = Field(15.0, gt=0)
    patience: int = Field(0, ge=0)


class SamplerSpec(_Part):
    """startup: trials at random before the sampler trusts its model."""

    name: str = "tpe"
    startup: int = Field(5, ge=0)

    @field_validator("name")
    @classmethod
    def _known(cls, value: str) -> str:
        return _one_of(value, SAMPLERS)


class PrunerSpec(_Part):
    """min_epochs: no trial is stopped before.

    startup: finished trials that the median, and means over folds, are compared with at least.
    """

    name: str = "halving"
    min_epochs: int = Field(1, ge=1)
    startup: int = Field(5, ge=0)

    @field_validator("name")
    @classmethod
    def _known(cls, value: str) -> str:
        return _one_of(value, PRUNERS)


class ConstraintSpec(_Part):
    """What a configuration must keep to; one that does not is refused before training.

    max_params_m: millions of trainable parameters. max_gmacs: billions of multiply-adds for one
    image at the study's size.
    """

    max_params_m: float | None = Field(None, gt=0)
    max_gmacs: float | None = Field(None, gt=0)


class FinalSpec(_Part):
    """How the best configuration is trained again before the test.

    tta, postprocess: whether what is done to the network's output is chosen on the validation
    images: test-time augmentation; threshold, components, morphology, CRF.
    """

    fit_on: Literal["train", "train_val"] = "train"
    seeds: int = Field(1, ge=1, le=100)
    tta: bool = True
    postprocess: bool = True


class StudySpec(_Part):
    """A whole study. Frozen: what is written to the study's folder is what was run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    seed: int = Field(0, ge=0, lt=2**31)
    data: DataSpec = DataSpec()
    budget: BudgetSpec = BudgetSpec()
    sampler: SamplerSpec = SamplerSpec()
    pruner: PrunerSpec = PrunerSpec()
    constraints: ConstraintSpec = ConstraintSpec()
    fixed: dict[str, Any] = {}
    search: dict[str, Any] = {}
    warm_start: tuple[str, ...] = ()
    final: FinalSpec = FinalSpec()

    @field_validator("warm_start")
    @classmethod
    def _baselines(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            _one_of(name, [baselines.ALL, *baselines.names()])
        return value

    @cached_property
    def space(self) -> SearchSpace:
        """What is left open."""
        return self._parsed[0]

    @cached_property
    def _parsed(self) -> tuple[SearchSpace, list[str]]:
        settings = {
            "image_size": self.data.image_size,
            "epochs": self.budget.epochs,
            "patience": self.budget.patience,
            "seed": self.seed,
        }
        return parse_space(self.search, self.fixed, settings)

    def problems(self) -> list[str]:
        """What is wrong across keys: options, ranges, sizes, a grid without end."""
        errors = list(self._parsed[1])
        if self.sampler.name == "grid" and not errors and not self.space.is_finite():
            errors.append("sampler.name: grid needs values, not ranges of real numbers, in search")
        if self.pruner.name != "none" and self.pruner.min_epochs > self.budget.epochs:
            errors.append(
                f"pruner.min_epochs: must be at most budget.epochs ({self.budget.epochs}), "
                f"got {self.pruner.min_epochs}"
            )
        for name in baselines.selected(self.warm_start):
            pick = baselines.config(name, self.data.image_size, self.budget.epochs).model
            errors += refused_sizes({pick.name: pick.params}, self.data.image_size, name)
        return errors


def load_spec(study: str, overrides: Sequence[str] = ()) -> StudySpec:
    """Reads a study: a path, or the name of one that comes with lesionsearch.

    overrides: ``budget.epochs=3`` and the like; values are read as YAML.
    Raises InputError with all errors of the file in one line.
    """
    path, text = _find(study)
    plain = with_overrides(yaml_loader.parse(path, text), overrides)
    plain.setdefault("name", path.stem)
    return spec_from(plain, str(path))


def with_overrides(plain: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The same plain data with ``budget.epochs=3`` and the like put into it."""
    for override in overrides:
        _override(plain, override)
    return plain


def spec_from(plain: Mapping[str, Any], where: str) -> StudySpec:
    """A StudySpec from plain data; InputError with all of its errors in one line."""
    try:
        spec = StudySpec.model_validate(plain)
        errors = spec.problems()
    except ValidationError as error:
        errors = [_told(e, plain) for e in error.errors()]
        # What does not depend on the broken parts is checked all the same.
        errors += _space_errors(plain)
    if errors:
        listed = (
            errors[0]
            if len(errors) == 1
            else "; ".join(f"({i}) {e}" for i, e in enumerate(errors, 1))
        )
        raise InputError(f"{where}: {listed}")
    return spec


def shipped() -> dict[str, Path]:
    """The study files that come with lesionsearch, by name."""
    root = Path(str(importlib.resources.files("studies")))
    return {p.stem: p for p in sorted(root.glob("*.yaml"))}  # studies/baselines/ holds baselines


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The dotted keys whose values differ between two specs as plain data."""
    keys: list[str] = []
    for key in dict.fromkeys([*old, *new]):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            keys += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            keys.append(f"{prefix}{key}")
    return keys


def _find(study: str) -> tuple[Path, str]:
    path = Path(study)
    if path.suffix in {".yaml", ".yml"} or path.is_file():
        try:
            return path, path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text"
            raise InputError(f"study: {path}: cannot be read: {reason}") from None
    known = shipped()
    if study not in known:
        raise InputError(
            f"study: unknown study {study!r} ({nearest(study, known)}); "
            f"give one of them or the path of a .yaml file"
        )
    return known[study], known[study].read_text(encoding="utf-8")


def _override(plain: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--set: must be KEY=VALUE such as budget.epochs=3, got {text!r}")
    *parents, last = key.strip().split(".")
    home = plain
    for depth, parent in enumerate(parents, 1):
        inner = home.get(parent)
        if not isinstance(inner, dict):
            inner = home[parent] = _spelt_out(parents[:depth], inner)
        home = inner
    try:
        home[last] = yaml_loader.value(value)
    except yaml.YAMLError:
        raise InputError(f"--set: {key}: the value is not YAML: {value!r}") from None


def _spelt_out(path: Sequence[str], short: object) -> dict[str, Any]:
    """The mapping that a word or a list stands for, so that a key below it can be set."""
    if path == ["data", "split"] and isinstance(short, str):
        return {"mode": short}
    if path[0] == "search" and short == "all":
        return {name: {} for name in FAMILIES.get(path[-1], ())}
    names = [short] if path[0] == "search" and isinstance(short, str) else short
    return {str(name): {} for name in names} if isinstance(names, list) else {}


def _told(error: Any, plain: Mapping[str, Any]) -> str:
    loc = [str(part) for part in error["loc"]]
    where = ".".join(loc)
    if error["type"] == "extra_forbidden":
        return f"{where}: unknown key ({nearest(loc[-1], _fields(loc[:-1]))})"
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if isinstance(error["input"], Mapping | BaseModel):
        return f"{where}: {message}"
    return f"{where}: {message}, got {error['input']!r}"


def _fields(loc: Sequence[str]) -> list[str]:
    model: type[BaseModel] = StudySpec
    for part in loc:
        inner = model.model_fields[part].annotation
        assert isinstance(inner, type) and issubclass(inner, BaseModel)
        model = inner
    return list(model.model_fields)


def _space_errors(plain: Mapping[str, Any]) -> list[str]:
    search, fixed = plain.get("search", {}), plain.get("fixed", {})
    if not isinstance(search, dict) or not isinstance(fixed, dict):
        return []
    try:
        size = DataSpec.model_validate(plain.get("data", {})).image_size
    except ValidationError:
        size = 4096  # which every model takes
    settings = {"image_size": size, "epochs": 1, "patience": 0, "seed": 0}
    return parse_space(search, fixed, settings)[1]


def _one_of(value: str, known: Sequence[str] | Mapping[str, object]) -> str:
    if value not in known:
        raise ValueError(f"must be one of {', '.join(known)} ({nearest(value, known)})")
    return value
