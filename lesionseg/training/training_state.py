"""A training's state on disk: what one that was suspended goes on from, to the same digits.

A state is a file of tensors, dicts, lists, strings and numbers, opened as such, so that it can
run nothing. Under its name lies a whole one or none: it is written beside, synced and renamed.
It is small change beside the training: a save waits until the last one has cost less than a
twentieth of the time since.
"""

from __future__ import annotations

import copy
import hashlib
import os
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from lesionseg.config import TrialConfig
from lesionseg.data.cache import Cache
from lesionseg.errors import InputError

#: Raise the number when what a state holds changes: old ones are then begun afresh.
FORMAT = "lesionsearch-state/2"
#: A save costs at most one in so many seconds of training.
SHARE = 20.0
#: In the middle of an epoch saves are at least so many seconds apart.
MIDDLE_SECONDS = 300.0

State = dict[str, Any]


class Stateful(Protocol):
    """What has a state that can be given and taken up again."""

    def state_dict(self) -> State:
        """The state: plain data and tensors, which may be the live ones."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state_dict`` gave."""


class CheckpointManager:
    """Keeps one training's state in one file, as often as is worth its cost.

    path: the file, or None to keep nothing.
    identity: of ``identity``; only a state with the same one is taken up.
    on_saved: called after each save with the number of epochs completed.
    clock: gives seconds, of which only differences count.
    """

    def __init__(
        self,
        path: Path | None,
        identity: Mapping[str, str],
        on_saved: Callable[[int], None] = lambda epochs: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._path, self._identity, self._on_saved = path, identity, on_saved
        self._clock, self._cost, self._last = clock, 0.0, clock()

    def take_up(self, training: Stateful) -> bool:
        """Whether the training goes on from the file; if not, it is as it was before.

        Not so without a valid state of this identity, or if it does not fit what was built.
        """
        if self._path is None:
            return False
        try:
            found = load(self._path, self._identity)
        except InputError:
            return False
        before = copy.deepcopy(training.state_dict())
        try:
            training.load_state_dict(found)
        # Whatever another version of a network or of torch makes of it.
        except Exception:
            training.load_state_dict(before)
            return False
        return True

    def due(self, *, middle: bool) -> bool:
        """Whether a save is worth its cost now, at the end of an epoch or in the middle of one."""
        waited = self._clock() - self._last
        least = MIDDLE_SECONDS if middle else 0.0
        return self._path is not None and waited > max(least, SHARE * self._cost)

    def save(self, training: Stateful, epochs: int) -> bool:
        """Writes the state after so many completed epochs; False if it could not be written.

        A full disk ends no training: the state from before stays, and the next save tries again.
        """
        if self._path is None:
            return False
        began = self._clock()
        try:
            save(self._path, training.state_dict(), self._identity)
            saved = True
        except OSError:
            saved = False
        self._last = self._clock()
        self._cost = self._last - began
        if saved:
            self._on_saved(epochs)
        return saved


def identity(config: TrialConfig, cache: Cache, **others: Any) -> dict[str, str]:
    """What must be equal for a state to be taken up: the configuration, the data, the rest.

    others: further arguments; of an array its numbers are digested, as positions in the cache,
        together with what the cache knows of the pictures there.
    """
    names, areas = np.asarray(cache.names), cache.areas

    def text(value: Any) -> str:
        if not isinstance(value, np.ndarray):
            return str(value)
        content = [value.tolist(), names[value].tolist(), areas[value].tolist()]
        return hashlib.sha256(repr(content).encode()).hexdigest()[:16]

    return {"configuration": config.digest()} | {k: text(v) for k, v in others.items()}


def save(path: Path, state: Mapping[str, Any], identity: Mapping[str, str]) -> None:
    """Writes the file, or nothing. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    whole = {"format": FORMAT, "identity": dict(identity), "state": dict(state)}
    try:
        with partial.open("wb") as file:
            torch.save(whole, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except RuntimeError as error:  # what torch makes of a disk that fills up meanwhile
        raise OSError(f"{path}: cannot be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def load(path: Path, identity: Mapping[str, str]) -> State:
    """The state of ``save``, its tensors on the CPU.

    Raises InputError: no such file, a damaged or foreign one, or a state of another identity.
    """
    whole = _read(path)
    if not isinstance(whole, dict) or whole.get("format") != FORMAT:
        raise InputError(f"{path}: holds no {FORMAT}; delete it to begin afresh")
    found, state = whole.get("identity"), whole.get("state")
    if not isinstance(found, dict) or not isinstance(state, dict):
        raise InputError(f"{path}: lacks a part of the state; delete it to begin afresh")
    for key in dict.fromkeys([*identity, *found]):
        if found.get(key) != identity.get(key):
            raise InputError(
                f"{path}: the state is of another training: its {key} is {found.get(key)}, "
                f"not {identity.get(key)}; give it a file of its own"
            )
    return state


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of torch's generators: the CPU's and the device's own, if it has one."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_random_state(device: torch.device, states: Mapping[str, Tensor]) -> None:
    """Take up what ``random_state`` gave; of another kind of device, only the CPU's."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    elif device.type == "mps" and "mps" in states:
        torch.mps.set_rng_state(states["mps"])


class StepSnapshot:
    """What a forward pass changes in a network, as it was: its buffers and torch's generators.

    Kept so that a step can be done again as if it had not been begun.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.device = device
        # By kind: of a list of several, CUDA copies each tensor by a kernel of its own.
        alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for buffer in model.buffers():
            alike.setdefault((buffer.device, buffer.dtype), []).append(buffer)
        self.pairs = [(list(map(torch.empty_like, kind)), kind) for kind in alike.values()]
        self.random: dict[str, Tensor] = {}

    def note(self) -> None:
        """Before a step; the host does not wait for the device."""
        self.random = random_state(self.device)
        for copies, buffers in self.pairs:
            torch._foreach_copy_(copies, buffers)

    @torch.no_grad()
    def restore(self) -> None:
        """As it was when noted last."""
        set_random_state(self.device, self.random)
        for copies, buffers in self.pairs:
            torch._foreach_copy_(buffers, copies)


def load_optimizer(optimizer: torch.optim.Optimizer, state: State) -> None:
    """Take up the optimizer's own ``state_dict``, its counters on the host as they were.

    torch moves all but one kind of them to the device, and would then wait for it every step.
    What is computed in one kernel has them on the device, and waits for nothing.
    """
    fused = [group.get("fused") for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, one_kernel in zip(optimizer.param_groups, fused, strict=True):
        if "fused" in group:  # as this device has it, not as the state's had
            group["fused"] = one_kernel
        for parameter in group["params"]:
            for name, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor) and not value.ndim and parameter.ndim:
                    optimizer.state[parameter][name] = (
                        value.to(parameter.device, torch.float32) if one_kernel else value.cpu()
                    )


def _read(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        # torch itself compares no checksums: a flipped bit would be trained on with.
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is None:
            return torch.load(path, map_location="cpu", weights_only=True)
        reason = f"{broken} is not what was written"
    # A file of any content may make the readers raise anything.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
    raise InputError(f"{path}: is damaged or no training state ({reason}); delete it") from None


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")
