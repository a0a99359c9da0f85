"""Training throughput relative to the model step alone and to a plain training loop.

The step alone: the same network, loss and optimizer on one batch on the device, normalised and
channels last. Ours: the training with `full` augmentation, without validation. The plain loop:
PIL opens and resizes photographs of 3000 x 2000 in each epoch, the same augmentation runs in a
DataLoader with two processes, all in float32.

All alternate within one run, a few steps each; reported are medians over rounds of the ratio
within a round. Processor time per image is reported too, since the wall time depends on other
processes; it does not include loader processes and is omitted with them.

Each epoch starts without prefetched batches, which on a GPU is spread over more steps.
`--loaders` sets numbers of loader processes (on a GPU only), `--compile` adds a row with
torch.compile.

    python -m bench.throughput [--rounds 7] [--steps 6] [--photographs 48] [--loaders 8 15]
        [--compile] [--device cuda] [--to FILE]
"""

from __future__ import annotations

import argparse
import ctypes
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# As in the command line; must be set before torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import albumentations as A
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from bench.data import write_photographs
from lesionseg.augment import build_augment
from lesionseg.config import TrialConfig
from lesionseg.data.cache import Cache, build_cache
from lesionseg.data.index import DatasetIndex
from lesionseg.data.loader import iterate_batches, to_device
from lesionseg.data.synthetic import write_dataset
from lesionseg.losses import build_loss
from lesionseg.models import build_model
from lesionseg.optim import build_optimizer
from lesionseg.runtime.device import (
    amp_dtype,
    autocast,
    configure_torch,
    describe_device,
    pick_device,
)
from lesionseg.space import ComponentConfig
from lesionseg.training.train import Trainer
from lesionseg.training.training_state import CheckpointManager
from lesionseg.training.types import TrainData, TrainOptions
from search.trial_process.resources import count_cores

#: Networks by their names in the tables.
NETWORKS = {
    "U-Net 32, depth 4": ComponentConfig("unet"),
    "U-Net 8, depth 3": ComponentConfig("unet", {"width": 8, "depth": 3}),
    "SegNet": ComponentConfig("segnet"),
    "U-Net, ResNet-34": ComponentConfig("smp_unet", {"encoder": "resnet34", "weights": "none"}),
}
FULL = ComponentConfig("full")
BATCH = 16
#: Steps per measurement, by device type.
STEPS = {"cpu": 6, "mps": 100, "cuda": 100}
#: Minimum steps per epoch of the plain loop, which starts two processes each.
NOTEBOOK_STEPS = 10


@dataclass(frozen=True)
class Pace:
    """Seconds per image of wall time and of processor time."""

    clock: float
    work: float


def config_of(network: str, size: int) -> TrialConfig:
    """The defaults, with full augmentation."""
    return TrialConfig(model=NETWORKS[network], augment=FULL, image_size=size, batch_size=BATCH)


class StepOnly:
    """The model step alone, repeated on one batch."""

    def __init__(self, config: TrialConfig, cache: Cache, device: torch.device) -> None:
        torch.manual_seed(config.seed)
        model = build_model(config.model, image_size=config.image_size)
        self.model = model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.loss = build_loss(config.loss, overlap=config.overlap)
        self.optimizer = build_optimizer(config.optimizer, self.model.parameters())
        members = np.arange(config.batch_size) % len(cache.names)
        batch = next(iterate_batches(cache, members, config.batch_size))
        self.images, self.masks = to_device(batch, device)
        self.device, self.dtype = device, amp_dtype(device, config.amp)

    def run(self, steps: int) -> int:
        """Run some steps and return the number of images."""
        for _ in range(steps):
            step(self.model, self.loss, self.optimizer, self.images, self.masks, self.dtype)
        return steps * len(self.images)


def step(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    masks: Tensor,
    dtype: torch.dtype | None,
) -> None:
    """One step of all training loops."""
    optimizer.zero_grad(set_to_none=True)
    with autocast(images.device, dtype):
        outputs = model(images)
    loss(outputs, masks).backward()  # type: ignore[no-untyped-call]
    optimizer.step()


class Ours:
    """The training of this project, one epoch per call.

    loaders: number of loader processes on a GPU. compiled: whether torch.compile is used.
    """

    def __init__(
        self,
        config: TrialConfig,
        cache: Cache,
        device: torch.device,
        steps: int,
        loaders: int,
        compiled: bool = False,
    ) -> None:
        torch.manual_seed(config.seed)
        model = build_model(config.model, image_size=config.image_size)
        if compiled:
            model.compile()
        if device.type == "cuda":
            torch.set_num_threads(loaders + 1)  # which determine the number of loaders
        self.label = f"{loaders if device.type == 'cuda' else 0}{', compiled' if compiled else ''}"
        # Members occur several times, so that an epoch has this many steps.
        members = np.arange(steps * config.batch_size) % len(cache.names)
        data, options = TrainData(cache, members, members), TrainOptions(device=device)
        self.trainer = Trainer(config, data, model, options, CheckpointManager(None, {}))
        self.epoch = 0

    def run(self, steps: int) -> int:
        """Train an epoch of ``steps`` steps and return the number of images."""
        self.epoch, self.trainer.step = self.epoch + 1, 0
        self.trainer.loss_sum.zero_()
        self.trainer.run_steps(self.epoch)
        return steps * self.trainer.config.batch_size


class Photographs(Dataset[tuple[Tensor, Tensor]]):
    """A data set as in most scripts, without a cache."""

    def __init__(self, folder: Path, size: int, augment: A.Compose) -> None:
        self.images = sorted((folder / "images").iterdir())
        self.masks = sorted((folder / "masks").iterdir())
        self.size, self.augment = size, augment

    def __len__(self) -> int:
        return max(len(self.images), NOTEBOOK_STEPS * BATCH)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        square, index = (self.size, self.size), index % len(self.images)
        image = Image.open(self.images[index]).convert("RGB").resize(square)
        mask = Image.open(self.masks[index]).convert("L").resize(square, Image.Resampling.NEAREST)
        inside = (np.asarray(mask) > 127).astype(np.uint8)
        changed = self.augment(image=np.asarray(image), mask=inside)
        image_tensor = torch.from_numpy(changed["image"]).permute(2, 0, 1).float() / 255
        return image_tensor, torch.from_numpy(changed["mask"]).unsqueeze(0).float()


class PlainLoop:
    """A plain training loop over a folder of photographs, one epoch per call."""

    def __init__(self, config: TrialConfig, folder: Path, device: torch.device) -> None:
        torch.manual_seed(config.seed)
        self.model = build_model(config.model, image_size=config.image_size).to(device).train()
        self.loss = build_loss(config.loss, overlap=config.overlap)
        self.optimizer = build_optimizer(config.optimizer, self.model.parameters())
        photographs = Photographs(folder, config.image_size, build_augment(config.augment))
        self.loader = DataLoader(photographs, config.batch_size, shuffle=True, num_workers=2)
        self.device = device

    def run(self, steps: int) -> int:
        """Train one epoch, ignoring ``steps``, and return the number of images."""
        n = 0
        for images, masks in self.loader:
            images, masks = images.to(self.device), masks.to(self.device)
            step(self.model, self.loss, self.optimizer, images, masks, None)
            n += len(images)
        return n


def pace(run: Callable[[int], int], steps: int, device: torch.device) -> Pace:
    """Measure the seconds per image."""
    wait(device)
    clock, work = time.perf_counter(), time.process_time()
    n = run(steps)
    wait(device)
    return Pace((time.perf_counter() - clock) / n, (time.process_time() - work) / n)


def wait(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def against_bare(
    network: str, size: int, cache: Cache, device: torch.device, given: argparse.Namespace
) -> Iterator[str]:
    """Yield the rows of the first table for one network."""
    config, steps = config_of(network, size), given.steps
    bare = StepOnly(config, cache, device)
    arms = [Ours(config, cache, device, steps, loaders) for loaders in given.loaders]
    if given.compile:
        arms.append(Ours(config, cache, device, steps, given.loaders[-1], compiled=True))
    runs = [bare.run, *(arm.run for arm in arms)]
    for run in runs:
        pace(run, steps, device)
    turns = [[pace(run, steps, device) for run in runs] for _ in range(given.rounds)]
    alone = statistics.median(1 / turn[0].clock for turn in turns)
    for i, arm in enumerate(arms, start=1):
        whole = statistics.median(1 / turn[i].clock for turn in turns)
        clock = statistics.median(turn[0].clock / turn[i].clock for turn in turns)
        work = statistics.median(turn[0].work / turn[i].work for turn in turns)
        told = "-" if device.type == "cuda" else f"{work:.3f}"
        yield (
            f"| {network} | {size} | {arm.label} | {alone:.1f} | {whole:.1f} "
            f"| {clock:.3f} | {told} |"
        )


def against_notebook(
    network: str, folder: Path, root: Path, device: torch.device, given: argparse.Namespace
) -> Iterator[str]:
    """Yield a row of the second table."""
    size, rounds = 96, max(1, given.rounds // 2)
    cache = build_cache(DatasetIndex.read(folder), size, root)
    config = config_of(network, size)
    steps = max(NOTEBOOK_STEPS, len(cache.names) // BATCH)
    ours = Ours(config, cache, device, steps, given.loaders[-1])
    notebook = PlainLoop(config, folder, device)
    for run in (notebook.run, ours.run):
        pace(run, steps, device)
    pairs = [
        (pace(notebook.run, steps, device), pace(ours.run, steps, device)) for _ in range(rounds)
    ]
    ratio = statistics.median(n.clock / o.clock for n, o in pairs)
    theirs, whole = (statistics.median(1 / p[i].clock for p in pairs) for i in (0, 1))
    yield f"| {network} | {size} | {theirs:.1f} | {whole:.1f} | {ratio:.2f} |"


BARE_HEAD = (
    "| network | image size | loaders | bare step, images/s | ours, images/s | ours / bare "
    "| by processor time |\n|---|---|---|---|---|---|---|"
)
NOTEBOOK_HEAD = """\
| network | image size | notebook, images/s | ours, images/s | ours / notebook |
|---|---|---|---|---|"""


def measure(given: argparse.Namespace, scratch: Path, device: torch.device) -> Iterator[str]:
    """Yield both tables line by line."""
    write_dataset(scratch / "lesions", 2 * BATCH)
    index = DatasetIndex.read(scratch / "lesions")
    yield BARE_HEAD
    for size in given.sizes:
        cache = build_cache(index, size, scratch / "cache")
        for network in given.networks:
            yield from against_bare(network, size, cache, device, given)
    if not given.photographs:
        return
    folder = write_photographs(scratch / "photographs", given.photographs)
    yield f"\n{NOTEBOOK_HEAD}"
    for network in given.networks:
        yield from against_notebook(network, folder, scratch / "cache", device, given)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, help=f"of a block; by the device: {STEPS}")
    parser.add_argument("--sizes", type=int, nargs="*", default=[96, 256])
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS)[:2], choices=NETWORKS)
    parser.add_argument("--photographs", type=int, default=48)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--loaders", type=int, nargs="+", default=[max(1, count_cores() - 1)])
    parser.add_argument("--compile", action="store_true", help="a row with torch.compile")
    parser.add_argument("--to", type=Path, help="a Markdown file for the tables")
    given = parser.parse_args(argv)
    device = pick_device(given.device)
    given.steps = given.steps or STEPS[device.type]
    torch.set_num_threads(count_cores())
    configure_torch(device, 0)
    if device.type == "cpu":
        # As in every training of a study: MALLOC_TRIM_THRESHOLD_ and MALLOC_MMAP_MAX_.
        libc = ctypes.CDLL(None)
        libc.mallopt(-1, 2**31 - 1)
        libc.mallopt(-4, 0)
    lines = []
    with tempfile.TemporaryDirectory() as scratch:
        for line in measure(given, Path(scratch), device):
            print(line, flush=True)
            lines.append(line)
    if given.to:
        machine = (
            f"{describe_device(device)}, {count_cores()} cores, Python {platform.python_version()}"
        )
        told = f"torch {torch.__version__}, batches of {BATCH}, `full` augmentation"
        title = f"# Training throughput\n\n`python -m bench.throughput`: {machine}; {told}.\n\n"
        given.to.write_text(title + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
