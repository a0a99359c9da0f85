"""The search space of a plan."""

import pytest

from search.planning.policy import LITE0, TIERS
from search.planning.space import STAGES, search_section, usable_encoders
from search.spec.search_space import parse_space
from tests.search.planning.machines import OFFLINE, ONLINE

SETTINGS = {"image_size": 128, "epochs": 4, "patience": 0, "seed": 0}


@pytest.mark.parametrize("tier", TIERS, ids=lambda tier: tier.anchor)
@pytest.mark.parametrize("weights", [OFFLINE, ONLINE], ids=["offline", "online"])
def test_spaces_are_valid_and_grow_with_the_trials(tier, weights):
    sizes = []
    for trials in (3, 10, 30, 100):
        space, errors = parse_space(search_section(tier, trials, weights), {}, SETTINGS)
        assert errors == []
        sizes.append(sum(len(params) for family in space.families.values() for params in family))
        model = space.default_config().model
        assert model.name == "smp_fpn"
        assert model.params["encoder"] == usable_encoders(tier, weights)[0]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


def test_few_trials_search_a_single_pretrained_network():
    models = search_section(TIERS[0], 5, OFFLINE)["model"]
    assert models == {
        "smp_fpn": {"encoder": LITE0, "encoder_lr_factor": [0.1, 1.0], "decoder_width": 0.5}
    }


def test_encoders_without_weights_are_left_out():
    some = {"resnet34": "imagenet", "mit_b1": "none"}
    assert usable_encoders(TIERS[1], some) == ["resnet34"]
    assert usable_encoders(TIERS[1], {}) == [LITE0]


def test_networks_without_an_encoder_are_for_the_largest_searches():
    assert "unet" in search_section(TIERS[-1], 200, ONLINE)["model"]
    assert "unet" not in search_section(TIERS[-1], 30, ONLINE)["model"]


def test_stages_begin_with_no_trial_and_grow():
    trials = [stage.trials for stage in STAGES]
    assert trials[0] == 0
    assert trials == sorted(set(trials))
