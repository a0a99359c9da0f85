"""Plan a study for folders of images on this machine: read, measure, decide."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lesionseg.data.index import DatasetIndex
from lesionseg.data.merge import Roots
from lesionseg.errors import InputError
from lesionseg.models.weights import resolve_weights
from search.planning import policy
from search.planning.fingerprint import DataFingerprint, read_fingerprint
from search.planning.measuring import measure_machine
from search.planning.plan import Plan, candidate_encoders, make_plan
from search.planning.reasons import summarize
from search.planning.speeds import MachineSpeeds
from search.planning.study_file import render_study
from search.spec.study_spec import DataSpec
from search.trial_process.slot import Slot

#: The name of the studies that are planned.
AUTO = "auto"


@dataclass(frozen=True)
class Planned:
    """A plan and what it was made from."""

    plan: Plan
    data: DataFingerprint
    speeds: MachineSpeeds
    weights: dict[str, str]
    slots: tuple[Slot, ...]
    quality: str

    def summary(self) -> list[str]:
        """Return the main points for the console."""
        slot, spec = self.slots[0], self.plan.spec
        where = f"{slot.threads} threads" if slot.device == "cpu" else "GPU"
        number = "" if len(self.slots) == 1 else f"{len(self.slots)} slots, each "
        size = spec.final.image_size or spec.data.image_size
        speeds = ", ".join(
            f"{name} {1 / speed.image_s.at(size):.3g}"
            for name, speed in self.speeds.anchors.items()
        )
        return [
            f"plan for {spec.budget.total_hours:g} h, quality {self.quality}, on {number}"
            f"{slot.device} ({where}); images/s at {size} px: {speeds}",
            *summarize(spec, self.data, self.plan.forecast, self.weights),
        ]

    def render(self) -> str:
        """Return the study file."""
        return render_study(self.plan, self.summary())


def plan_study(
    data: Roots,
    hours: float,
    quality: str,
    slots: Sequence[Slot],
    *,
    data_spec: DataSpec | None = None,
    started_at: float | None = None,
    on_anchor: Callable[[str], None] = lambda name: None,
) -> Planned:
    """Plan a study.

    Args:
        data: folders of the images.
        hours: wall-clock time of the whole job.
        quality: a name in QUALITIES.
        slots: of the trainings, at least one; the first one is measured.
        data_spec: how the images are read, split and limited; the defaults if None.
        started_at: monotonic seconds at which the job began, if the planning is a part of it.
        on_anchor: called with the name of each network before it is measured.

    Raises:
        InputError: as ``DatasetIndex.read``, ``read_fingerprint``, ``measure_machine`` and
            ``make_plan``.
    """
    policy.find_quality(quality)
    if not 0 < hours < math.inf:
        raise InputError(f"--hours: must be above 0 and finite, got {hours:g}")
    data_spec = data_spec or DataSpec()
    index = DatasetIndex.read(data, data_spec.layout, invert_masks=data_spec.invert_masks)
    fingerprint = read_fingerprint(index, data_spec)
    limit_s = min(policy.MAX_MEASURE_S, policy.MEASURE_SHARE * 3600 * hours)
    speeds = measure_machine(slots[0], limit_s, on_anchor=on_anchor)

    def plan(weights: Mapping[str, str]) -> Plan:
        return make_plan(
            fingerprint,
            speeds,
            slots=len(slots),
            hours=hours,
            quality=quality,
            weights=weights,
            spent_s=0.0 if started_at is None else time.monotonic() - started_at,
            name=AUTO,
        )

    # Only the weights that the plan would use are downloaded.
    wanted = plan(dict.fromkeys(candidate_encoders(), "imagenet")).spec.space.auto_encoders()
    weights = {e: resolve_weights(e, fetch=e in wanted) for e in candidate_encoders()}
    return Planned(plan(weights), fingerprint, speeds, weights, tuple(slots), quality)
