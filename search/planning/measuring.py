"""Measure the speed of a slot of this machine; measurements are kept by host and device."""

from __future__ import annotations

import hashlib
import json
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError

from lesionseg.config import TrialConfig
from lesionseg.data.cache import IMAGES, MASKS, META, default_root
from lesionseg.errors import InputError
from lesionseg.models import required_imports
from lesionseg.runtime.device import describe_device
from lesionseg.runtime.files import atomic_write
from lesionseg.space import ComponentConfig
from search.planning import policy
from search.planning.policy import ANCHORS, BATCH_SIZE, Anchor
from search.planning.speeds import AnchorSpeed, MachineSpeeds
from search.trial_process.process import TrialProcess
from search.trial_process.protocol import JobError, Measured, MeasureJob
from search.trial_process.slot import Slot

#: Measured steps; others before them are for warm-up.
STEPS = 2
#: Ratio to the present speed up to which a stored measurement is used.
SPEED_TOLERANCE = 1.25
#: Part of the version of stored measurements. To be increased when they change.
VERSION = 1

_STORED = TypeAdapter(dict[str, AnchorSpeed])


def measure_machine(
    slot: Slot, limit_s: float, on_anchor: Callable[[str], None] = lambda name: None
) -> MachineSpeeds:
    """Return the speed of a slot.

    Stored measurements are used if the machine is as fast as then, which a short measurement of the
    first anchor shows. Else all anchors are measured, the first one in any case.

    Args:
        slot: device and threads to measure with.
        limit_s: seconds for the measurement. An anchor for which they do not suffice, or the
            memory, is left out.
        on_anchor: called with the name of each anchor before it is measured.

    Raises:
        InputError: the first anchor could not be measured.
    """
    is_gpu = slot.device.startswith("cuda")
    anchors = policy.GPU_ANCHORS if is_gpu else policy.CPU_ANCHORS
    sizes = policy.GPU_SIZES if is_gpu else policy.CPU_SIZES
    path, start = _path(slot, sizes), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lesionsearch-") as folder:
        first = anchors[0]
        on_anchor(first)
        # It also starts the server of the training processes, which takes seconds.
        check = _measure(ANCHORS[first], sizes[0], slot, Path(folder), policy.MAX_MEASURE_S)
        if isinstance(check, str):
            raise InputError(f"{slot.device}: its speed cannot be measured: {check}")
        known = _read(path)
        if not _agrees(known.get(first), check, sizes[0]):
            known = {}
        stored = dict(known)
        for name in anchors:
            left_s = limit_s - (time.monotonic() - start)
            if name in known or (left_s <= 0 and name != first):
                continue
            if name != first:
                on_anchor(name)
            measured = {sizes[0]: check} if name == first else {}
            speed = _measure_anchor(ANCHORS[name], sizes, measured, slot, Path(folder), left_s)
            if speed is not None:
                known[name] = speed
                if time.monotonic() - start < limit_s:  # else its larger size may be missing
                    stored[name] = speed
                    _write(path, stored)
    speeds = {name: known[name] for name in anchors if name in known}
    return MachineSpeeds(speeds, _memory_bytes(slot), slot.device == "cpu")


def _agrees(known: AnchorSpeed | None, check: Measured, size: int) -> bool:
    """Return whether a stored measurement was made at the present speed of the machine."""
    if known is None:
        return False
    ratio = check.seconds_per_step / BATCH_SIZE / known.image_s.at(size)
    return 1 / SPEED_TOLERANCE < ratio < SPEED_TOLERANCE


def _measure_anchor(
    anchor: Anchor,
    sizes: Sequence[int],
    measured: Mapping[int, Measured],
    slot: Slot,
    folder: Path,
    timeout_s: float,
) -> AnchorSpeed | None:
    """Measure an anchor at each further size; return None if it measured none.

    measured: measurements by size, made before.
    """
    measured, end = dict(measured), time.monotonic() + timeout_s
    for size in sizes:
        if size not in measured:
            outcome = _measure(anchor, size, slot, folder, end - time.monotonic())
            if isinstance(outcome, str):  # too slow at this size, or too large
                break
            measured[size] = outcome
    return AnchorSpeed.from_measured(measured) if measured else None


def _measure(
    anchor: Anchor, size: int, slot: Slot, folder: Path, timeout_s: float
) -> Measured | str:
    """Measure an anchor at a size; return why it failed, if it did."""
    config = TrialConfig(
        model=ComponentConfig(anchor.model, anchor.params),
        augment=ComponentConfig("geometric"),
        image_size=size,
        batch_size=BATCH_SIZE,
    )
    job = MeasureJob(
        config.to_dict(),
        random_cache(folder / str(size), 2 * BATCH_SIZE, size),
        np.arange(2 * BATCH_SIZE),
        slot,
        STEPS,
        imports=required_imports([anchor.model]),
    )
    return _run(job, timeout_s)


def _run(job: MeasureJob, timeout_s: float) -> Measured | str:
    end = time.monotonic() + timeout_s
    with TrialProcess(job) as process:
        while (left_s := end - time.monotonic()) > 0:
            match process.receive(left_s):
                case Measured() as measured:
                    return measured
                case JobError(reason, message):
                    return f"{reason}: {message}"
        process.kill()
    return f"it took longer than {timeout_s:.0f} s"


def random_cache(path: Path, images: int, size: int) -> Path:
    """Write a cache of noise, unless it is there; return its path."""
    if path.is_dir():
        return path
    path.mkdir(parents=True)
    rng = np.random.default_rng(0)
    np.save(path / IMAGES, rng.integers(0, 256, (images, size, size, 3), dtype=np.uint8))
    np.save(path / MASKS, rng.integers(0, 2, (images, size, size), dtype=np.uint8))
    names = [str(i) for i in range(images)]
    meta = {
        "names": names,
        "areas": [0.5] * images,
        "shapes": [[size, size]] * images,
        "digests": names,
        "readings": {},
    }
    (path / META).write_text(json.dumps(meta))
    return path


def _path(slot: Slot, sizes: Sequence[int]) -> Path:
    """Return the file of the measurements with this host, device, slot and torch."""
    device = describe_device(slot.device)
    key = (
        VERSION,
        platform.node(),
        device,
        slot.threads,
        slot.share,
        list(sizes),
        version("torch"),
    )
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    return default_root() / "speeds" / f"{digest}.json"


def _read(path: Path) -> dict[str, AnchorSpeed]:
    try:
        return _STORED.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return {}


def _write(path: Path, speeds: Mapping[str, AnchorSpeed]) -> None:
    with suppress(OSError):  # measured again next time
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, json.dumps({name: asdict(speed) for name, speed in speeds.items()}))


def _memory_bytes(slot: Slot) -> float | None:
    if slot.device.startswith("cuda"):
        import torch

        return float(torch.cuda.get_device_properties(slot.device).total_memory * slot.share)
    return None if slot.memory_gb is None else slot.memory_gb * 1e9
