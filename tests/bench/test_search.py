"""Searches replayed on curves made up by hand: the clock, the slots and who is pruned."""

import json
from dataclasses import replace

import numpy as np
import optuna
import pytest
from optuna.pruners import NopPruner, ThresholdPruner
from optuna.samplers import GridSampler, RandomSampler
from optuna.trial import FixedTrial

from bench.search import (
    ARMS,
    BARE,
    OURS,
    RANDOM,
    VARIANTS,
    Arm,
    Table,
    main,
    patient,
    replay,
    told,
)

SPACE = {"model": ["a", "b"], "lr": [0.001, 0.1]}


@pytest.fixture(autouse=True, scope="module")
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture
def path(tmp_path):
    """Four trainings of three epochs: b at 0.1 alone comes to 0.9; a at 0.1 diverges."""
    rows = [
        ("a", 0.001, [0.1, 0.2, 0.3], [1.0, 1.0, 1.0]),
        ("a", 0.1, [0.1, None], [1.0, 0.5]),
        ("b", 0.001, [0.2, 0.5, 0.4], [2.0, 2.0, 2.0]),
        ("b", 0.1, [0.3, 0.6, 0.9], [2.0, 2.0, 2.0]),
    ]
    lines = [
        json.dumps({"point": {"model": m, "lr": lr}, "dice": dice, "seconds": seconds})
        for m, lr, dice, seconds in rows
    ]
    (tmp_path / "curves.jsonl").write_text("\n".join(lines))
    return tmp_path / "curves.jsonl"


class Script(GridSampler):
    """Proposes these, one after the other, to whoever asks."""

    def __init__(self, points):
        super().__init__({"model": ["a", "b"]})
        self.points = points

    def before_trial(self, study, trial):
        pass

    def after_trial(self, *_):
        pass

    def sample_independent(self, study, trial, name, distribution):
        return self.points[trial.number][name]


def scripted(*points, pruner=None):
    points = [{"model": model, "lr": lr} for model, lr in points]
    return Arm(lambda seed: Script(points), lambda epochs: pruner or NopPruner())


def test_the_clock_is_the_sum_of_the_epochs_that_were_trained(path):
    table = Table.read(path)
    arm = scripted(("a", 0.001), ("b", 0.001), ("b", 0.1))
    found = replay(table, arm, 0.9, seed=0)
    assert (found.seconds, found.trials, found.epochs, found.reached) == (3 + 6 + 6, 3, 9, True)


def test_a_target_is_reached_within_a_trial(path):
    found = replay(Table.read(path), scripted(("b", 0.1)), 0.6, seed=0)
    assert (found.seconds, found.epochs) == (4, 2)


def test_a_training_that_diverged_costs_what_it_took(path):
    found = replay(Table.read(path), scripted(("a", 0.1), ("b", 0.1)), 0.9, seed=0)
    assert found.seconds == 1.5 + 6


def test_who_is_pruned_frees_its_slot_at_once(path):
    pruner = ThresholdPruner(lower=0.25)
    arm = scripted(("a", 0.001), ("b", 0.001), ("b", 0.1), pruner=pruner)
    found = replay(Table.read(path), arm, 0.9, seed=0)
    assert (found.seconds, found.epochs) == (1 + 2 + 6, 5)


def test_workers_train_side_by_side(path):
    points = (("a", 0.001), ("b", 0.001), ("b", 0.1), ("a", 0.001), ("a", 0.001), ("a", 0.001))
    found = replay(Table.read(path), scripted(*points), 0.9, seed=0, workers=2)
    assert found.seconds == 3 + 6  # the first slot is free after a's three seconds


def test_rates_between_those_recorded_get_the_nearest_on_a_log_scale(path):
    table = Table.read(path)
    found = replay(table, scripted(("b", 0.0099), ("b", 0.0101)), 0.9, seed=0)
    assert (found.trials, found.seconds) == (2, 12)


def test_the_target_is_what_so_many_configurations_reach(path):
    table = Table.read(path)
    assert [table.target(n) for n in (1, 2, 3, 4)] == [0.9, 0.5, 0.3, 0.1]


def test_a_grid_with_a_hole_is_refused(path):
    path.write_text("\n".join(path.read_text().splitlines()[:3]))
    with pytest.raises(ValueError, match="3 curves of a grid of 4"):
        Table.read(path)


def test_one_seed_is_one_search(path):
    table = Table.read(path)
    arm = Arm(lambda seed: RandomSampler(seed), lambda epochs: NopPruner())
    first, second, other = (replay(table, arm, 0.9, seed) for seed in (1, 1, 2))
    assert first == second != other


def test_the_table_has_ratios_to_both_baselines(path, capsys):
    main([str(path), "--repeats", "5", "--top", "1", "--to", str(path.with_suffix(".md"))])
    shown = capsys.readouterr().out
    assert path.with_suffix(".md").read_text().strip() == shown.strip()
    rows = {row.split(" | ")[0].strip("| "): row for row in shown.splitlines() if "|" in row}
    assert set(ARMS) == {RANDOM, BARE, OURS} <= set(rows)
    assert rows[RANDOM].split(" | ")[-2] == "1.00"
    assert rows[BARE].split(" | ")[-1] == "1.00 |"


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_searches(path, name):
    found = replay(Table.read(path), VARIANTS[name], 0.5, seed=1)
    assert found.reached and found.seconds > 0


@pytest.mark.parametrize(("one_in", "share"), [(0, 0.0), (3, 1 / 3), (1, 1.0)])
def test_a_share_of_trials_is_patient(one_in, share):
    pruner = patient(one_in).pruner(9)
    found = [pruner.is_deferred("study", number) for number in range(3000)]
    assert abs(np.mean(found) - share) < 0.04


def test_ratios_are_of_medians(path):
    table = Table.read(path)
    slow = [replay(table, scripted(("a", 0.001), ("b", 0.1)), 0.9, 0)]  # 9 seconds
    quick = [replay(table, scripted(("b", 0.1)), 0.9, 0)]  # 6
    row = told({RANDOM: slow, BARE: slow, OURS: quick})[-1]
    assert row.endswith("| 0.67 (0.67 .. 0.67) | 0.67 (0.67 .. 0.67) |")
    # Three or four draws of four are the 18, or the 3, in 5.1% of all cases each.
    many = [replace(quick[0], seconds=seconds) for seconds in (3.0, 6.0, 6.0, 18.0)]
    assert "| 0.67 (0.33 .. 2.00) |" in told({RANDOM: slow, BARE: slow, OURS: many})[-1]


def test_a_rate_between_two_is_given_what_lies_between_their_curves(path):
    table = replace(Table.read(path), interpolated=True)
    trial = FixedTrial({"model": "b", "lr": 0.01})  # half way from 0.001 to 0.1
    assert table.draw(trial).dice == pytest.approx([0.25, 0.55, 0.65])
    assert table.draw(FixedTrial({"model": "b", "lr": 0.1})).dice == (0.3, 0.6, 0.9)
    assert table.draw(FixedTrial({"model": "b", "lr": 0.5})).dice == (0.3, 0.6, 0.9)
    assert table.draw(FixedTrial({"model": "b", "lr": 0.0005})).dice == (0.2, 0.5, 0.4)
    # What diverges is not halved: the nearer one is given.
    assert table.draw(FixedTrial({"model": "a", "lr": 0.02})).dice == (0.1, None)
    assert table.draw(FixedTrial({"model": "a", "lr": 0.005})).dice == (0.1, 0.2, 0.3)


def test_luck_is_a_trials_own_and_the_same_for_every_arm(path):
    table = replace(Table.read(path), noise=0.01)
    study = optuna.create_study(sampler=Script([{"model": "b", "lr": 0.1}] * 400))
    asked = [study.ask() for _ in range(400)]
    curves = [table.train(trial, 3).dice for trial in asked]
    by = np.array(curves) - [0.3, 0.6, 0.9]
    assert np.allclose(by, by[:, :1])  # a whole curve is shifted
    assert abs(by.mean()) < 0.002 and abs(by.std() - 0.01) < 0.002
    assert table.train(asked[7], 3).dice == curves[7] != table.train(asked[7], 4).dice
    diverged = study.ask()
    study.sampler.points.append({"model": "a", "lr": 0.1})
    assert table.train(diverged, 0).dice[1] is None
    assert replace(table, noise=0.0).train(asked[0], 3).dice == (0.3, 0.6, 0.9)
    high = replace(table, noise=5.0)
    assert all(0 <= d <= 1 for trial in asked for d in high.train(trial, 0).dice)


def test_parts_of_a_grid(path):
    table = Table.read(path)
    assert set(table.part({"model": "a"}, {}).curves) == {("a", "0.001"), ("a", "0.1")}
    assert table.part({}, {"model": "a"}).choices == {"model": ("b",)}
    assert table.part({}, {}) == table
