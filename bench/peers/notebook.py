"""Peer b: a U-Net from scratch as notebooks have it, in plain PyTorch.

Widths 32, 64, 128 and 256, batch norm; 128 pixels; BCE; Adam at 1e-3; batches of 16; no
augmentation. Validated after each epoch and at the end of the time; the best weights are kept.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from bench.peers.job import Floats, Job, Trained, mask_at_size_of, read_pairs, read_pixels
from bench.peers.plain_optuna import mean_dice
from bench.peers.pretrained import Pixels

SIZE, BATCH, WIDTHS = 128, 16, (32, 64, 128, 256)


def double_conv(inputs: int, outputs: int) -> nn.Sequential:
    """Two convolutions with batch norm and ReLU."""
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False)]
        layers += [nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """The U-Net of Ronneberger et al. 2015 with padded convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(map(double_conv, (3, *WIDTHS), WIDTHS))
        wide, narrow = WIDTHS[:0:-1], WIDTHS[-2::-1]
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(w, n, 2, 2) for w, n in zip(wide, narrow, strict=True)
        )
        self.merge = nn.ModuleList(map(double_conv, wide, narrow))
        self.head = nn.Conv2d(WIDTHS[0], 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [N, 1, S, S] of images [N, 3, S, S]."""
        skips: list[Tensor] = []
        for i, block in enumerate(self.down):
            x = block(nn.functional.max_pool2d(x, 2) if i else x)
            skips.append(x)
        for up, merge, skip in zip(self.up, self.merge, skips[-2::-1], strict=True):
            x = merge(torch.cat([up(x), skip], dim=1))
        logits: Tensor = self.head(x)
        return logits


def to_input(images: Pixels) -> Tensor:
    """Scale uint8 [N, S, S, 3] to float32 [N, 3, S, S] in [0, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


@torch.inference_mode()
def predict(model: nn.Module, images: Pixels) -> Floats:
    """Return probabilities [N, S, S]."""
    model.eval()
    parts = [model(to_input(images[i : i + BATCH])) for i in range(0, len(images), BATCH)]
    probability: Floats = torch.cat(parts).sigmoid()[:, 0].numpy()
    return probability


def train(job: Job) -> Trained:
    """Train until the time is over."""
    torch.set_num_threads(job.threads)
    torch.manual_seed(job.seed)
    images, masks = read_pairs(job.train, SIZE)
    val_images, val_masks = read_pairs(job.val, SIZE)
    model, loss = UNet(), nn.BCEWithLogitsLoss()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    best, weights, epoch = -1.0, model.state_dict(), 0
    while job.seconds_left > 0:
        epoch += 1
        model.train()
        order = torch.randperm(len(images)).numpy()
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            target = torch.from_numpy(masks[batch])[:, None].float()
            optimizer.zero_grad()
            loss(model(to_input(images[batch])), target).backward()
            optimizer.step()
            if job.seconds_left < 0:
                break
        dice = mean_dice(predict(model, val_images) > 0.5, val_masks > 0)
        if dice > best:
            best, weights = dice, copy.deepcopy(model.state_dict())
    model.load_state_dict(weights)
    return Trained(
        lambda path: mask_at_size_of(path, predict(model, read_pixels(path, SIZE)[None])[0]),
        {"epochs": epoch, "val": best},
    )
