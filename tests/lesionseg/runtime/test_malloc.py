"""Memory that is kept is not asked of the system again; what is given back is the system's."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator is Linux's")

MEASURE = """
import resource
from pathlib import Path
import psutil
import torch
from lesionseg.heap import retain_freed_memory, freed_memory_retained

def faults():
    for _ in range(10):  # until the heap is as large as it gets
        torch.ones(16_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(16_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return psutil.Process().memory_info().rss

few, many = 1000, 10_000  # of the 156,250 pages that are asked for
"""


def check(code):
    """Runs it in a process of its own: what glibc was told once stays with a process."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE + code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_process_that_keeps_its_memory_does_not_ask_for_it_again():
    check("assert faults() > many; assert retain_freed_memory(); assert faults() < few")


def test_it_is_kept_while_entered_and_given_back_after():
    check("""
before = resident()
with freed_memory_retained():
    assert faults() < few
    assert resident() > before + 60_000_000
    with freed_memory_retained():
        pass
    assert faults() < few
assert resident() < before + 30_000_000
""")


def test_an_error_gives_it_back_too():
    check("""
try:
    with freed_memory_retained():
        raise KeyError
except KeyError:
    pass
assert faults() > many
""")


def test_what_a_process_keeps_to_its_end_stays_kept():
    check("""
retain_freed_memory()
with freed_memory_retained():
    pass
assert faults() < few
""")


def test_without_glibc_nothing_is_done():
    check("""
import lesionseg.heap
class Other:
    pass
lesionseg.runtime.malloc._glibc = Other
assert not retain_freed_memory()
with freed_memory_retained():
    assert faults() > many
""")
