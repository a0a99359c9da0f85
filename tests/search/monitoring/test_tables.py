"""What people read: names are shown as they are, numbers are the record's."""

import io

import pytest
from optuna.trial import TrialState, create_trial
from rich.console import Console

from lesionseg.config import DEFAULTS, SETTINGS, TrialConfig
from lesionseg.data.duplicates.audit import audit_dataset
from lesionseg.registry import FAMILIES
from lesionseg.space import ComponentConfig
from search.monitoring import tables as show
from search.spec.formatting import format_config
from search.storage import trial_records
from tests.conftest import write_pair
from tests.search.statuses import worker_of


@pytest.fixture
def shown():
    """A console without terminal, and what was written on it so far."""
    file = io.StringIO()
    return Console(file=file, highlight=False, width=240, soft_wrap=True), file.getvalue


def record(number=7, state=TrialState.COMPLETE, value=0.875, **attrs):
    made = create_trial(state=state, value=value, user_attrs=attrs)
    made.number = number
    return made


def test_a_configuration_in_one_line_has_every_pick_and_parameter():
    config = TrialConfig(
        model=ComponentConfig("unet", {"width": 16, "depth": 3}),
        optimizer=ComponentConfig("adam", {"lr": 0.00123456}),
        loss=ComponentConfig("dice"),
    )
    line = format_config(config)
    assert line == "unet(width=16, depth=3) · dice · flips · adam(lr=0.00123) · cosine"
    assert format_config(config.to_dict()) == line
    assert line.count(" · ") == len(DEFAULTS) - 2  # no word of mixing, where there is none


def test_what_stands_at_its_default_unless_it_is_named_is_not_shown():
    params = {"width": 16, "depth": 3, "norm": "batch", "attention": True}
    config = TrialConfig(model=ComponentConfig("unet", params), mix=ComponentConfig("cutmix", {"alpha": 1.0}))
    line = format_config(config)
    assert line.startswith("unet(width=16, depth=3, attention=true) · bce_dice · flips · cutmix(")


@pytest.mark.parametrize(
    ("trial", "fragments"),
    [
        (
            record(epochs=12, seconds=3.21, config=TrialConfig().to_dict()),
            ["trial   7", "complete", "0.8750", "12 epochs", "3.2 s", "unet"],
        ),
        (
            record(3, TrialState.FAIL, None, reason="oom", message="MemoryError: [9 GiB] [/b]"),
            ["trial   3", "failed", " - ", "MemoryError: [9 GiB] [/b]"],
        ),
        (
            record(
                4,
                TrialState.FAIL,
                None,
                reason=trial_records.EndReason.DUPLICATE,
                message="the same as 2",
            ),
            ["trial   4", "skipped", "the same as 2"],
        ),
    ],
)
def test_a_line_per_trial_says_number_state_dice_and_cost(shown, trial, fragments):
    console, read = shown
    lines = show.TrialLines(console, budget=12, spent=0, epochs=12)
    with lines.bars:
        lines.trial_ended(trial, None)
    (line,) = read().splitlines()
    for fragment in fragments:
        assert fragment in line


def test_the_bar_moves_for_trials_that_cost_budget_only(shown):
    lines = show.TrialLines(shown[0], budget=5, spent=2, epochs=1)
    lines.trial_ended(record(), record())
    lines.trial_ended(
        record(state=TrialState.FAIL, value=None, reason=trial_records.EndReason.LOST), record()
    )
    lines.trial_ended(record(state=TrialState.PRUNED, value=None), record())
    assert lines.bars.tasks[0].completed == 4


def test_every_row_of_every_table_is_shown_with_its_parameters(shown):
    console, read = shown
    show.print_options(console, FAMILIES)
    text = read()
    for family, table in FAMILIES.items():
        assert f"\n{family}" in f"\n{text}"
        for name, option in table.items():
            lines = [row for row in text.splitlines() if row.split()[:1] == [name]]
            assert any(option.about in line for line in lines)
            for key, domain in option.space.items():
                star = "*" if key in option.fixed_by_default else ""
                # A long list of choices goes on in the next line of its cell.
                first, *others = str(domain).split(" | ")
                assert f"{key}{star}: {first}" in text
                assert all(other in text for other in others)
    for name, domain in SETTINGS.items():
        assert f"{name} " in text
        assert str(domain) in text


def test_no_bars_are_drawn_where_they_are_not_wanted(shown):
    terminal = Console(file=io.StringIO(), force_terminal=True)
    assert not show.TrialLines(terminal, 5, 0, 1).bars.disable
    assert show.TrialLines(terminal, 5, 0, 1, bars=False).bars.disable


def test_what_looks_like_markup_in_a_name_is_shown_as_it_is(shown, tmp_path):
    console, read = shown
    write_pair(tmp_path, "a[red]b")
    (tmp_path / "masks" / "a[red]b.png").write_bytes(b"not a picture")
    show.print_audit(console, audit_dataset(tmp_path))
    assert "a[red]b.png: not a picture" in read()


def test_counting_shows_nothing_where_there_is_no_terminal(shown):
    console, read = shown
    with show.counting(console, "reading") as tick:
        tick(1, 2)
        tick(2, 2)
    assert read().strip() == ""


def status_of(**changes):
    return {
        "study": "s",
        "spent": 3,
        "counts": {"complete": 2, "failed": 1, "waiting": 0},
        "reasons": {"oom": 1},
        "budget": {"trials": 12, "hours": None},
        "best": {"number": 1, "value": 0.75, "config": TrialConfig().to_dict()},
        "command": "run",
        "hours_left": 1.5,
        "disk_bytes": 12_340_000,
        "workers": [worker_of()],
        "test": {"dice": 0.7, "ci95": [0.6, 0.8]},
        "test_evaluations": 1,
    } | changes


def test_a_standing_says_it_all(shown):
    console, read = shown
    show.print_status(console, status_of())
    text = read()
    for fragment in (
        "s: 3 of 12 trials",
        "reasons: oom 1",
        "about 90 minutes left at the pace so far",
        "checkpoints and weights: 12.3 MB",
        "best: trial 1, validation Dice 0.7500, unet",
        "test Dice: 0.7000 (0.6000 .. 0.8000)",
        "looks at the test images: 1",
    ):
        assert fragment in text
    assert "waiting" not in text
    assert "told to" not in text
    (line,) = [row for row in text.splitlines() if "here[1]" in row]
    assert line.split() == [
        *("here[1]", "42", "cuda:0", "x", "0.5"),
        *("trial", "3,", "epoch", "2", "7", "s", "ago"),
    ]


def test_workers_that_wait_or_are_silent_and_what_all_are_told_are_shown(shown):
    console, read = shown
    idle = worker_of(state="idle", trial=None, share=1.0, device="cpu", silent=True)
    show.print_status(console, status_of(workers=[idle], command="pause", hours_left=30.0))
    text = read()
    assert "its workers are told to pause" in text
    assert "about 30.0 hours left" in text
    assert "idle" in text and "7 s ago (silent)" in text and "cpu x" not in text


def test_a_standing_of_nothing_is_shown(shown):
    console, read = shown
    empty = status_of(
        best=None, workers=[], test=None, test_evaluations=0, reasons={}, spent=0, hours_left=None
    )
    show.print_status(console, empty)
    assert "0 of 12" in read()
    assert "best" not in read()
    assert " left" not in read()
