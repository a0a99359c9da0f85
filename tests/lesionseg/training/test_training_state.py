"""A state file is whole or absent, of this very training, and worth its cost."""

import dataclasses
import itertools
import resource

import numpy as np
import pytest
import torch

from lesionseg.config import TrialConfig
from lesionseg.data.cache import build_cache
from lesionseg.data.index import DatasetIndex
from lesionseg.models import build_model
from lesionseg.space import ComponentConfig
from lesionseg.training import training_state
from lesionseg.training.training_state import CheckpointManager, state_identity
from lesionseg.training.types import Suspended, TrainData
from tests.conftest import write_folder
from tests.lesionseg.small import run_training

WHOSE = {"configuration": "abc", "train": "def"}
CONTENT = {
    "weights": torch.arange(5000.0),
    "mixed": [{"a": 1, "b": 0.5, "c": None, "d": (0.9, 0.99)}, "text", True],
    # A generator's: integers of 128 bits.
    "generator": np.random.default_rng(7).bit_generator.state,
    "infinite": float("-inf"),
}


class Training:
    """A stateful object with any state."""

    def __init__(self, state=None):
        self.state = {} if state is None else state

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = None
        self.state = {"weights": state["weights"], **state}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "state.pt"


def save(path, state=CONTENT, identity=WHOSE):
    CheckpointManager(path, identity).save(Training(state), 1)


def load(path, identity=WHOSE):
    """Return the state of the file, or None if it was not loaded and nothing was changed."""
    before = {"weights": torch.zeros(1)}
    training = Training(before)
    if CheckpointManager(path, identity).load(training):
        return training.state
    assert training.state == before
    return None


def same(one, other):
    tensors = torch.equal(one["weights"], other["weights"])
    plain = [{k: v for k, v in s.items() if k != "weights"} for s in (one, other)]
    return tensors and plain[0] == plain[1]


# --- the file ------------------------------------------------------------------------------------


def test_save_and_load(path):
    save(path)
    assert same(load(path), CONTENT)
    assert list(path.parent.iterdir()) == [path]
    assert set(torch.load(path, weights_only=True)) == {"format", "identity", "state"}


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99, 0.9999])
def test_truncated_file_is_refused(path, share):
    save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert load(path) is None


def test_flipped_bit_is_detected(path):
    save(path)
    whole, refused = path.read_bytes(), 0
    places = np.random.default_rng(0).integers(0, len(whole), 60)
    for place, bit in zip(places, itertools.cycle(range(8)), strict=False):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << bit
        path.write_bytes(damaged)
        found = load(path)
        refused += found is None
        assert found is None or same(found, CONTENT)  # padding between the parts
    assert refused > 40


def foreign(path, kind):
    valid = {"format": training_state.FORMAT, "identity": WHOSE, "state": CONTENT}
    match kind:
        case "text":
            path.write_text("epoch,dice\n1,0.5\n")
        case "weights":
            torch.save({"weight": torch.zeros(3)}, path)
        case "code":
            torch.save(valid | {"state": dataclasses.field}, path)
        case "list":
            torch.save([1, 2], path)
        case "older":
            torch.save(valid | {"format": "lesionsearch-state/1"}, path)
        case "part":
            torch.save({k: v for k, v in valid.items() if k != "state"}, path)
        case "unfit":
            torch.save(valid | {"state": {"other": 1}}, path)
        case "folder":
            path.mkdir()


@pytest.mark.parametrize(
    "kind", ["text", "weights", "code", "list", "older", "part", "unfit", "folder", "none"]
)
def test_other_files_are_refused(path, kind):
    path.parent.mkdir()
    foreign(path, kind)
    assert load(path) is None


@pytest.mark.parametrize(
    "asked", [WHOSE | {"train": "xyz"}, WHOSE | {"more": "1"}, {"configuration": "abc"}]
)
def test_state_of_another_training_is_refused(path, asked):
    save(path)
    assert load(path, asked) is None


def test_full_disk_keeps_the_previous_state(path):
    small = {"weights": torch.ones(1)}
    save(path, small)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert same(load(path), small)
    assert list(path.parent.iterdir()) == [path]


# --- identity ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cache(tiny_data, tmp_path_factory):
    return build_cache(DatasetIndex.read(tiny_data), 16, tmp_path_factory.mktemp("cache"))


CONFIG, TRAIN, VAL = TrialConfig(), np.arange(20), np.arange(20, 25)


def identity(cache, config=CONFIG, train=TRAIN, val=VAL, keep="best"):
    return state_identity(config, TrainData(cache, train, val), keep)


def test_identity_depends_on_configuration_and_members(cache):
    none = np.array([], dtype=np.int64)
    made = [
        identity(cache),
        identity(cache, dataclasses.replace(CONFIG, seed=1)),
        identity(cache, dataclasses.replace(CONFIG, loss=ComponentConfig("dice"))),
        identity(cache, train=TRAIN[:-1]),
        identity(cache, train=TRAIN[::-1].copy()),
        identity(cache, train=none),
        identity(cache, val=none),
        identity(cache, keep="last"),
    ]
    assert all(a != b for a, b in itertools.combinations(made, 2))
    assert identity(cache, train=TRAIN.copy()) == made[0]


def test_identity_depends_on_images_not_on_paths(cache, tiny_data, tmp_path):
    same_again = write_folder(tmp_path / "copy", 30)
    other = write_folder(tmp_path / "other", 30)
    (other / "masks" / "im003.png").write_bytes((other / "masks" / "im004.png").read_bytes())
    for folder, equal in ((same_again, True), (other, False)):
        found = build_cache(DatasetIndex.read(folder), 16, tmp_path / "cache")
        assert (identity(found) == identity(cache)) is equal


# --- intervals -----------------------------------------------------------------------------------


class Slow(Training):
    """Takes simulated seconds to save."""

    def __init__(self, seconds):
        super().__init__()
        self.now, self.seconds = 0.0, seconds

    def state_dict(self):
        self.now += self.seconds
        return super().state_dict()


@pytest.mark.parametrize(
    ("cost", "waited", "at_the_end", "within"),
    [
        (1.0, 19.9, False, False),
        (1.0, 20.1, True, False),
        (1.0, 299.0, True, False),
        (1.0, 301.0, True, True),
        (30.0, 301.0, False, False),
        (30.0, 599.0, False, False),
        (30.0, 601.0, True, True),
        (0.0, 0.1, True, False),
    ],
)
def test_save_is_due_after_twenty_times_its_cost(path, cost, waited, at_the_end, within):
    training = Slow(cost)
    keeper = CheckpointManager(path, WHOSE, clock=lambda: training.now)
    keeper.save(training, 1)
    training.now += waited
    assert keeper.is_due(mid_epoch=False) is at_the_end
    assert keeper.is_due(mid_epoch=True) is within


def test_first_save_is_due_at_once_and_never_without_a_path(path):
    training = Slow(1.0)
    keepers = [CheckpointManager(p, WHOSE, clock=lambda: training.now) for p in (path, None)]
    training.now += 0.1
    assert [k.is_due(mid_epoch=False) for k in keepers] == [True, False]
    keepers[1].save(training, 1)


def test_first_save_is_due_after_twenty_times_its_estimated_cost(path):
    training = Slow(1.0)
    keeper = CheckpointManager(path, WHOSE, clock=lambda: training.now)
    keeper.expect_bytes(int(2 * training_state.ASSUMED_BYTES_PER_S))
    start = training.now
    for waited, is_due in ((39.0, False), (41.0, True)):
        training.now = start + waited
        assert keeper.is_due(mid_epoch=False) is is_due


def test_estimated_size_is_about_that_of_a_state(tmp_path, data):
    path = tmp_path / "state.pt"
    config = TrialConfig(
        model=ComponentConfig("unet", {"width": 16, "depth": 3}), image_size=32, batch_size=4,
        epochs=2, ema=0.9,
    )  # fmt: skip
    answers = iter([False] * 8 + [True])
    with pytest.raises(Suspended):
        run_training(config, data, state_path=path, should_suspend=lambda: next(answers))
    estimate = training_state.estimate_state_bytes(build_model(config.model, image_size=32), config)
    assert 0.6 * estimate < path.stat().st_size < 1.4 * estimate


def test_save_calls_on_saved(path):
    calls = []
    CheckpointManager(path, WHOSE, lambda *args: calls.append(args)).save(Training(), 3)
    assert [epochs for epochs, seconds in calls] == [3] and calls[0][1] > 0


def test_failed_save_is_retried_later(tmp_path):
    (tmp_path / "file").write_text("in the way")
    calls, training = [], Slow(1.0)
    keeper = CheckpointManager(
        tmp_path / "file" / "s.pt", WHOSE, calls.append, clock=lambda: training.now
    )
    keeper.save(training, 1)
    assert not keeper.is_due(mid_epoch=False)
    training.now += 21
    assert keeper.is_due(mid_epoch=False) and calls == []


# --- snapshots -----------------------------------------------------------------------------------


class Buffers(torch.nn.Module):
    """Buffers of several dtypes in alternation, as in batch-norm layers."""

    def __init__(self):
        super().__init__()
        for i in range(3):
            self.register_buffer(f"mean{i}", torch.full((4,), float(i)))
            self.register_buffer(f"seen{i}", torch.tensor(i))
        self.register_buffer("flag", torch.tensor([True, False]))

    def change(self):
        for buffer in self.buffers():
            buffer.copy_(~buffer if buffer.dtype == torch.bool else buffer + 5)


def kept(model):
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def test_snapshot_restores_buffers_of_all_dtypes():
    model = Buffers()
    before, noted = training_state.StepSnapshot(model, torch.device("cpu")), kept(model)
    for _ in range(2):
        before.capture()
        model.change()
        assert all((kept(model)[name] != noted[name]).any() for name in noted)
        before.restore()
        assert all(torch.equal(kept(model)[name], noted[name]) for name in noted)
    model.change()
    before.capture()
    noted = kept(model)
    model.change()
    before.restore()
    assert all(torch.equal(kept(model)[name], noted[name]) for name in noted)


def test_snapshot_groups_buffers_by_dtype(monkeypatch):
    """CUDA copies a list of mixed dtypes tensor by tensor."""
    copied, copy = [], torch._foreach_copy_

    def each(to, given):
        copied.append([(a.dtype, b.dtype) for a, b in zip(to, given, strict=True)])
        copy(to, given)

    monkeypatch.setattr(torch, "_foreach_copy_", each)
    before = training_state.StepSnapshot(Buffers(), torch.device("cpu"))
    before.capture()
    before.restore()
    assert len(copied) == 2 * 3 and all(len(set(kinds)) == 1 for kinds in copied)
    assert sum(map(len, copied)) == 2 * 7
    training_state.StepSnapshot(torch.nn.ReLU(), torch.device("cpu")).capture()  # none at all


# --- generators and optimizers -------------------------------------------------------------------


def test_random_states_are_restored():
    cpu = torch.device("cpu")
    kept = training_state.random_state(cpu)
    drawn = torch.rand(5)
    training_state.set_random_state(cpu, kept | {"cuda": torch.zeros(16, dtype=torch.uint8)})
    assert torch.equal(torch.rand(5), drawn)
