"""Files with configurations for the queue: YAML with one configuration or a list of them.

    {model: {unet: {width: 32}}, loss: dice, batch_size: 8}    the rest is sampled
    {baseline: unet-dice}                                      a published system
    {config: {...}}                                            complete, as a trial's config

The first form is a point of the study's search space. The others may be outside of it: such a trial
is trained and ranked like any other, but the sampler ignores it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lesionseg.config import DEFAULT_COMPONENTS, SETTINGS, TrialConfig
from lesionseg.errors import InputError
from search.spec import baselines, yaml_loader
from search.spec.loading import join_errors
from search.spec.search_space import find_size_errors
from search.spec.study_spec import StudySpec
from search.storage.leases import QueueEntry
from search.storage.trial_records import TrialAttr
from search.study.points import find_point, flatten_config
from search.study.warm_start import baseline_config, queue_entry


def read_entries(path: Path, spec: StudySpec) -> list[QueueEntry]:
    """Read the configurations of a file; raises InputError with all of its errors."""
    plain = yaml_loader.load_file(path)
    items = plain if isinstance(plain, list) else [plain]
    if not items or plain is None:
        raise InputError(f"{path}: contains no configuration")
    errors: list[str] = []
    entries: list[QueueEntry] = []
    for i, item in enumerate(items, 1):
        item_errors: list[str] = []
        entries.append(_parse_item(item, spec, item_errors))
        errors += [f"entry {i}: {e}" if len(items) > 1 else e for e in item_errors]
    if errors:
        raise InputError(f"{path}: {join_errors(errors)}")
    return entries


def _parse_item(item: Any, spec: StudySpec, errors: list[str]) -> QueueEntry:
    if not isinstance(item, Mapping) or not item:
        errors.append(f"must be keys and values such as {{loss: dice}}, got {item!r:.60}")
        return {}, {}
    kind = next((key for key in ("baseline", "config") if key in item), None)
    if kind is None:
        try:
            point, point_errors = find_point(flatten_config(item), spec.space)
        except InputError as error:
            point, point_errors = {}, [str(error)]
        errors += point_errors
        return point, {}
    if len(item) > 1:
        errors.append(f"{kind}: must be the only key, got {', '.join(map(str, item))}")
        return {}, {}
    try:
        if kind == "baseline":
            config, attrs = baseline_config(str(item[kind]), spec), {TrialAttr.BASELINE: item[kind]}
        else:
            config, attrs = _parse_config(item[kind], spec), {}
    except InputError as error:
        errors.append(f"{kind}: {error}")
        return {}, {}
    errors += find_size_errors({config.model.name: config.model.params}, config.image_size)
    return queue_entry(config, spec.space, attrs)


def _parse_config(plain: Any, spec: StudySpec) -> TrialConfig:
    """Parse a complete configuration; the settings of the run may be left out."""
    if not isinstance(plain, Mapping):
        raise InputError(f"must be keys and values, got {plain!r:.60}")
    size, budget = spec.data.image_size, spec.budget
    run_settings = {"image_size": size, "epochs": budget.epochs, "patience": budget.patience}
    full = run_settings | {"seed": spec.seed} | dict(plain)
    TrialConfig.from_dict(full)  # reports unknown keys before missing ones
    missing = [key for key in (*DEFAULT_COMPONENTS, *SETTINGS) if key not in full]
    if missing:
        raise InputError(f"lacks {', '.join(missing)}; without 'config:' they are sampled")
    config = baselines.resolve_config(full)
    if config.image_size != size:
        raise InputError(f"image_size: the study's images have {size}, got {config.image_size}")
    if config.epochs > budget.epochs:
        raise InputError(f"epochs: at most the study's {budget.epochs}, got {config.epochs}")
    return config
