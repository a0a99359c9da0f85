"""The state of an unfinished training on disk, from which it is resumed bit-exactly.

A state file holds tensors, dicts, lists, strings and numbers only and is loaded as such, so that
it cannot execute code. It is written beside its path, synced and renamed. A save waits until it
costs less than a twentieth of the time since the previous one; the first one's cost is estimated.
"""

from __future__ import annotations

import copy
import hashlib
import os
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lesionseg.config import TrialConfig
from lesionseg.runtime.files import atomic_path
from lesionseg.training.types import TrainData

if TYPE_CHECKING:
    from torch.distributed.checkpoint.stateful import Stateful

#: Increase the number when the content of a state changes: older ones are then ignored.
FORMAT = "lesionsearch-state/4"
#: The time between saves is at least this multiple of the duration of a save.
MIN_INTERVAL_FACTOR = 20.0
#: Assumed speed of the first save in bytes per second, that of a slow network file system.
ASSUMED_BYTES_PER_S = 200e6
#: Minimum time between saves within an epoch.
MID_EPOCH_INTERVAL_S = 300.0

State = dict[str, Any]


class CheckpointManager:
    """Saves the state of one training in one file, as often as its cost allows.

    path: the file; None to save nothing.
    identity: of ``state_identity``; only a state with the same identity is loaded.
    on_saved: called after each save with the number of completed epochs and its seconds.
    clock: returns seconds; only differences matter.
    """

    def __init__(
        self,
        path: Path | None,
        identity: dict[str, str],
        on_saved: Callable[[int, float], None] = lambda epochs, seconds: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._path, self._identity, self._on_saved = path, identity, on_saved
        self._clock, self._save_seconds, self._saved_at = clock, 0.0, clock()

    def expect_bytes(self, n_bytes: int) -> None:
        """Estimate the duration of the first save from the size of the state."""
        self._save_seconds = n_bytes / ASSUMED_BYTES_PER_S

    def load(self, training: Stateful) -> bool:
        """Load the file into the training and return whether that succeeded.

        Without a valid state of this identity that fits, the training is left unchanged.
        """
        if self._path is None:
            return False
        original: State | None = None
        try:
            # torch does not verify checksums: a flipped bit would remain unnoticed.
            with zipfile.ZipFile(self._path) as archive:
                if archive.testzip():
                    return False
            content = torch.load(self._path, map_location="cpu", weights_only=True)
            if (content["format"], content["identity"]) != (FORMAT, self._identity):
                return False
            original = copy.deepcopy(training.state_dict())
            training.load_state_dict(content["state"])
        except Exception:  # other files, and states of another version of a network or of torch
            if original:
                training.load_state_dict(original)
            return False
        return True

    def is_due(self, *, mid_epoch: bool) -> bool:
        """Return whether to save now, within an epoch or at the end of one."""
        minimum = MID_EPOCH_INTERVAL_S if mid_epoch else 0.0
        interval = max(minimum, MIN_INTERVAL_FACTOR * self._save_seconds)
        return self._path is not None and self._clock() - self._saved_at > interval

    def save(self, training: Stateful, epochs: int) -> None:
        """Save the state after ``epochs`` completed epochs, if it can be written.

        A full disk does not end the training: the previous file remains, and a later save retries.
        """
        if self._path is None:
            return
        start = self._clock()
        content = {"format": FORMAT, "identity": self._identity, "state": training.state_dict()}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(self._path) as partial, partial.open("wb") as file:
                torch.save(content, file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError):  # the latter is torch's error for a full disk
            return
        finally:
            self._saved_at = self._clock()
            self._save_seconds = self._saved_at - start
        self._on_saved(epochs, self._save_seconds)


def state_identity(config: TrialConfig, data: TrainData, keep: str) -> dict[str, str]:
    """Return what must be equal for a state to be loaded.

    Images are identified by their positions in the cache, their names and their lesion areas.
    """
    names, areas = np.asarray(data.cache.names), data.cache.areas

    def digest(members: NDArray[np.int64]) -> str:
        content = [members.tolist(), names[members].tolist(), areas[members].tolist()]
        return hashlib.sha256(repr(content).encode()).hexdigest()[:16]

    train, val = digest(data.train), digest(data.val)
    return {"configuration": config.digest(), "train": train, "val": val, "keep": keep}


def estimate_state_bytes(model: nn.Module, config: TrialConfig) -> int:
    """Return the approximate size of a state: weights, best weights, optimizer, average."""
    weights: int = sum(tensor.nbytes for tensor in model.state_dict().values())
    return weights * (4 + bool(config.ema))


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return the states of torch's generators: the CPU's and, if it has one, the device's."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_random_state(device: torch.device, states: Mapping[str, Tensor]) -> None:
    """Restore ``random_state``; only the CPU's if it is of another kind of device."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    elif device.type == "mps" and "mps" in states:
        torch.mps.set_rng_state(states["mps"])


class StepSnapshot:
    """A copy of what a forward pass changes: the network's buffers and torch's random states."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._device = device
        # Grouped by type: CUDA copies a list of mixed types with one kernel per tensor.
        groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for buffer in model.buffers():
            groups.setdefault((buffer.device, buffer.dtype), []).append(buffer)
        self._pairs = [(list(map(torch.empty_like, group)), group) for group in groups.values()]
        self._random: dict[str, Tensor] = {}

    def capture(self) -> None:
        """Copy the current values, without synchronisation."""
        self._random = random_state(self._device)
        for copies, buffers in self._pairs:
            torch._foreach_copy_(copies, buffers)

    @torch.no_grad()
    def restore(self) -> None:
        """Restore the values of the last ``capture``."""
        set_random_state(self._device, self._random)
        for copies, buffers in self._pairs:
            torch._foreach_copy_(buffers, copies)


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: State) -> None:
    """Restore an optimizer's ``state_dict``, with its step counters on their original device.

    torch moves most counters to the device and would then synchronise in every step. Fused
    optimizers have them on the device and do not synchronise.
    """
    fused = [group.get("fused") for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, is_fused in zip(optimizer.param_groups, fused, strict=True):
        if "fused" in group:  # of this device, not of the one that saved the state
            group["fused"] = is_fused
        for parameter in group["params"]:
            for name, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor) and not value.ndim and parameter.ndim:
                    optimizer.state[parameter][name] = (
                        value.to(parameter.device, torch.float32) if is_fused else value.cpu()
                    )
