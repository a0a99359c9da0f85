"""glibc keeps freed memory when calls to, and returns it afterwards."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's allocator")

MEASURE = """
import resource
import psutil
import torch
from lesionseg.runtime import malloc
from lesionseg.runtime.malloc import freed_memory_retained, retain_freed_memory

def page_faults():
    for _ in range(10):  # until the heap has its final size
        torch.ones(16_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(16_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return psutil.Process().memory_info().rss

few, many = 1000, 10_000  # of 156,250 pages
"""


@pytest.mark.parametrize(
    "code",
    [
        "assert page_faults() > many; assert retain_freed_memory(); assert page_faults() < few",
        """
before = resident()
with freed_memory_retained():
    assert page_faults() < few
    assert resident() > before + 60_000_000
    with freed_memory_retained():
        pass
    assert page_faults() < few
assert resident() < before + 30_000_000
try:
    with freed_memory_retained():
        torch.ones(16_000_000)
        assert resident() > before + 60_000_000
        raise KeyError
except KeyError:
    pass
assert resident() < before + 30_000_000
""",
        """
retain_freed_memory()
with freed_memory_retained():
    pass
assert page_faults() < few
""",
        """
malloc._glibc = object
assert not retain_freed_memory()
with freed_memory_retained():
    assert page_faults() > many
""",
    ],
    ids=["process", "context", "context_in_process", "other_c_library"],
)
def test_retained_memory(code):
    """Each in a process of its own, since the options of glibc belong to the process."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE + code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
