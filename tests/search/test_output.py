"""Output that cannot be written: dropped by long commands, an error of other commands."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

#: A program that prints, as a library would too, then works, then exits with code 5.
WORK = """
import logging, sys, warnings
from rich.console import Console
logging.basicConfig(stream=sys.stderr)  # as handlers do that are created at import
from search.output import tolerant_output

@tolerant_output()
def work():
    for i in range(3000):
        print("x" * 20, flush=i % 2)
        print("x" * 20, file=sys.stderr)
    Console().print("rich")
    logging.getLogger().error("log")
    warnings.warn("careful")
    with open(sys.argv[1], "w") as file:
        file.write("worked")

work()
sys.exit(5)
"""


def open_unusable(output: str) -> int:
    """Return a file descriptor that every write to fails."""
    if output == "full disk":
        return os.open("/dev/full", os.O_WRONLY)
    reader, writer = os.pipe() if output == "no reader" else os.openpty()
    os.close(reader)
    return writer


def run_with(arguments, output: str) -> int:
    """Run Python whose standard output and error are unusable; return its exit code."""
    if output == "closed":
        command = ["sh", "-c", 'exec "$0" "$@" >&- 2>&-', sys.executable, *arguments]
        return subprocess.run(command, cwd=ROOT, timeout=60).returncode
    writer = open_unusable(output)
    try:
        command = [sys.executable, *arguments]
        return subprocess.run(
            command, cwd=ROOT, timeout=60, stdout=writer, stderr=writer
        ).returncode
    finally:
        os.close(writer)


UNUSABLE = ["full disk", "no reader", "closed terminal", "closed"]


@pytest.mark.parametrize("output", UNUSABLE)
def test_work_goes_on_without_output_and_keeps_its_exit_code(tmp_path, output):
    assert run_with(["-c", WORK, str(tmp_path / "result")], output) == 5
    assert (tmp_path / "result").read_text() == "worked"


def test_files_do_not_get_the_place_of_closed_output(tmp_path):
    """Otherwise output of a library could be written into a database."""
    script = WORK.replace('"worked")', '"worked"); import os; os.write(1, b"from a library")')
    assert run_with(["-c", script, str(tmp_path / "result")], "closed") == 5
    assert (tmp_path / "result").read_text() == "worked"


def test_an_error_that_cannot_be_printed_keeps_its_exit_code():
    assert run_with(["-m", "cli", "nope"], "full disk") == 2


def test_a_full_disk_is_one_line_and_a_reader_that_left_is_none():
    command = [sys.executable, "-m", "cli", "options"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    told = "lesionsearch: standard output: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, told)
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == ("", 1)
