"""The lock of a study's folder."""

import signal
import subprocess
import sys

import pytest

from lesionseg.errors import InputError
from search.storage.study_dir import lock_study


def test_a_lock_is_held_until_its_process_ends(tmp_path):
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            # The lock of lock_study, without its imports.
            "import sys, time, filelock\nlock = filelock.FileLock(sys.argv[1])\nlock.acquire()\n"
            "print('held', flush=True); time.sleep(60)",
            str(tmp_path / ".lock"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="another process is at work on this study"):
            lock_study(tmp_path).__enter__()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with lock_study(tmp_path):
            pass
        with lock_study(tmp_path):
            pass
    finally:
        holder.kill()
        holder.stdout.close()
