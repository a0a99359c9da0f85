"""Trials that users queue: finished trials, and configurations from a file."""

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
from search.storage.lease_types import current_process
from search.storage.leases import TrialLeases
from search.study.queue import count_free_trials, enqueue_file, retry_trials
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


class QueueStudy:
    """A study with a worker that trains nothing."""

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
        """Claim and configure a trial; return the claim, the configuration and its duplicate."""
        claim = self.leases.claim(self.worker, bounded=False)
        trial = load_claimed_trial(self.study, claim)
        fixed_config = trial.user_attrs.get(trial_records.TrialAttr.FIXED_CONFIG)
        config = (
            TrialConfig.from_dict(fixed_config) if fixed_config else suggest(trial, self.spec.space)
        )
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
        return enqueue_file(self.study, self.spec, path)

    def refused(self, text):
        """Return the error of a file, which must not have queued anything."""
        before = len(self.study.trials)
        with pytest.raises(InputError) as caught:
            self.enqueue(text)
        assert len(self.study.trials) == before
        message = str(caught.value)
        assert "\n" not in message
        return message.removeprefix(f"{self.folder / 'mine.yaml'}: ")

    def fixed(self, number=-1):
        return self.study.trials[number].system_attrs["fixed_params"]


@pytest.fixture
def queue_study(tmp_path):
    return QueueStudy(tmp_path)


@pytest.fixture(scope="module")
def shared_study(tmp_path_factory):
    """A study that no test queues trials in."""
    return QueueStudy(tmp_path_factory.mktemp("shared_study"))


def test_retry_finished_trials(queue_study):
    configs = [
        queue_study.run(TrialState.FAIL, reason="oom"),
        queue_study.run(TrialState.PRUNED),
        queue_study.run(TrialState.COMPLETE),
        queue_study.run(TrialState.FAIL, reason=trial_records.EndReason.DUPLICATE),
    ]
    assert retry_trials(queue_study.study, [3, 0, 1, 2]) == [4, 5, 6, 7]
    for i, number in enumerate([3, 0, 1, 2], 4):
        queued = queue_study.study.trials[i]
        assert queued.state == TrialState.WAITING
        assert queued.user_attrs == {
            trial_records.TrialAttr.ALLOW_DUPLICATE: True,
            trial_records.TrialAttr.REPEAT_OF: number,
        }
        claim, config, twin = queue_study.begin()
        assert (claim.number, config, twin) == (i, configs[number], None)
        queue_study.leases.finish(claim, TrialState.PRUNED)


def test_an_equal_configuration_is_a_duplicate(queue_study):
    queue_study.run()
    queue_study.leases.enqueue([(queue_study.study.trials[0].params, {})])
    assert queue_study.begin()[2] == 0


def test_retry_a_fixed_configuration(queue_study):
    queue_study.enqueue({"baseline": "segnet-bce"})
    config = queue_study.run(TrialState.FAIL, reason="crash")
    retry_trials(queue_study.study, [0])
    queued = queue_study.study.trials[1]
    assert queued.user_attrs[trial_records.TrialAttr.BASELINE] == "segnet-bce"
    assert queued.user_attrs[trial_records.TrialAttr.FIXED_CONFIG] == config.to_dict()
    assert queue_study.begin()[1:] == (config, None)


def test_retry_keeps_queued_parameters(queue_study):
    queue_study.enqueue({"batch_size": 16, "loss": "focal"})
    claim = queue_study.leases.claim(queue_study.worker)
    load_claimed_trial(queue_study.study, claim).suggest_categorical(
        "loss", tuple(queue_study.spec.space.families["loss"])
    )
    queue_study.leases.finish(claim, TrialState.FAIL, attrs={"reason": "crash"})
    retry_trials(queue_study.study, [0])
    assert queue_study.fixed() == {"batch_size": 16, "loss": "focal"}


def test_retry_counts_repeated_numbers_once(queue_study):
    queue_study.run()
    assert retry_trials(queue_study.study, [0, 0]) == [1]
    assert retry_trials(queue_study.study, []) == []


def test_retry_reports_all_errors(queue_study):
    queue_study.run()
    queue_study.enqueue({"loss": "bce"})
    queue_study.enqueue({"loss": "focal"})
    queue_study.begin()
    with pytest.raises(InputError) as caught:
        retry_trials(queue_study.study, [0, 1, 2, 3, -1])
    assert str(caught.value) == (
        "study 'tiny': (1) trial 1 is running: only finished trials can be queued again; "
        "(2) trial 2 is waiting: only finished trials can be queued again; "
        "(3) no trial 3: the trials are 0 to 2; (4) no trial -1: the trials are 0 to 2"
    )
    assert len(queue_study.study.trials) == 3


def test_retry_without_trials(queue_study):
    with pytest.raises(InputError, match=r"^study 'tiny': no trial 0: the study has none$"):
        retry_trials(queue_study.study, [0])


def test_retry_without_a_configuration_is_an_error(queue_study):
    claim = queue_study.leases.claim(queue_study.worker)
    queue_study.leases.finish(claim, TrialState.FAIL, attrs={"reason": "crash"})
    with pytest.raises(InputError, match="trial 0 ended before it had a configuration"):
        retry_trials(queue_study.study, [0])


def test_retry_in_a_space_without_parameters(tmp_path):
    one = {"model": {"unet": {"width": 4, "depth": 1}}, "optimizer": {"adam": {"lr": 0.01}}}
    one |= {"loss": {"bce_dice": {"weight": 0.5}}, "augment": "none", "schedule": "constant"}
    queue_study = QueueStudy(tmp_path, {"search": one})
    assert queue_study.spec.space.size() == 1
    config = queue_study.run()
    retry_trials(queue_study.study, [0])
    assert queue_study.begin()[1:] == (config, None)


def test_count_free_trials(queue_study):
    assert count_free_trials(queue_study.study) == 6
    queue_study.run()
    queue_study.run(TrialState.FAIL, reason=trial_records.EndReason.DUPLICATE)
    assert count_free_trials(queue_study.study) == 5
    queue_study.begin()
    assert count_free_trials(queue_study.study) == 4
    queue_study.enqueue([{"loss": "bce"}] * 5)
    assert count_free_trials(queue_study.study) == -1


def test_parameters_left_out_are_sampled(queue_study):
    text = """
    model: {unet: {width: 32, depth: 3}}
    loss: bce_dice
    optimizer: {adam: {lr: 1e-3}}
    batch_size: 8
    """
    assert queue_study.enqueue(text) == [0]
    assert queue_study.fixed() == {
        "model": "unet",
        "model.unet.width": 32,
        "loss": "bce_dice",
        "optimizer.adam.lr": 0.001,
        "batch_size": 8,
    }
    _, config, _ = queue_study.begin()
    assert config.model.name == "unet" and config.model.params["width"] == 32
    assert config.loss.name == "bce_dice" and config.batch_size == 8
    assert config.optimizer.params["lr"] == 0.001
    trial = queue_study.study.trials[0]
    assert set(trial.params) == {*queue_study.fixed(0), "loss.bce_dice.weight", "clip_norm"}


def test_a_list_is_queued_in_order(queue_study):
    assert queue_study.enqueue([{"loss": "bce"}, {"loss": {"focal": None}}, {"batch_size": 9}]) == [
        0,
        1,
        2,
    ]
    assert [queue_study.fixed(i) for i in range(3)] == [
        {"loss": "bce"},
        {"loss": "focal"},
        {"batch_size": 9},
    ]
    assert [t.user_attrs for t in queue_study.study.trials] == [{}, {}, {}]


def test_fixed_values_may_be_repeated(queue_study):
    queue_study.enqueue({"model": {"unet": {"depth": 3}}, "augment": "none", "ema": 0})
    assert queue_study.fixed() == {"model": "unet"}


def test_a_baseline_within_the_space(tmp_path):
    queue_study = QueueStudy(tmp_path, OPEN | {"search.augment": ["none", "full"]} | {
        "search.model": {"unet": {"width": [8, 64], "depth": [3, 5]}}})  # fmt: skip
    queue_study.enqueue({"baseline": "c-bigger-unet"})
    trial = queue_study.study.trials[0]
    assert trial.user_attrs == {trial_records.TrialAttr.BASELINE: "c-bigger-unet"}
    assert trial.system_attrs["fixed_params"]["model.unet.width"] == 64
    config = baselines.build_config("c-bigger-unet", 64, 2)
    assert queue_study.begin()[1].digest() == config.digest()


def test_a_baseline_outside_the_space(queue_study):
    queue_study.enqueue([{"baseline": "unet-focal"}])
    trial = queue_study.study.trials[0]
    assert trial.system_attrs["fixed_params"] == {}
    fixed_config = baselines.build_config("unet-focal", 64, 2).to_dict()
    assert trial.user_attrs == {
        trial_records.TrialAttr.BASELINE: "unet-focal",
        trial_records.TrialAttr.FIXED_CONFIG: fixed_config,
    }


def test_a_configuration_within_the_space(queue_study):
    config = queue_study.run()
    params = queue_study.study.trials[0].params
    queue_study.enqueue({"config": config.to_dict()})
    assert queue_study.fixed() == params
    assert queue_study.study.trials[1].user_attrs == {}


def test_a_configuration_outside_the_space(queue_study):
    plain = queue_study.run().to_dict() | {"loss": {"tversky": {}}, "seed": 7}
    for key in ("image_size", "epochs", "patience"):
        del plain[key]
    queue_study.enqueue({"config": plain})
    fixed_config = queue_study.study.trials[1].user_attrs[trial_records.TrialAttr.FIXED_CONFIG]
    assert (
        fixed_config["seed"] == 7
        and fixed_config["image_size"] == 64
        and fixed_config["epochs"] == 2
    )
    assert fixed_config["loss"]["tversky"]["alpha"] > 0
    assert queue_study.begin()[1].to_dict() == fixed_config


ERRORS = {
    "": "contains no configuration",
    "[]": "contains no configuration",
    "loss: [": "not YAML: line 1, column 8: ",
    "{loss: bce, loss: focal}": "not YAML: line 1, column 13: duplicate key 'loss'",
    "- loss": "must be keys and values such as {loss: dice}, got 'loss'",
    "{}": "must be keys and values such as {loss: dice}, got {}",
    "los: bce": "los: unknown key (did you mean 'loss'?)",
    "3: bce": "3: unknown key (known: ",
    "loss: foccal": "loss: must be one of its choices, got 'foccal' (did you mean 'focal'?)",
    "loss: dice": "loss: must be one of its choices, got 'dice' (did you mean 'bce_dice'?)",
    "loss: 3": "loss: must be one option or {option: parameters}, got 3",
    "loss: {bce: {}, focal: {}}": "loss: must be one option or {option: parameters}, got {'bce'",
    "loss: {focal: 3}": "loss.focal: must be {parameter: value}, got 3",
    "loss: {focal: {gama: 1}}": "loss.focal.gama: unknown key (did you mean 'loss.focal.gamma'?)",
    "augment: {none: {p: 1}}": "augment.none.p: unknown key (augment.none has no parameters)",
    "optimizer: {adam: {lr: 1}}": "optimizer.adam.lr: must lie in [0.0001, 0.01], got 1",
    "model: {unet: {width: 128}}": "model.unet.width: must lie in [8, 64], got 128",
    "model: {unet: {depth: 4}}": "model.unet.depth: is 3 in this study, got 4",
    "batch_size: many": "batch_size: must be a number, got 'many'",
    "ema: 0.9": "ema: is 0 in this study, got 0.9",
    "epochs: 5": "epochs: is 2 in this study, got 5",
    "baseline: unet-dise": "baseline: unknown baseline 'unet-dise' (did you mean 'unet-dice'?)",
    "{baseline: unet-dice, loss: bce}": "baseline: must be the only key, got baseline, loss",
    "{baseline: unet-dice, config: {}}": "baseline: must be the only key, got baseline, config",
    "config: unet": "config: must be keys and values, got 'unet'",
    "config: {los: bce}": "config: unknown key 'los' (did you mean 'loss'?)",
    "config: {loss: bce}": "config: lacks model, augment, mix, optimizer, schedule, batch_size, ",
    "config: {loss: {bce: 1}}": "config: a component must be a name or {name: parameters}, got ",
}


@pytest.mark.parametrize("text", ERRORS)
def test_errors_of_a_file(shared_study, text):
    assert shared_study.refused(text).startswith(ERRORS[text])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 128}, "config: image_size: the study's images have 64, got 128"),
        ({"epochs": 3}, "config: epochs: at most the study's 2, got 3"),
        ({"batch_size": 0}, "config: batch_size must lie in [1, 4096], got 0"),
        ({"loss": {"dise": {}}}, "config: loss.dise: unknown loss 'dise' (did you mean 'dice'?)"),
        ({"loss": {"focal": {"gamma": -1}}}, "config: loss.focal: gamma must lie in "),
    ],
)
def test_errors_of_a_complete_configuration(shared_study, changes, message):
    plain = baselines.build_config("unet-dice", 64, 2).to_dict()
    assert shared_study.refused({"config": plain | changes}).startswith(message)


def test_a_model_with_another_image_size_is_an_error(tmp_path):
    queue_study = QueueStudy(tmp_path, {"data.image_size": 16})
    message = queue_study.refused({"baseline": "segnet-bce"})
    assert message.startswith("data.image_size: segnet takes multiples of 32 from 32 on, got 16")


def test_all_errors_are_reported(shared_study):
    file = [
        {"loss": "bce"},
        {"loss": "foccal", "batch_size": 1},
        {"baseline": "none"},
    ]
    message = shared_study.refused(file)
    assert message.startswith(
        "(1) entry 2: loss: must be one of its choices, got 'foccal' (did you mean 'focal'?); "
        "(2) entry 2: batch_size: must lie in [8, 32], got 1; "
        "(3) entry 3: baseline: unknown baseline 'none' ("
    )


def test_an_unreadable_file_is_an_error(queue_study, tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.yaml: cannot be read: No such file"):
        enqueue_file(queue_study.study, queue_study.spec, tmp_path / "nowhere.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"binary\.yaml: cannot be read: not UTF-8 text"):
        enqueue_file(queue_study.study, queue_study.spec, tmp_path / "binary.yaml")


@pytest.mark.parametrize("when", ["before", "after"])
def test_trials_are_queued_once_after_a_lost_commit(private_postgres, when):
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
