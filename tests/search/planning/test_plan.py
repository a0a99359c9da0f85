"""Plans of many data sets, machines and times."""

import itertools
import re
from dataclasses import replace

import pytest

from search.planning import policy
from search.planning.final_choice import scale_epochs
from search.planning.policy import LEVELS, LITE0, QUALITIES
from search.planning.speeds import MachineSpeeds
from search.spec.loading import parse_spec
from tests.search.helpers import refusal
from tests.search.planning.machines import CPU, GPU, ISIC, OFFLINE, ONLINE, images, plan, speed

MACHINES = {
    "cpu": {"speeds": CPU},
    "gpu": {"speeds": GPU, "weights": ONLINE},
    "8 gpus": {"speeds": GPU, "slots": 8, "weights": ONLINE},
}
HOURS = (0.06, 0.08, 0.1, 0.13, 0.17, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1, 1.5, 2, 3, 5, 8, 12, 24, 48)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("quality", QUALITIES)
def test_more_time_never_gives_a_smaller_final(machine, quality):
    plans = [plan(hours, quality, **MACHINES[machine]) for hours in HOURS]
    finals = [each.spec.final for each in plans]
    for small, large in itertools.pairwise(finals):
        assert large.image_size >= small.image_size
        assert large.image_size * large.epochs >= small.image_size * small.epochs
    for hours, each in zip(HOURS, plans, strict=True):
        assert each.forecast.total_s <= 3600 * hours
        assert each.spec.budget.total_hours == hours
        assert parse_spec(each.spec.model_dump(mode="json"), "again") == each.spec


@pytest.mark.parametrize("machine", ["cpu", "8 gpus"])
def test_most_of_the_time_is_planned(machine):
    for hours in HOURS[:-1]:  # after a day, the number of trials is the limit
        each = plan(hours, **MACHINES[machine])
        assert each.forecast.total_s >= 0.7 * 3600 * hours


@pytest.mark.parametrize(
    ("hours", "machine", "quality", "search", "final"),
    [
        # 0.25 h: 832 s without start and margin. The final may take 3/4, 620 s, of which about 75
        # are for selection and test: 17,000 images of 128 px, 9 epochs of the 1,749 images of train
        # and val with their validation. Larger images would be seen less.
        (0.25, "cpu", "balanced", (64, 1), (128, 9, 1)),
        (0.25, "cpu", "best", (64, 1), (128, 9, 1)),
        # 0.1 h: 314 s. The final has 235 s, 81 of them for selection and test: 4 epochs at 96 px,
        # 31 s each.
        (0.1, "cpu", "balanced", (64, 1), (96, 4, 1)),
        # With more time there are several trainings, unless one network is wanted.
        (4, "cpu", "balanced", (160, 4), (224, 15, 3)),
        (4, "cpu", "fast", (192, 8), (256, 30, 1)),
        # A GPU day: the largest images and most epochs.
        (24, "8 gpus", "best", (384, 60), (384, 60, 10)),
    ],
)
def test_plans_that_were_checked_by_hand(hours, machine, quality, search, final):
    spec = plan(hours, quality, **MACHINES[machine]).spec
    assert (spec.data.image_size, spec.budget.epochs) == search
    trainings = spec.final.finalists * spec.final.seeds
    assert (spec.final.image_size, spec.final.epochs, trainings) == final


def test_a_short_time_has_no_search_and_everything_is_for_the_final():
    short = plan(0.06)
    assert (short.spec.budget.trials, short.spec.budget.epochs) == (1, 1)
    assert not short.forecast.has_search
    assert "too short for a search" in short.reasons["budget.trials"]
    assert plan(0.25).spec.budget.trials >= policy.MIN_TRIALS


def test_too_short_a_time_names_the_least_and_the_least_suffices():
    message = refusal(plan, 0.01)
    least = float(re.search(r"at least ([\d.]+)$", message).group(1))
    assert message.startswith("--hours: 0.01 is too short for one training on these images")
    assert 0.02 < least < 0.06
    plan(least)
    refusal(plan, least - 0.002)


def test_an_unknown_quality_is_one_line():
    message = refusal(plan, 1, "bset")
    assert message == "--quality: must be one of fast, balanced, best (did you mean 'best'?)"


def test_a_slot_is_worth_as_much_time():
    """Twice the slots run twice the trials; a single training of the final is as long."""
    one, two = plan(0.5, "fast", speeds=GPU), plan(0.5, "fast", speeds=GPU, slots=2)
    assert two.spec.final.image_size == one.spec.final.image_size
    # A short time is shorter with two slots, and the final's share of it smaller.
    assert 0 <= one.spec.final.epochs - two.spec.final.epochs <= 1
    assert two.forecast.trials > 1.5 * one.forecast.trials


def test_slots_that_a_single_training_leaves_free():
    """A GPU trains another network on them; on a CPU the training has their threads."""
    gpu = plan(0.05, speeds=GPU, slots=2).spec.final
    one, two = (plan(0.25, slots=slots).spec.final for slots in (1, 2))
    assert gpu.finalists * gpu.seeds == 2
    assert one.finalists * one.seeds == two.finalists * two.seeds == 1
    assert two.image_size * two.epochs > one.image_size * one.epochs


def test_larger_networks_need_time_weights_and_memory():
    def encoders(**options):
        return set(plan(speeds=GPU, **options).spec.space.auto_encoders())

    assert encoders(hours=0.1, weights=ONLINE) <= set(policy.TIERS[0].encoders)
    assert "tu-convnext_tiny" in encoders(hours=24, weights=ONLINE)
    assert encoders(hours=24, weights=OFFLINE) == {LITE0}
    small = replace(GPU, memory_bytes=1e9)
    assert plan(24, speeds=small, weights=ONLINE).spec.final.image_size < 384


def test_images_are_not_enlarged():
    side = replace(ISIC, side=250)
    assert plan(24, data=side).spec.final.image_size == 224
    assert plan(0.5, data=replace(ISIC, side=64)).spec.final.image_size == 64


@pytest.mark.parametrize(
    ("epochs", "count", "expected"),
    [
        (8, 1440, (8, None)),
        (8, 1750, (8, None)),
        (8, 125, (32, None)),  # as many steps as with 500 images
        (8, 3500, (4, None)),  # 14,000 images
        (8, 20_000, (2, 7000)),  # not even two epochs of all
    ],
)
def test_epochs_depend_on_the_number_of_images(epochs, count, expected):
    assert scale_epochs(epochs, count) == expected


def test_few_and_many_images_are_planned_for():
    few = plan(0.5, data=images(12)).spec
    assert few.fixed["batch_size"] == 2
    assert few.final.epochs > 100
    many = plan(0.5, data=images(60_000)).spec
    assert many.final.epochs == policy.MIN_FINAL_EPOCHS
    assert many.data.limit.train < 14_000


def test_levels_never_shrink():
    for below, above in itertools.pairwise(LEVELS):
        assert above.image_size * above.epochs >= below.image_size * below.epochs
        assert above.image_size >= below.image_size
        assert above.trainings >= below.trainings


def test_a_slower_machine_gets_a_smaller_final():
    slow = MachineSpeeds({"fpn-lite0": speed(10, 15_000)})
    assert plan(0.5, speeds=slow).spec.final.image_size < plan(0.5).spec.final.image_size


def test_a_single_training_has_the_validation_images():
    """Several trainings are compared on them; of many images a part is enough."""
    single, several = plan(0.5), plan(4)
    assert (single.spec.final.fit_on, several.spec.final.fit_on) == ("train_val", "train")
    assert f"epochs of {1440 + 309} images" in single.reasons["final.epochs"]
    assert f"epochs of {1440} images" in several.reasons["final.epochs"]
    many = plan(0.5, data=images(60_000)).spec
    assert (many.final.finalists, many.final.fit_on) == (1, "train")
    assert plan(0.06).spec.final.fit_on == "train_val"
