"""Trials put into the queue by hand: again, and as people write them."""

import copy

import optuna
import pytest
import sqlalchemy
import yaml
from optuna.trial import TrialState

from lesionseg.config import TrialConfig
from lesionseg.errors import InputError
from search.spec import baselines
from search.storage import trial_records
from search.storage.database import open_storage, sqlite_url
from search.storage.leases import TrialLeases
from search.storage.process_id import current_process
from search.study.queue import enqueue, retry, room
from search.study.suggest import suggest
from search.trial_process.slot import Slot
from search.workers.worker import load_claimed_trial
from tests.postgres import CommitProxy, private_postgres
from tests.search.helpers import tiny_spec

__all__ = ["private_postgres"]  # a fixture

#: A space with several options, ranges, choices, single values and an open setting.
OPEN = {
    "data.image_size": 64,
    "search": {
        "model": {"unet": {"width": [8, 64], "depth": 3}, "segnet": {"width": 8}},
        "loss": ["bce", "bce_dice", "focal"],
        "augment": "none",
        "optimizer": {"adam": {"lr": [1e-4, 1e-2]}},
        "schedule": "constant",
        "batch_size": [8, 32],
        "clip_norm": {"choices": [0, 1]},
    },
    "fixed": {},
    "budget": {"trials": 6, "epochs": 2},
}


class Studio:
    """A study in a database, and a worker that trains nothing."""

    def __init__(self, folder, changes=OPEN):
        self.spec = tiny_spec(copy.deepcopy(changes))
        self.study = optuna.create_study(
            study_name="tiny", storage=open_storage(sqlite_url(folder)), direction="maximize"
        )
        self.leases = TrialLeases(self.study)
        self.leases.initialize_study({"spec": self.spec.model_dump(mode="json")}, [])
        self.worker = self.leases.register_worker(Slot(), current_process())
        self.folder = folder

    def begin(self):
        """Claims a trial and configures it as a worker does: (claim, configuration, its twin)."""
        claim = self.leases.claim(self.worker, bounded=False)
        trial = load_claimed_trial(self.study, claim)
        given = trial.user_attrs.get(trial_records.TrialAttr.FIXED_CONFIG)
        config = TrialConfig.from_dict(given) if given else suggest(trial, self.spec.space)
        again = trial_records.TrialAttr.ALLOW_DUPLICATE in trial.user_attrs
        attrs = {"config": config.to_dict(), "digest": config.digest()}
        twin = self.leases.record_config(claim, attrs, None if again else config.digest())
        return claim, config, twin

    def run(self, state=TrialState.COMPLETE, **attrs):
        claim, config, _ = self.begin()
        value = 0.5 if state == TrialState.COMPLETE else None
        self.leases.finish(claim, state, value, attrs)
        return config

    def enqueue(self, text):
        path = self.folder / "mine.yaml"
        path.write_text(text if isinstance(text, str) else yaml.safe_dump(text, sort_keys=False))
        return enqueue(self.study, self.spec, path)

    def refused(self, text):
        """What is told of a file that must be refused; nothing may have been queued."""
        before = len(self.study.trials)
        with pytest.raises(InputError) as caught:
            self.enqueue(text)
        assert len(self.study.trials) == before
        told = str(caught.value)
        assert "\n" not in told
        return told.removeprefix(f"{self.folder / 'mine.yaml'}: ")

    def fixed(self, number=-1):
        return self.study.trials[number].system_attrs["fixed_params"]


@pytest.fixture
def studio(tmp_path):
    return Studio(tmp_path)


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    """One that nothing is ever queued in."""
    return Studio(tmp_path_factory.mktemp("untouched"))


# --- again ---------------------------------------------------------------------------------------


def test_trials_of_every_end_are_queued_again_with_what_they_had(studio):
    configs = [
        studio.run(TrialState.FAIL, reason="oom"),
        studio.run(TrialState.PRUNED),
        studio.run(TrialState.COMPLETE),
        studio.run(TrialState.FAIL, reason=trial_records.EndReason.DUPLICATE),
    ]
    assert retry(studio.study, [3, 0, 1, 2]) == [4, 5, 6, 7]
    for i, number in enumerate([3, 0, 1, 2], 4):
        queued = studio.study.trials[i]
        assert queued.state == TrialState.WAITING
        assert queued.user_attrs == {
            trial_records.TrialAttr.ALLOW_DUPLICATE: True,
            trial_records.TrialAttr.REPEAT_OF: number,
        }
        claim, config, twin = studio.begin()
        assert (claim.number, config, twin) == (i, configs[number], None)
        studio.leases.finish(claim, TrialState.PRUNED)


def test_without_being_asked_the_same_configuration_is_a_twin(studio):
    studio.run()
    studio.leases.enqueue([(studio.study.trials[0].params, {})])
    assert studio.begin()[2] == 0


def test_a_given_configuration_is_queued_again_as_it_is(studio):
    studio.enqueue({"baseline": "segnet-bce"})
    config = studio.run(TrialState.FAIL, reason="crash")
    retry(studio.study, [0])
    queued = studio.study.trials[1]
    assert queued.user_attrs[trial_records.TrialAttr.BASELINE] == "segnet-bce"
    assert queued.user_attrs[trial_records.TrialAttr.FIXED_CONFIG] == config.to_dict()
    assert studio.begin()[1:] == (config, None)


def test_what_was_queued_and_not_drawn_yet_is_kept(studio):
    studio.enqueue({"batch_size": 16, "loss": "focal"})
    claim = studio.leases.claim(studio.worker)
    load_claimed_trial(studio.study, claim).suggest_categorical(
        "loss", tuple(studio.spec.space.families["loss"])
    )
    studio.leases.finish(claim, TrialState.FAIL, attrs={"reason": "crash"})
    retry(studio.study, [0])
    assert studio.fixed() == {"batch_size": 16, "loss": "focal"}


def test_a_number_that_is_named_twice_is_queued_once(studio):
    studio.run()
    assert retry(studio.study, [0, 0]) == [1]
    assert retry(studio.study, []) == []


def test_all_that_cannot_be_queued_again_is_told_and_nothing_is_queued(studio):
    studio.run()
    studio.enqueue({"loss": "bce"})
    studio.enqueue({"loss": "focal"})
    studio.begin()
    with pytest.raises(InputError) as caught:
        retry(studio.study, [0, 1, 2, 3, -1])
    assert str(caught.value) == (
        "study 'tiny': (1) trial 1 is running: only one that has ended can be queued again; "
        "(2) trial 2 is waiting: only one that has ended can be queued again; "
        "(3) no trial 3: there are 0 to 2; (4) no trial -1: there are 0 to 2"
    )
    assert len(studio.study.trials) == 3


def test_a_study_without_trials_says_so(studio):
    with pytest.raises(InputError, match=r"^study 'tiny': no trial 0: there is none yet$"):
        retry(studio.study, [0])


def test_one_that_ended_before_it_had_anything_cannot_be_repeated(studio):
    claim = studio.leases.claim(studio.worker)
    studio.leases.finish(claim, TrialState.FAIL, attrs={"reason": "crash"})
    with pytest.raises(InputError, match="trial 0 ended before it had a configuration"):
        retry(studio.study, [0])


def test_a_space_of_one_configuration_can_be_tried_again(tmp_path):
    one = {"model": {"unet": {"width": 4, "depth": 1}}, "optimizer": {"adam": {"lr": 0.01}}}
    one |= {"loss": {"bce_dice": {"weight": 0.5}}, "augment": "none", "schedule": "constant"}
    studio = Studio(tmp_path, {"search": one})
    assert studio.spec.space.size() == 1
    config = studio.run()
    retry(studio.study, [0])
    assert studio.begin()[1:] == (config, None)


def test_room_is_what_the_budget_leaves_after_the_queue(studio):
    assert room(studio.study) == 6
    studio.run()
    studio.run(TrialState.FAIL, reason=trial_records.EndReason.DUPLICATE)  # costs nothing
    assert room(studio.study) == 5
    studio.begin()
    assert room(studio.study) == 4
    studio.enqueue([{"loss": "bce"}] * 5)
    assert room(studio.study) == -1


# --- as they are written -------------------------------------------------------------------------


def test_a_part_of_a_configuration_is_fixed_and_the_rest_drawn(studio):
    text = """
    model: {unet: {width: 32, depth: 3}}
    loss: bce_dice
    optimizer: {adam: {lr: 1e-3}}
    batch_size: 8
    """
    assert studio.enqueue(text) == [0]
    assert studio.fixed() == {
        "model": "unet",
        "model.unet.width": 32,
        "loss": "bce_dice",
        "optimizer.adam.lr": 0.001,
        "batch_size": 8,
    }
    _, config, _ = studio.begin()
    assert config.model.name == "unet" and config.model.params["width"] == 32
    assert config.loss.name == "bce_dice" and config.batch_size == 8
    assert config.optimizer.params["lr"] == 0.001
    trial = studio.study.trials[0]
    assert set(trial.params) == {*studio.fixed(0), "loss.bce_dice.weight", "clip_norm"}


def test_a_list_is_queued_in_its_order(studio):
    assert studio.enqueue([{"loss": "bce"}, {"loss": {"focal": None}}, {"batch_size": 9}]) == [
        0,
        1,
        2,
    ]
    assert [studio.fixed(i) for i in range(3)] == [
        {"loss": "bce"},
        {"loss": "focal"},
        {"batch_size": 9},
    ]
    assert [t.user_attrs for t in studio.study.trials] == [{}, {}, {}]


def test_what_a_study_settles_may_be_said_too(studio):
    studio.enqueue({"model": {"unet": {"depth": "3"}}, "augment": "none", "ema": 0})
    assert studio.fixed() == {"model": "unet"}


def test_a_baseline_within_the_space_is_queued_by_its_parameters(tmp_path):
    studio = Studio(tmp_path, OPEN | {"search.augment": ["none", "full"]} | {
        "search.model": {"unet": {"width": [8, 64], "depth": [3, 5]}}})  # fmt: skip
    studio.enqueue({"baseline": "c-bigger-unet"})
    trial = studio.study.trials[0]
    assert trial.user_attrs == {trial_records.TrialAttr.BASELINE: "c-bigger-unet"}
    assert trial.system_attrs["fixed_params"]["model.unet.width"] == 64
    config = baselines.build_config("c-bigger-unet", 64, 2)
    assert studio.begin()[1].digest() == config.digest()


def test_a_baseline_outside_the_space_is_queued_as_it_is(studio):
    studio.enqueue([{"baseline": "unet-focal"}])
    trial = studio.study.trials[0]
    assert trial.system_attrs["fixed_params"] == {}
    given = baselines.build_config("unet-focal", 64, 2).to_dict()
    assert trial.user_attrs == {
        trial_records.TrialAttr.BASELINE: "unet-focal",
        trial_records.TrialAttr.FIXED_CONFIG: given,
    }


def test_a_trials_own_configuration_is_queued_by_its_parameters(studio):
    config = studio.run()
    params = studio.study.trials[0].params
    studio.enqueue({"config": config.to_dict()})
    assert studio.fixed() == params
    assert studio.study.trials[1].user_attrs == {}


def test_a_configuration_outside_the_space_is_queued_as_it_is(studio):
    plain = studio.run().to_dict() | {"loss": {"tversky": {}}, "seed": 7}
    for key in ("image_size", "epochs", "patience"):
        del plain[key]  # the study's own are meant
    studio.enqueue({"config": plain})
    given = studio.study.trials[1].user_attrs[trial_records.TrialAttr.FIXED_CONFIG]
    assert given["seed"] == 7 and given["image_size"] == 64 and given["epochs"] == 2
    assert given["loss"]["tversky"]["alpha"] > 0  # every parameter is spelt out
    assert studio.begin()[1].to_dict() == given


REFUSED = {
    "": "holds no configuration",
    "[]": "holds no configuration",
    "loss: [": "not YAML: line 1, column 8: ",
    "{loss: bce, loss: focal}": "not YAML: line 1, column 13: key 'loss' stands twice",
    "- loss": "must be keys and values such as {loss: dice}, got 'loss'",
    "{}": "must be keys and values such as {loss: dice}, got {}",
    "los: bce": "los: unknown key (did you mean 'loss'?)",
    "3: bce": "3: unknown key (known: ",
    "loss: foccal": "loss: 'foccal' is not in this study (did you mean 'focal'?)",
    "loss: dice": "loss: 'dice' is not in this study (did you mean 'bce_dice'?)",
    "loss: 3": "loss: must be one option or {option: parameters}, got 3",
    "loss: {bce: {}, focal: {}}": "loss: must be one option or {option: parameters}, got {'bce'",
    "loss: {focal: 3}": "loss.focal: must be {parameter: value}, got 3",
    "loss: {focal: {gama: 1}}": "loss.focal: unknown parameter 'gama' (did you mean 'gamma'?)",
    "augment: {none: {p: 1}}": "augment.none: unknown parameter 'p' (it has none)",
    "optimizer: {adam: {lr: 1}}": "optimizer.adam.lr: must lie in [0.0001, 0.01], got 1",
    "model: {unet: {width: 128}}": "model.unet.width: must lie in [8, 64], got 128",
    "model: {unet: {depth: 4}}": "model.unet.depth: stands at 3 in this study, got 4",
    "batch_size: many": "batch_size: must be a number, got 'many'",
    "ema: 0.9": "ema: stands at 0 in this study, got 0.9",
    "epochs: 5": "epochs: stands at 2 in this study, got 5",
    "baseline: unet-dise": "baseline: unknown baseline 'unet-dise' (did you mean 'unet-dice'?)",
    "{baseline: unet-dice, loss: bce}": "baseline: takes no other key beside it, got baseline, loss",
    "{baseline: unet-dice, config: {}}": "baseline: takes no other key beside it, got baseline, config",
    "config: unet": "config: must be keys and values, got 'unet'",
    "config: {los: bce}": "config: unknown key 'los' (did you mean 'loss'?)",
    "config: {loss: bce}": "config: lacks model, augment, mix, optimizer, schedule, batch_size, ",
    "config: {loss: {bce: 1}}": "config: a component must be a name or {name: parameters}, got ",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_wrong_is_named(untouched, text):
    assert untouched.refused(text).startswith(REFUSED[text])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"image_size": 128}, "config: image_size: the study's images have 64, got 128"),
        ({"epochs": 3}, "config: epochs: at most the study's 2, got 3"),
        ({"batch_size": 0}, "config: batch_size must lie in [1, 4096], got 0"),
        ({"loss": {"dise": {}}}, "config: loss.dise: unknown loss 'dise' (did you mean 'dice'?)"),
        ({"loss": {"focal": {"gamma": -1}}}, "config: loss.focal: gamma must lie in "),
    ],
)
def test_a_complete_configuration_is_checked_as_a_whole(untouched, changes, told):
    plain = baselines.build_config("unet-dice", 64, 2).to_dict()
    assert untouched.refused({"config": plain | changes}).startswith(told)


def test_a_model_that_cannot_take_the_studys_images_is_refused(tmp_path):
    studio = Studio(tmp_path, {"data.image_size": 16})
    told = studio.refused({"baseline": "segnet-bce"})
    assert told.startswith("data.image_size: segnet takes multiples of 32 from 32 on, got 16")


def test_all_errors_of_a_file_come_in_one_line_and_nothing_is_queued(untouched):
    file = [
        {"loss": "bce"},
        {"loss": "foccal", "batch_size": 1},
        {"baseline": "none"},
    ]
    told = untouched.refused(file)
    assert told.startswith(
        "(1) entry 2: loss: 'foccal' is not in this study (did you mean 'focal'?); "
        "(2) entry 2: batch_size: must lie in [8, 32], got 1; "
        "(3) entry 3: baseline: unknown baseline 'none' ("
    )


def test_a_file_that_cannot_be_read_is_told(studio, tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.yaml: cannot be read: No such file"):
        enqueue(studio.study, studio.spec, tmp_path / "nowhere.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"binary\.yaml: cannot be read: not UTF-8 text"):
        enqueue(studio.study, studio.spec, tmp_path / "binary.yaml")


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_queue_whose_answer_is_lost_is_put_up_once(private_postgres, when):
    name = f"queueing_{when}"
    private_postgres.create(name)
    wire = CommitProxy(private_postgres.port)
    try:
        url = sqlalchemy.make_url(private_postgres.url(name, wire.port))
        study = optuna.create_study(storage=open_storage(url), direction="maximize")
        leases = TrialLeases(study)
        wire.cut(when)
        assert leases.enqueue([({"x": 1}, {}), ({"x": 2}, {"baseline": "p"})]) == [0, 1]
        assert wire.cuts == 1
        assert [t.system_attrs["fixed_params"] for t in study.trials] == [{"x": 1}, {"x": 2}]
    finally:
        wire.close()
