"""StudySpec: the sections of a study file and the checks across them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import cached_property, partial
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from lesionseg.data.layouts import LAYOUTS
from lesionseg.errors import suggest_name
from search.spec import baselines
from search.spec.search_space import SearchSpace, find_size_errors, parse_space

#: The samplers and pruners that ``search.study`` implements.
SAMPLER_NAMES = ("tpe", "random", "qmc", "grid")
PRUNER_NAMES = ("halving", "median", "hyperband", "none")
#: Name in ``warm_start`` of a first trial with the default of every parameter.
DEFAULTS = "defaults"


def _check_name(names: Callable[[], Collection[str]], value: str) -> str:
    if value not in names():
        raise ValueError(f"must be one of {', '.join(names())} ({suggest_name(value, names())})")
    return value


LayoutName = Annotated[str, AfterValidator(partial(_check_name, lambda: ["auto", *LAYOUTS]))]
SamplerName = Annotated[str, AfterValidator(partial(_check_name, lambda: SAMPLER_NAMES))]
PrunerName = Annotated[str, AfterValidator(partial(_check_name, lambda: PRUNER_NAMES))]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SplitSpec(_Section):
    """How the records are split into train, val and test.

    mode: ``auto`` uses the official split of the data set if it has a test part, otherwise the
        shares; ``official`` requires the official split; ``shares`` ignores it.
    train, val, test: shares that add up to 1.
    kfold: the number of folds of a cross-validation. The folds are made of all images that are not
        for testing, so train and val must be left out; mode is then ``auto`` by default.
    """

    mode: Literal["auto", "official", "shares"] = "shares"
    train: float | None = Field(0.7, gt=0, lt=1)
    val: float | None = Field(0.15, gt=0, lt=1)
    test: float = Field(0.15, gt=0, lt=1)
    seed: int = Field(0, ge=0)
    kfold: int | None = Field(None, ge=2)

    @property
    def shares(self) -> dict[str, float]:
        """The shares that are set, by part."""
        shares = {"train": self.train, "val": self.val, "test": self.test}
        return {part: share for part, share in shares.items() if share is not None}

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, plain: Any) -> Any:
        if isinstance(plain, str):
            return {"mode": plain}
        if isinstance(plain, Mapping) and plain.get("kfold") is not None:
            return {"mode": "auto", "train": None, "val": None, **plain}
        return plain

    @model_validator(mode="after")
    def _check_shares(self) -> SplitSpec:
        if self.kfold:
            extra = [part for part in ("train", "val") if part in self.shares]
            if extra:
                raise ValueError(
                    f"kfold splits all images that are not for testing into equal folds, each of "
                    f"which is val once; leave {' and '.join(extra)} out"
                )
            return self
        if self.train is None or self.val is None:
            raise ValueError("train and val are required without kfold")
        total = self.train + self.val + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train, val and test must add up to 1, got {total:g}")
        return self


class LimitSpec(_Section):
    """The largest number of images per part, sampled evenly over lesion area."""

    train: int | None = Field(None, ge=1)
    val: int | None = Field(None, ge=1)
    test: int | None = Field(None, ge=1)


class DataSpec(_Section):
    """Which images are used, and at what size.

    leaks: what happens if official splits share images. ``refuse`` stops before the study starts,
        ``drop`` leaves the copies in train or val out, ``allow`` keeps them.
    invert_masks: whether black is lesion in the masks, of all data sets.
    """

    image_size: int = Field(256, ge=16, le=4096)
    layout: LayoutName = "auto"
    split: SplitSpec = SplitSpec(mode="auto")
    limit: LimitSpec = LimitSpec()
    leaks: Literal["refuse", "drop", "allow"] = "refuse"
    invert_masks: bool = False


class BudgetSpec(_Section):
    """When the study and its trials end.

    trials: of the whole study, over all workers.
    hours: wall-clock time with at least one training running, over all sessions.
    total_hours: wall-clock time of the whole job: search and final test, over all sessions.
    gpu_hours: summed over all GPUs.
    trial_minutes: time limit of one trial.
    stall_minutes: time limit of one step within a trial.
    patience: epochs without a better validation Dice before a training stops; 0 disables it.
    """

    trials: int = Field(50, ge=1)
    epochs: int = Field(40, ge=1, le=100_000)
    hours: float | None = Field(None, gt=0)
    total_hours: float | None = Field(None, gt=0)
    gpu_hours: float | None = Field(None, gt=0)
    trial_minutes: float | None = Field(None, gt=0)
    stall_minutes: float | None = Field(15.0, gt=0)
    patience: int = Field(0, ge=0)


class SamplerSpec(_Section):
    """startup: number of random trials before the sampler uses its model."""

    name: SamplerName = "tpe"
    startup: int = Field(5, ge=0)


class PrunerSpec(_Section):
    """When trials are stopped early.

    min_epochs: epochs that every trial is trained for.
    startup: number of other trials that the median, and a mean over folds, is compared with at
        least.
    """

    name: PrunerName = "halving"
    min_epochs: int = Field(1, ge=1)
    startup: int = Field(5, ge=0)


class ConstraintSpec(_Section):
    """Limits of a configuration; a trial above them is closed before its training.

    max_params_m: millions of trainable parameters.
    max_gmacs: billions of multiply-adds for one image of the study's size.
    """

    max_params_m: float | None = Field(None, gt=0)
    max_gmacs: float | None = Field(None, gt=0)


class FinalSpec(_Section):
    """How the best configurations are trained again before the test.

    image_size, epochs: None for those of the search, ``data.image_size`` and ``budget.epochs``.
    finalists: number of the search's best configurations that are trained again and compared.
    seeds: trainings of each of them.
    ensemble: the largest number of members; 1 for a single network.
    tta, postprocess: whether test-time augmentation and post-processing (threshold, components,
        morphology, CRF) are chosen on the validation images.
    """

    fit_on: Literal["train", "train_val"] = "train"
    image_size: int | None = Field(None, ge=16, le=4096)
    epochs: int | None = Field(None, ge=1, le=100_000)
    finalists: int = Field(1, ge=1, le=20)
    seeds: int = Field(1, ge=1, le=100)
    ensemble: int = Field(5, ge=1, le=20)
    tta: bool = True
    postprocess: bool = True

    @property
    def selects_on_search(self) -> bool:
        """Whether the inference steps are selected with the weights that the search stored.

        A single configuration that is trained on the validation images leaves no other network.
        """
        return self.fit_on == "train_val" and self.finalists == 1


class StudySpec(_Section):
    """A whole study file.

    encoder_weights: source of an encoder's weights (``imagenet``, ``bundled`` or ``none``) where
        they are ``auto``, by encoder. It is determined when the study is created, so that all
        workers use the same. A stored study without it is of a version without ``auto`` and has
        random weights.
    """

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
    encoder_weights: dict[str, Literal["imagenet", "bundled", "none"]] | None = None

    @field_validator("warm_start")
    @classmethod
    def _check_baselines(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            _check_name(lambda: [DEFAULTS, baselines.ALL, *baselines.load_baselines()], name)
        return value

    @cached_property
    def space(self) -> SearchSpace:
        """The search space."""
        return replace(self._parsed_space[0], encoder_weights=self.encoder_weights)

    def with_encoder_weights(self, weights: Mapping[str, str] | None) -> StudySpec:
        """Return this study with other ``encoder_weights``."""
        return StudySpec.model_validate(self.model_dump() | {"encoder_weights": weights})

    @property
    def warm_start_names(self) -> list[str]:
        """``warm_start`` with ``baselines`` replaced by their names, each name once."""
        names: list[str] = []
        for name in self.warm_start:
            names += [name] if name == DEFAULTS else baselines.expand_names([name])
        return list(dict.fromkeys(names))

    @property
    def run_settings(self) -> dict[str, int]:
        """The settings of a TrialConfig that are equal in all trials."""
        return {
            "image_size": self.data.image_size,
            "epochs": self.budget.epochs,
            "patience": self.budget.patience,
            "seed": self.seed,
        }

    @property
    def image_sizes(self) -> dict[str, int]:
        """The different image sizes of search and final, by their keys."""
        sizes = {"data.image_size": self.data.image_size}
        if self.final.image_size not in (None, self.data.image_size):
            sizes["final.image_size"] = self.final.image_size
        return sizes

    @cached_property
    def _parsed_space(self) -> tuple[SearchSpace, list[str]]:
        return parse_space(self.search, self.fixed, self.run_settings)

    def find_errors(self) -> list[str]:
        """Return the errors that no section shows alone: options, ranges, image sizes, grids."""
        errors = list(self._parsed_space[1])
        if self.sampler.name == "grid" and not errors and not self.space.is_finite():
            errors.append("sampler.name: grid needs values, not ranges of real numbers, in search")
        if self.pruner.name != "none" and self.pruner.min_epochs > self.budget.epochs:
            errors.append(
                f"pruner.min_epochs: must be at most budget.epochs ({self.budget.epochs}), "
                f"got {self.pruner.min_epochs}"
            )
        return errors + self._find_size_errors()

    def _find_size_errors(self) -> list[str]:
        """Return errors of image sizes, except for the space's at ``data.image_size``."""
        errors: list[str] = []
        for key, size in self.image_sizes.items():
            are_models_valid = not any(e.startswith("search.model") for e in self._parsed_space[1])
            if key != "data.image_size" and are_models_valid:
                errors += find_size_errors(self.space.families["model"], size, key=key)
            for name in self.warm_start_names:
                if name != DEFAULTS:
                    model = baselines.build_config(name, **self.run_settings).model
                    errors += find_size_errors({model.name: model.params}, size, name, key)
        return errors
