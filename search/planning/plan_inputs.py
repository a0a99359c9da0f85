"""What a plan is made for, and the forecast of its times."""

from __future__ import annotations

from dataclasses import dataclass

from search.planning import policy
from search.planning.fingerprint import DataFingerprint
from search.planning.policy import TIERS, Quality, Tier
from search.planning.speeds import MachineSpeeds


@dataclass(frozen=True)
class PlanInputs:
    """Data, machine, time and quality of a plan.

    speeds: of one slot. slots: number of trainings that run at once. available_s: seconds of
    search and final together.
    """

    data: DataFingerprint
    speeds: MachineSpeeds
    slots: int
    available_s: float
    quality: Quality

    def image_s(self, tier: Tier, image_size: int) -> float:
        """Return the seconds to train one image with the tier's reference network."""
        return self.speeds.of(tier.anchor).image_s.at(image_size)

    @property
    def final_share_s(self) -> float:
        """The seconds that the final may take."""
        short_s = policy.SHORT_IMAGES * self.image_s(TIERS[0], policy.SPEED_SIZE) / self.slots
        short_s = min(self.available_s, short_s)
        return policy.FINAL_SHARE * self.available_s + policy.SHORT_SHARE * short_s


@dataclass(frozen=True)
class Forecast:
    """Seconds until the search begins, of the search, and of the final; trials of the search."""

    start_s: float
    search_s: float
    final_s: float
    trials: int

    @property
    def total_s(self) -> float:
        """Seconds of the whole job."""
        return self.start_s + self.search_s + self.final_s

    @property
    def has_search(self) -> bool:
        """Whether there are enough trials to choose from."""
        return self.trials >= policy.MIN_TRIALS
