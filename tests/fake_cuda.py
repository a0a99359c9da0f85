"""A CUDA device without a driver: torch computes shapes, types and devices, but no values.

Tensors are those of torch's ``FakeTensorMode``. Of torch.cuda only the C functions of the driver
are replaced, so that its Python code still checks every argument: a device without an index is
refused here wherever torch refuses it. Three more things need a driver and are replaced:
``Module.to`` (by a copy of each tensor, without its memory format), ``backward`` (gradients are
zeros) and ``pin_memory``.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).parent.parent
#: Seconds after which a forked test has failed.
FORK_TIMEOUT_S = 120
#: Operations that read a value of the device, for which the host waits.
_SCALAR_READS = {"_local_scalar_dense", "item", "is_nonzero"}
_READS = _SCALAR_READS | {"nonzero", "masked_select", "unique_dim", "_unique2", "equal"}


@dataclass
class FakeCuda:
    """State of the fake driver.

    syncs: file and function of the product for each read of a value on a device.
    used: indices of the devices that tensors were on.
    """

    count: int
    current: int = 0
    fractions: dict[int, float] = field(default_factory=dict)
    syncs: list[str] = field(default_factory=list)
    used: set[int] = field(default_factory=set)


class _RecordReads(TorchDispatchMode):
    """Records where the product reads values of the device, and returns a constant for them."""

    def __init__(self, state: FakeCuda) -> None:
        super().__init__()
        self.state = state

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        leaves = tree_leaves((args, kwargs))
        devices = [leaf.device if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        on_cuda = {d.index for d in devices if _is_device(d) and d.type == "cuda"}
        if not on_cuda and not any(isinstance(leaf, FakeTensor) for leaf in leaves):
            with _disable_current_modes():  # the CPU computes values
                return function(*args, **kwargs)
        self.state.used |= on_cuda - {None}
        if name in {"_to_copy", "to"}:  # "to" within inference mode
            source, target = args[0], next((d for d in devices[1:] if _is_device(d)), None)
            dtype = kwargs.get("dtype") or source.dtype
            if target is not None and target.type == "cpu" and source.device.type == "cuda":
                self.state.syncs.append(_place())
                with _disable_current_modes():
                    return torch.ones(source.shape, dtype=dtype)
            if target is not None and source.device.type == "cpu":
                return torch.empty_strided(
                    source.shape, source.stride(), dtype=dtype, device=target
                )
        if name in _READS or (name == "copy_" and args[0].device.type == "cpu"):
            self.state.syncs.append(_place())
        if name in _SCALAR_READS:
            return 1.0 if args[0].is_floating_point() else 1
        return function(*args, **kwargs)


def _is_device(value: object) -> bool:
    return isinstance(value, torch.device)


def _place() -> str:
    """Return the innermost line of the product that is being executed."""
    frame = sys._getframe()
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT / "lesionseg") or path.is_relative_to(ROOT / "search"):
            return f"{path.relative_to(ROOT)}:{frame.f_code.co_qualname.partition('.<locals>')[0]}"
        frame = frame.f_back  # type: ignore[assignment]
    return "?"


@contextmanager
def fake_cuda(count: int = 1, capability: tuple[int, int] = (9, 0)) -> Iterator[FakeCuda]:
    """Let torch see ``count`` CUDA devices that compute no values."""
    state = FakeCuda(count)

    def exchange(index: int) -> int:
        previous = state.current
        state.current = index if index >= 0 else previous
        return previous

    def set_device(index: int) -> None:
        state.current = index

    driver = {
        "_cuda_init": lambda: None,
        "_cuda_getDeviceCount": lambda: count,
        "_cuda_getDevice": lambda: state.current,
        "_cuda_setDevice": set_device,
        "_cuda_exchangeDevice": exchange,
        "_cuda_maybeExchangeDevice": exchange,
        "_cuda_getMemoryFraction": lambda i: state.fractions.get(i, 1.0),
        "_cuda_setMemoryFraction": lambda fraction, i: state.fractions.update({i: fraction}),
        "_cuda_memoryStats": lambda i: {"allocated_bytes": {"all": {"peak": 2**20}}},
        "_cuda_emptyCache": lambda: None,
        "_cuda_synchronize": lambda: None,
    }
    major, minor = capability
    properties = SimpleNamespace(major=major, minor=minor, name="Fake GPU")
    generators = tuple(torch.Generator() for _ in range(count))
    torch._C._ensureCUDADeviceGuardSet()
    with ExitStack() as stack:
        for name, function in driver.items():
            stack.enter_context(patch.object(torch._C, name, function))
        for name, value in {
            "_initialized": True,
            "_is_in_bad_fork": lambda: False,
            "_cached_device_count": count,
            "_device_count_nvml": lambda: count,
            "_get_device_properties": lambda i: properties,
            "default_generators": generators,
        }.items():
            stack.enter_context(patch.object(torch.cuda, name, value, create=True))
        stack.enter_context(patch.object(nn.Module, "to", _module_to))
        stack.enter_context(patch.object(Tensor, "backward", _backward))
        stack.enter_context(patch.object(Tensor, "pin_memory", lambda tensor, device=None: tensor))
        # Without it torch would copy constants to the device.
        stack.enter_context(patch.object(FakeTensorMode, "avoid_device_init", True))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(_RecordReads(state))
        yield state


def _module_to(module: nn.Module, device: Any = None, dtype: Any = None, **kwargs: Any):
    """Move a network: ``nn.Module.to`` cannot exchange the content of fake tensors."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                moved = parameter.detach().to(device, dtype)
                part._parameters[name] = nn.Parameter(moved, parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = buffer.to(device)
    return module


def _backward(loss: Tensor, *args: Any, **kwargs: Any) -> None:
    """Give every weight that the loss depends on a gradient of zeros."""
    assert loss.ndim == 0 and loss.requires_grad, "a loss must be a scalar with a graph"
    nodes, seen = [loss.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            weight = node.variable
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        nodes += [parent for parent, _ in node.next_functions]
    assert seen


def in_fork(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test in a forked process: a second network in one process crashes torch's fakes."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        context = multiprocessing.get_context("fork")
        errors = context.SimpleQueue()
        process = context.Process(target=_run_and_report, args=(errors, test, args, kwargs))
        process.start()
        process.join(FORK_TIMEOUT_S)
        process.kill()
        if not errors.empty():
            pytest.fail(errors.get(), pytrace=False)
        assert process.exitcode == 0, f"ended with {process.exitcode}"

    return run


def _run_and_report(errors: Any, test: Callable[..., None], args: Any, kwargs: Any) -> None:
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    try:
        test(*args, **kwargs)
    except BaseException:
        errors.put(traceback.format_exc())
    os._exit(0)  # without the handlers of pytest
