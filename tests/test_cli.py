"""The command line: help for everything, and every command on real files."""

import json
import os
import re
import shlex
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import cli
from lesionseg.config import SETTINGS
from lesionseg.data.index import DatasetIndex
from lesionseg.data.synthetic import write_dataset
from lesionseg.registry import FAMILIES
from search.spec import baselines
from tests.conftest import ROOT, write_folder, write_pair
from tests.search.helpers import make_worker, open_tiny, queue, write_study

RUNNER = CliRunner()
COMMAND = Path(sys.executable).with_name("lesionsearch")


def commands(command=None, name=()):
    """Every command and group, with the words that call it."""
    command = command or typer.main.get_command(cli.app)
    yield name, command
    for word, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*name, word))


ALL = list(commands())
IDS = [" ".join(name) or "lesionsearch" for name, _ in ALL]


def run(*args, code=0):
    result = RUNNER.invoke(cli.app, [str(a) for a in args])
    assert code is None or result.exit_code == code, result.stderr
    return result


# --- help --------------------------------------------------------------------------------------


def test_there_are_commands():
    assert {"run", "status", "final", "report", "options", "demo", "data", "data check"} <= set(IDS)
    assert {"worker", "pause", "resume", "stop"} <= set(IDS)


@pytest.mark.parametrize(("name", "command"), ALL, ids=IDS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_and_group_has_help(name, command, flag):
    out = run(*name, flag).stdout
    assert "Usage:" in out
    assert command.help
    assert command.help.split(".")[0].split("\n")[0][:20] in out


@pytest.mark.parametrize(("name", "command"), ALL, ids=IDS)
def test_every_option_and_argument_is_described(name, command):
    for param in command.params:
        assert getattr(param, "help", None), f"{' '.join(name)}: {param.name} says nothing"


def test_help_and_a_wrong_word_import_nothing_heavy():
    script = """
import sys
import cli

heavy = {"torch", "optuna", "numpy", "cv2", "matplotlib", "sqlalchemy", "albumentations", "yaml"}
for words in [[], ["--help"], ["run", "--help"], ["data", "synth", "--help"], ["nope"]]:
    try:
        cli.app(words)
    except SystemExit:
        pass
    found = heavy & set(sys.modules)
    assert not found, (words, found)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_console_script_is_the_app():
    done = subprocess.run([COMMAND, "--help"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage: lesionsearch [OPTIONS] COMMAND" in done.stdout
    done = subprocess.run([COMMAND, "xyz"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "lesionsearch: No such command 'xyz'.\n"


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (
            lambda path: sqlite3.connect(path).execute("DROP TABLE trial_values"),
            "storage: no such table: trial_values; a table was dropped; "
            "restore the database from a backup",
        ),
        (
            lambda path: path.write_bytes(path.read_bytes()[:8192] + b"x" * 200_000),
            "storage: database disk image is malformed; "
            "restore the file from a backup, or with sqlite3's `.recover`",
        ),
    ],
)
def test_a_damaged_database_is_one_line(damage, line, tiny_data, tmp_path):
    open_tiny(tiny_data, tmp_path / "s")
    damage(tmp_path / "s" / "study.db")
    for command in (["status"], ["trials", "export"]):
        result = run(
            *command, tmp_path / "s", *(["x"] if command[0] == "trials" else []), code=None
        )
        assert result.exit_code in {1, 2}
        assert result.stderr.startswith("lesionsearch: storage: ")
        assert result.stderr.rstrip().endswith(line.removeprefix("storage: "))
        assert len(result.stderr.splitlines()) == 1


def test_status_where_there_is_nothing_says_what_to_do():
    assert run("status").stdout == "no studies under runs/; `lesionsearch demo` creates one\n"
    assert run("status", "--json").stdout == "[]\n"
    assert list(Path.cwd().iterdir()) == []


# --- the README --------------------------------------------------------------------------------


def readme_lines() -> list[str]:
    """Every line of its code blocks that calls lesionsearch, continuation lines joined."""
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    plain = [line.strip().removeprefix("$ ") for line in lines]
    return [line for line in plain if re.match(r"(\S*/)?lesionsearch(\s|$)", line)]


def parse(line: str) -> None:
    """Raises where the real command line would not take it; runs nothing."""
    words = shlex.split(line, comments=True)
    ends = [i for i, w in enumerate(words) if w in {"|", "||", "&&", ";", "&"} or w[0] in "<>"]
    words = words[1 : min(ends, default=len(words))]
    command, context = typer.main.get_command(cli.app), None
    while True:
        group = hasattr(command, "commands")
        context = command.make_context(command.name, list(words), parent=context)
        if not group:
            return
        words = [*context._protected_args, *context.args]
        _, command, words = command.resolve_command(context, words)


@pytest.mark.parametrize("line", readme_lines())
def test_every_command_in_the_readme_exists_with_its_options(line):
    try:
        parse(line)
    except SystemExit as end:  # --help
        assert end.code in (0, None)
    except typer.Exit as end:
        assert end.exit_code == 0


@pytest.mark.parametrize(
    "line",
    [
        "lesionsearch run quick --data DIR --trials 3 --set seed=1",
        ".venv/bin/lesionsearch data synth DIR -n 5 > log && echo",
        "lesionsearch status  # all of them",
        "lesionsearch run --help",
    ],
)
def test_the_check_of_the_readme_takes_what_is_right(line):
    test_every_command_in_the_readme_exists_with_its_options(line)


@pytest.mark.parametrize(
    "line",
    [
        "lesionsearch rum quick --data DIR",
        "lesionsearch run quick --date DIR",
        "lesionsearch run quick",
        "lesionsearch data fetch_all DIR",
        "lesionsearch run quick --data DIR --trials many",
    ],
)
def test_the_check_of_the_readme_finds_what_is_wrong(line):
    with pytest.raises(Exception) as caught:  # the parser's own, which is private
        parse(line)
    assert hasattr(caught.value, "format_message") or isinstance(caught.value, typer.Exit)
    assert getattr(caught.value, "exit_code", 2) == 2


# --- options -----------------------------------------------------------------------------------


def test_options_shows_every_row_of_every_table_and_every_setting():
    text = run("options").stdout
    for table in FAMILIES.values():
        for name, option in table.items():
            assert re.search(rf"^ {re.escape(name)}\s", text, re.MULTILINE), name
            for key, domain in option.space.items():
                # The rest of a long list of choices may be on the next line of its cell.
                first = str(domain).split(" | ")[0]
                star = re.escape("*" if key in option.fixed_by_default else "")
                assert re.search(rf"{key}{star}\s+(.+\n.+\s)?{re.escape(first)}", text), key
    for name in SETTINGS:
        assert re.search(rf"^ {name}\s", text, re.MULTILINE)


def test_options_as_markdown_is_the_page_of_the_docs():
    assert run("options", "--markdown").stdout == (ROOT / "docs" / "options.md").read_text()
    alone = run("options", "mix", "--markdown").stdout
    assert "## mix" in alone and "## loss" not in alone


def test_baselines_list_names_every_baseline_with_its_source():
    text = run("baselines", "list").stdout
    for name in baselines.load_baselines():
        assert re.search(rf"^{name}\s+{baselines.get_baseline(name).source}\s", text, re.MULTILINE)


@pytest.mark.slow
def test_baselines_run_trains_tests_and_tells_where_the_table_is(tiny_data):
    few = [f"--set=data.limit.{part}=4" for part in ("train", "val", "test")]
    names = ["--only", "c-baseline-unet,e-unet-ham-v1", "--only", "c-deeper-unet"]
    done = run(
        "baselines", "run", "--data", tiny_data, "--image-size", 32, "--epochs", 1, *few, *names
    )
    assert done.exit_code == 0
    assert "table and figures: runs/baselines" in done.stdout
    table = Path("runs/baselines/table.md").read_text()
    for name in ("c-baseline-unet", "e-unet-ham-v1", "c-deeper-unet"):
        assert name in done.stdout and f"| {name} |" in table
    assert "unet-dice" not in table


@pytest.mark.parametrize("family", FAMILIES)
def test_options_of_one_family_shows_no_other(family):
    words = [line.split()[0] for line in run("options", family).stdout.splitlines() if line.strip()]
    assert family in words
    assert set(FAMILIES[family]) <= set(words)
    assert not (set(FAMILIES) - {family}) & set(words)


# --- data --------------------------------------------------------------------------------------


def facts(out: str) -> dict[str, str]:
    pairs = (re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in out.splitlines())
    return dict(pair for pair in pairs if len(pair) == 2)


def test_check_of_good_data_says_what_is_there(tiny_data):
    result = run("data", "check", tiny_data)
    told = facts(result.stdout)
    assert told["layout"] == "folders"
    assert told["pairs"] == "30"
    assert told["unusable pairs"] == "0"
    assert told["sizes"] == "1, most often 48x40 (30)"
    assert result.stderr == ""


def test_check_of_broken_data_names_every_broken_pair_and_fails(tmp_path):
    for i in range(4):
        write_pair(tmp_path / "d", f"im{i}", seed=i)
    (tmp_path / "d" / "images" / "im1.png").write_bytes(b"no picture")
    write_pair(tmp_path / "other", "x", size=(20, 20))
    (tmp_path / "other" / "masks" / "x.png").rename(tmp_path / "d" / "masks" / "im3.png")
    result = run("data", "check", tmp_path / "d", code=2)
    assert facts(result.stdout)["unusable pairs"] == "2"
    assert "im1.png: not an image" in result.stdout
    assert "im3.png: the mask has 20x20 pixels" in result.stdout
    assert len(result.stderr.splitlines()) == 1
    assert "2 of 4 pairs cannot be used" in result.stderr


def test_check_of_real_ph2_finds_every_pair_usable(real_data):
    result = run("data", "check", real_data / "ph2")
    told = facts(result.stdout)
    assert told["layout"] == "ph2"
    assert told["unusable pairs"] == "0"
    assert int(told["pairs"]) == len(DatasetIndex.read(real_data / "ph2").records)


def test_synth_makes_data_that_check_finds_good(tmp_path):
    root = tmp_path / "made"
    result = run("data", "synth", root, "-n", "3", "--height", "64", "--width", "80")
    assert result.stdout == f"3 images and masks in {root}\n"
    told = facts(run("data", "check", root).stdout)
    assert (told["pairs"], told["layout"], told["unusable pairs"]) == ("3", "isic2018", "0")
    assert told["sizes"] == "1, most often 80x64 (3)"
    assert list(tmp_path.glob(".*")) in ([], [tmp_path / "cwd"])


def test_synth_of_one_seed_is_the_same_and_of_another_is_not(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(
            "data", "synth", tmp_path / name, "-n", 1, "--seed", seed, "--height", 48, "--width", 48
        )

    def files(name):
        return sorted(p.read_bytes() for p in (tmp_path / name).rglob("*.*"))

    assert files("a") == files("b") != files("c")


# --- a study from end to end -------------------------------------------------------------------


def test_a_study_from_the_command_line(tiny_data, tmp_path):
    spec = write_study(tmp_path / "mine.yaml")
    args = ["--data", tiny_data, "--device", "cpu", "--threads", "1"]
    out = run("run", spec, *args, "--trials", "2", "--no-final").stdout
    # Without --out: runs/ and the study's name, below where one is.
    folder = Path("runs") / "tiny"
    assert folder.is_dir()
    assert "the budget of 2 trials is spent: 2 complete" in out
    plain = json.loads(run("status", "tiny", "--json").stdout)
    assert plain["study"] == "tiny"
    assert plain["counts"]["complete"] == plain["budget"]["trials"] == 2
    assert plain["test"] is None
    assert json.loads(run("status", "--json").stdout) == [plain]
    assert "tiny: 2 of 2 trials" in run("status").stdout
    assert "tiny: 2 of 2 trials" in run("status", folder).stdout
    out = run("final", "tiny", "--device", "cpu", "--threads", "1").stdout
    assert "reproduced" in out
    assert "NOT reproduced" not in out
    assert "test evaluations of this study: 1" in out
    assert (folder / "report.html").is_file()
    (folder / "report.html").unlink()
    assert run("report", "tiny").stdout == f"{folder / 'report.html'}\n"
    assert (folder / "report.html").is_file()
    written = run("report", "tiny", "--format", "md,json").stdout.splitlines()
    assert written == [str(folder / "report.md"), str(folder / "report.json")]
    told = json.loads((folder / "report.json").read_text())["test"]["metrics"]
    assert told == json.loads((folder / "final" / "metrics.json").read_text())
    out = run("final", "tiny", "--again", "--device", "cpu", "--threads", "1").stdout
    assert "test evaluations of this study: 2" in out
    assert json.loads(run("status", "tiny", "--json").stdout)["test_evaluations"] == 2


def test_a_final_without_a_complete_trial_ends_with_1(tiny_data):
    open_tiny(tiny_data, Path("runs") / "tiny")
    result = run("final", "tiny", code=1)
    assert result.stderr == "lesionsearch: tiny: no complete trial (no trial was run)\n"


def told(name: str = "tiny") -> dict:
    """The standing of a study, as machines read it."""
    return json.loads(run("status", name, "--json").stdout)


def test_workers_are_told_to_pause_to_go_on_and_to_stop(tiny_data):
    open_tiny(tiny_data, Path("runs") / "tiny")
    assert told()["command"] == "run"
    for command, word in (("pause", "pause"), ("resume", "run"), ("stop", "stop")):
        assert run(command, "tiny").stdout == f"tiny: sent '{word}' to 0 workers\n"
        assert told()["command"] == word
    assert "command to the workers: stop" in run("status", "tiny").stdout


def test_a_worker_joins_a_study_and_does_what_it_is_to(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, Path("runs") / "tiny", {"budget.epochs": 1})
    queue(opened, width=7, lr=0.05)
    words = ["worker", "tiny", "--device", "cpu", "--threads", 1]
    out = run(*words, "--max-trials", 1).stdout
    lines = [line.partition(" ")[2] for line in out.splitlines()]
    assert lines[0] == "worker on cpu joins tiny"
    assert re.fullmatch(r"trial 0: [0-9a-f]+ started", lines[1])
    assert re.fullmatch(r"trial 0: complete [01]\.\d{4}", lines[2])
    assert lines[3:] == ["1 trials; the maximum number of trials is reached"]
    assert told()["best"]["config"]["model"]["unet"]["width"] == 7
    # With the same study in mind, it goes on to the end; the next one has nothing to do.
    study = write_study(tmp_path / "mine.yaml", {"budget.epochs": 1, "budget.trials": 9})
    assert "2 trials; the study is done" in run(*words, "--study", study).stdout
    assert "0 trials; the study is done" in run(*words).stdout
    assert (told()["finished"], told()["workers"]) == (3, [])


def test_a_worker_is_told_to_stop_before_it_begins(tiny_data):
    open_tiny(tiny_data, Path("runs") / "tiny")
    run("stop", "tiny")
    assert "0 trials; stopped" in run("worker", "tiny", "--device", "cpu").stdout


def test_set_may_be_repeated(tiny_data, tmp_path):
    spec = write_study(tmp_path / "mine.yaml")
    sets = ["--set", "name=other", "--set", "budget.epochs=1", "--set", "search.loss=[dice]"]
    run("run", spec, "--data", tiny_data, "--no-final", "--trials", 1, "--device", "cpu", *sets)
    best = json.loads(run("status", "other", "--json").stdout)["best"]
    assert best["config"]["epochs"] == 1
    assert best["config"]["loss"] == {"dice": {}}


def test_debug_shows_the_traceback():
    result = RUNNER.invoke(cli.app, ["--debug", "status", "nope"])
    assert type(result.exception).__name__ == "InputError"


@pytest.mark.slow
def test_two_data_sets_are_cross_validated_by_two_workers(tmp_path):
    for name, n in (("one", 14), ("two", 10)):
        write_folder(tmp_path / name, n)  # of the same names
    study = write_study(tmp_path / "study.yaml", {"data.split": {"kfold": 3}, "budget.trials": 2})
    data = ("--data", tmp_path / "one", "--data", tmp_path / "two")
    # In processes of their own, which are told of both sets.
    done = subprocess.run(
        [COMMAND, "run", study, *data, "--workers", "2", "--threads", "1", "--device", "cpu"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "folders: 24 pairs" in done.stdout
    assert "in the first of 3 folds" in done.stdout
    assert "one 14, two 10" in done.stdout
    best = json.loads(run("status", "tiny", "--json").stdout)["best"]
    assert len(best["folds"]["dice"]) == 3
    assert f"mean of 3 folds: {best['folds']['dice'][0]:.4f}" in run("status", "tiny").stdout
    report = json.loads((Path("runs") / "tiny" / "final" / "metrics.json").read_text())
    assert report["val"]["folds"] == best["folds"]
    page = (Path("runs") / "tiny" / "report.html").read_text()
    assert "Of 3 folds" in page and "Lesion in another split elsewhere" in page
    run("run", study, *data[2:], *data[:2], "--no-final")  # the other way round


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_runs_to_its_report_and_once_more(tmp_path):
    out = run("demo", "--images", "40").stdout
    assert "the budget of 10 trials is spent" in out
    assert (Path("runs") / "demo" / "report.html").is_file()
    plain = json.loads(run("status", "demo", "--json").stdout)
    assert plain["finished"] == 10
    assert plain["test"]["dice"] > 0
    run("demo", "--images", "40")
    assert json.loads(run("status", "demo", "--json").stdout)["test_evaluations"] == 1


def test_a_demo_with_other_images_than_there_are_is_refused(tmp_path):
    """The images of an earlier demo are used by default."""
    write_dataset(tmp_path / "demo-data", 21, height=32, width=32)
    refused = run("demo", "--out", tmp_path / "demo", "--images", "30", code=2)
    assert refused.stderr == (
        f"lesionsearch: --images: {tmp_path}/demo-data has 21 images already, got 30; omit it to "
        "use them, or give another --out\n"
    )
    assert refused.stdout == "" and not (tmp_path / "demo").exists()


#: Runs a command as root without the capability to ignore permissions, or as this user.
WITHOUT_RIGHTS = () if os.geteuid() else ("setpriv", "--bounding-set", "-dac_override")


@pytest.mark.slow
def test_a_study_that_cannot_be_written_is_read_or_refused_in_one_line(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s")
    queue(opened)
    make_worker(opened).run_one()
    folder = opened.folder
    files = [folder, *folder.rglob("*")]
    for path in files:
        path.chmod(path.stat().st_mode & ~0o222)
    for command, code in (("status", 0), ("report", 1), ("final", 2)):
        line = [*WITHOUT_RIGHTS, COMMAND, command, folder]
        done = subprocess.run(line, capture_output=True, text=True)
        assert (done.returncode, len(done.stderr.splitlines())) == (code, bool(code)), done.stderr
        assert not code or "cannot be written: Permission denied" in done.stderr
    for path in files:
        path.chmod(path.stat().st_mode | 0o200)


@pytest.mark.parametrize(("name", "command"), ALL, ids=IDS)
def test_help_texts_hold_no_markup_that_rich_would_remove(name, command):
    for param in command.params:
        assert not re.search(r"(?<!\\)\[[a-zA-Z]", param.help or ""), param.name
