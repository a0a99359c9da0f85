"""Encoder weights are chosen once, when a study is created, and stay the same."""

import json
from io import StringIO

import pytest
from rich.console import Console

from lesionseg.config import TrialConfig
from lesionseg.space import ComponentConfig
from search.run_study import _print_study
from search.spec.loading import load_spec
from search.storage import trial_records
from search.storage.trial_records import StudyAttr, TrialAttr
from search.study import encoder_weights
from search.study.creation import create_or_resume
from search.study.encoder_weights import choose_weights, describe_weights, replace_auto
from search.study.location import StudyLocation
from search.study.opening import open_study
from search.study.queue import first_trials, read_entries
from search.study.suggest import ensure_space_weights, suggest
from search.trial_process.slot import Slot
from search.workers.loop import WorkerOptions, run_worker
from search.workers.pool import WorkerPool
from tests.search.helpers import (
    in_memory,
    open_tiny,
    refusal,
    search,
    tiny_plain,
    tiny_spec,
    write_study,
)

LITE, RESNET = "tu-tf_efficientnet_lite0", "resnet18"
MODEL = {"smp_linknet": {"encoder": [RESNET, LITE], "encoder_depth": 3}}
CHANGES = {"data.image_size": 32, "search.model": MODEL, "budget.epochs": 1}


@pytest.fixture
def hub(monkeypatch):
    """A hub with ImageNet weights of some encoders; records what was asked."""

    class Hub:
        encoders, asked = set(), []

    def resolve(encoder, weights="auto", *, fetch=False):
        assert fetch
        Hub.asked.append(encoder)
        if encoder in Hub.encoders:
            return "imagenet"
        return "bundled" if encoder == LITE else "none"

    Hub.asked.clear()
    monkeypatch.setattr(encoder_weights, "resolve_weights", resolve)
    return Hub


def drawn(spec, n=20):
    study = in_memory()
    configs = [suggest(study.ask(), spec.space) for _ in range(n)]
    return {(c.model.params["encoder"], c.model.params["weights"]) for c in configs}


def test_weights_are_chosen_when_a_study_is_created(tiny_data, tmp_path, hub):
    opened = open_tiny(tiny_data, tmp_path / "s", CHANGES)
    chosen = {RESNET: "none", LITE: "bundled"}
    assert opened.spec.encoder_weights == chosen
    assert opened.study.user_attrs[StudyAttr.SPEC]["encoder_weights"] == chosen
    assert load_spec(str(tmp_path / "s/study.yaml")) == opened.spec
    assert drawn(opened.spec) == set(chosen.items())
    # The files that exist later, or elsewhere, change nothing.
    hub.asked.clear()
    hub.encoders = {RESNET, LITE}
    again = open_tiny(tiny_data, tmp_path / "s", CHANGES)
    assert again.spec == open_study(tmp_path / "s").spec == opened.spec
    assert load_spec(str(tmp_path / "s/study.yaml")) == opened.spec
    assert not hub.asked


@pytest.mark.slow
def test_trials_are_trained_with_the_weights_of_the_study(tiny_data, tmp_path):
    changes = {**CHANGES, "budget": {"trials": 1, "epochs": 1}}
    changes["search.model"] = {"smp_linknet": {"encoder": LITE, "encoder_depth": 3}}
    opened = open_tiny(tiny_data, tmp_path / "s", changes)
    search(opened)
    (trial,) = trial_records.all_trials(opened.study)
    assert trial_records.state_of(trial) == "complete"
    params = trial_records.config_of(trial)["model"]["smp_linknet"]
    assert params["weights"] == opened.spec.encoder_weights[LITE] == "bundled"


def test_weights_that_a_study_names(hub):
    spec = tiny_spec({**CHANGES, "encoder_weights": {LITE: "none"}})
    assert choose_weights(spec).encoder_weights == {LITE: "none", RESNET: "none"}
    assert hub.asked == [RESNET]
    for weights in ("none", "imagenet", "/files/weights.pth"):
        explicit = tiny_spec(
            {**CHANGES, "search.model": {"smp_unet": {"encoder": LITE, "weights": weights}}}
        )
        assert choose_weights(explicit).encoder_weights == {}
        assert drawn(explicit, 2) == {(LITE, weights)}
    message = refusal(tiny_spec, {**CHANGES, "encoder_weights": {LITE: "imagnet"}})
    assert message.startswith(f"tiny: encoder_weights.{LITE}: ") and "imagnet" in message


def test_other_weights_are_another_study(tiny_data, tmp_path, hub):
    open_tiny(tiny_data, tmp_path / "s", CHANGES)
    same = {**CHANGES, "encoder_weights": {RESNET: "none", LITE: "bundled"}}
    open_tiny(tiny_data, tmp_path / "s", same)
    other = {**CHANGES, "encoder_weights": {RESNET: "none", LITE: "none"}}
    assert f"another spec: encoder_weights.{LITE} differ" in refusal(
        open_tiny, tiny_data, tmp_path / "s", other
    )


def test_a_study_of_an_earlier_version_has_random_weights(tiny_data, tmp_path, hub):
    opened = open_tiny(tiny_data, tmp_path / "s", CHANGES)
    stored = dict(opened.study.user_attrs[StudyAttr.SPEC])
    del stored["encoder_weights"]
    opened.study.set_user_attr(StudyAttr.SPEC, stored)
    hub.encoders = {LITE}
    again = open_tiny(tiny_data, tmp_path / "s", CHANGES)
    assert again.spec.encoder_weights is None
    assert drawn(again.spec) == {(LITE, "none"), (RESNET, "none")}
    assert describe_weights(again.spec.encoder_weights) == ""


def test_a_worker_needs_the_files_of_the_study(tiny_data, tmp_path, hub, monkeypatch):
    hub.encoders = {RESNET}
    changes = {**CHANGES, "search.model": {"smp_linknet": {"encoder": RESNET, "encoder_depth": 3}}}
    spec = tiny_spec(changes)
    ensure_space_weights(spec.space)  # ``auto`` alone is no reason to refuse a study
    opened = create_or_resume(spec, tiny_data, tmp_path / "s")
    assert opened.spec.encoder_weights == {RESNET: "imagenet"}
    for call in (
        lambda: create_or_resume(spec, tiny_data, tmp_path / "s"),
        lambda: run_worker(StudyLocation("s", tmp_path / "s"), Slot("cpu", 1)),
    ):
        assert f"'imagenet' of encoder '{RESNET}' is not in" in refusal(call)


def test_a_worker_with_the_study_file_joins(tiny_data, tmp_path, hub):
    opened = open_tiny(tiny_data, tmp_path / "s", CHANGES)
    file, location = (
        write_study(tmp_path / "tiny.yaml", CHANGES),
        StudyLocation("s", tmp_path / "s"),
    )
    options = WorkerOptions(max_trials=0)
    run_worker(location, Slot("cpu", 1), study=str(file), options=options)
    other = write_study(tmp_path / "other.yaml", {**CHANGES, "encoder_weights": {LITE: "none"}})
    message = refusal(run_worker, location, Slot("cpu", 1), study=str(other), options=options)
    assert "encoder_weights" in message
    assert not trial_records.all_trials(opened.study)


# --- queued configurations -----------------------------------------------------------------------


def queued(spec, tmp_path, content):
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps(content))
    return read_entries(path, spec)[0]


def test_queued_configurations_have_weights(tmp_path, hub):
    spec = choose_weights(tiny_spec(CHANGES))
    model = {"smp_linknet": {"encoder": LITE, "encoder_depth": 3}}
    config = TrialConfig.from_dict(
        {**TrialConfig().to_dict(), **spec.run_settings, "model": model}
    ).to_dict()
    _, attrs = queued(spec, tmp_path, {"config": config})
    assert attrs[TrialAttr.FIXED_CONFIG]["model"]["smp_linknet"]["weights"] == "bundled"
    # One that the study does not know: as it is found now.
    hub.encoders = {"resnet34"}
    model["smp_linknet"]["encoder"] = "resnet34"
    _, attrs = queued(spec, tmp_path, {"config": config | {"model": model}})
    assert attrs[TrialAttr.FIXED_CONFIG]["model"]["smp_linknet"]["weights"] == "imagenet"
    # A study of an earlier version.
    _, attrs = queued(tiny_spec(CHANGES), tmp_path, {"config": config | {"model": model}})
    assert attrs[TrialAttr.FIXED_CONFIG]["model"]["smp_linknet"]["weights"] == "none"


def test_the_configuration_of_a_trial_is_a_point_of_the_space(tmp_path, hub):
    """A trial's configuration has the weights themselves, and the space ``auto``."""
    spec = choose_weights(tiny_spec(CHANGES))
    study = in_memory()
    trial = study.ask()
    config = suggest(trial, spec.space)
    assert queued(spec, tmp_path, {"config": config.to_dict()}) == (trial.params, {})
    model = {**config.model.params, "weights": "imagenet"}
    other = config.to_dict() | {"model": {"smp_linknet": model}}
    params, attrs = queued(spec, tmp_path, {"config": other})
    assert not params and attrs[TrialAttr.FIXED_CONFIG] == other


def test_no_baseline_has_pretrained_weights_by_default(hub):
    """The published systems start from random weights where their sources do."""
    spec = choose_weights(tiny_spec({"warm_start": ["baselines"], "data.image_size": 64}))
    assert spec.encoder_weights == {} and not hub.asked
    for _, attrs in first_trials(spec):
        ((_, params),) = attrs[TrialAttr.FIXED_CONFIG]["model"].items()
        assert params.get("weights", "none") == "none"


def test_auto_is_replaced_in_a_configuration(hub):
    config = TrialConfig(model=ComponentConfig("smp_unet", {"encoder": LITE, "weights": "auto"}))
    for weights, expected in (
        ({LITE: "imagenet"}, "imagenet"),
        ({RESNET: "imagenet"}, "bundled"),
        (None, "none"),
    ):
        assert replace_auto(config, weights).model.params == {"encoder": LITE, "weights": expected}
    assert replace_auto(TrialConfig(), {}) == TrialConfig()


# --- the line ------------------------------------------------------------------------------------


def test_description():
    assert describe_weights({}) == ""
    assert describe_weights({LITE: "bundled", RESNET: "none"}) == (
        f"encoder weights: none: {RESNET}; ImageNet (bundled): {LITE}"
    )
    line = describe_weights({RESNET: "none"})
    assert line.startswith(f"encoder weights: none: {RESNET}. ")
    assert "hf download smp-hub/resnet18.imagenet model.safetensors --revision " in line
    assert "HF_HOME" in line and LITE in line and "`weights: none`" in line
    assert "\n" not in line


def test_a_run_prints_the_weights(tiny_data, tmp_path, hub):
    opened = open_tiny(tiny_data, tmp_path / "s", CHANGES)
    console = Console(file=StringIO(), width=200)
    _print_study(console, opened, WorkerPool(slots=(Slot("cpu", 1),), alone=True))
    lines = console.file.getvalue().splitlines()
    assert describe_weights(opened.spec.encoder_weights) in lines


def test_plain_specs_are_the_same_after_the_choice(hub):
    """Only the weights are new."""
    before = tiny_spec(CHANGES).model_dump(mode="json")
    after = choose_weights(tiny_spec(CHANGES)).model_dump(mode="json")
    assert after == before | {"encoder_weights": {RESNET: "none", LITE: "bundled"}}
    assert "encoder_weights" not in tiny_plain(CHANGES)
