"""Peer e: nnU-Net 2D on the CPU, in an environment of its own that has nnunetv2.

nnU-Net plans for 1000 epochs of 250 steps on a GPU. Here its own fingerprint, plan, preprocessing,
network, augmentation, loss and inference are used, and only what the time forces is changed: the
images are reduced to 128 pixels first, the batch is 12 (its batch for 512 pixels) instead of what
fills a GPU, and the training ends with the time, its learning rate lowered over the time by
nnU-Net's own rule. It is trained on train and val; the last weights are used, as nnU-Net does.
"""

# nnunetv2 is no dependency of this project.
# mypy: disable-error-code="import-not-found, import-untyped, misc, no-untyped-call"

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.peers.job import Job, Mask, Trained, mask_at_size_of, read_pairs, read_pixels

SIZE, BATCH, DATASET = 128, 12, "Dataset001_Lesions"
PLANS, POWER = "nnUNetPlans", 0.9  # the exponent of nnU-Net's learning rate


def write_dataset(job: Job, root: Path) -> None:
    """Write the images of train and val in nnU-Net's layout."""
    pairs = [*job.train, *job.val]
    folder = root / "raw" / DATASET
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for pair, image, mask in zip(pairs, *read_pairs(pairs, SIZE), strict=True):
        Image.fromarray(image).save(folder / "imagesTr" / f"{pair.name}_0000.png")
        Image.fromarray(mask).save(folder / "labelsTr" / f"{pair.name}.png")
    description = {
        "channel_names": {"0": "R", "1": "G", "2": "B"},
        "labels": {"background": 0, "lesion": 1},
        "numTraining": len(pairs),
        "file_ending": ".png",
    }
    (folder / "dataset.json").write_text(json.dumps(description))


def plan_and_preprocess(job: Job, root: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return nnU-Net's plans, with this batch size, and the description of the data set."""
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api

    api.extract_fingerprints([1], num_processes=job.threads)
    api.plan_experiments([1])
    path = root / "preprocessed" / DATASET / f"{PLANS}.json"
    plans = json.loads(path.read_text())
    plans["configurations"]["2d"]["batch_size"] = BATCH
    path.write_text(json.dumps(plans))
    api.preprocess([1], PLANS, ["2d"], [job.threads])
    description = (root / "raw" / DATASET / "dataset.json").read_text()
    return plans | {"continue_training": False}, json.loads(description)


def fit(job: Job, plans: dict[str, Any], dataset: dict[str, Any]) -> tuple[Any, int]:
    """Return nnU-Net's trainer, trained until the time is over, and the number of its steps."""
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    trainer = nnUNetTrainer(plans, "2d", "all", dataset, device=torch.device("cpu"))
    trainer.disable_checkpointing = True
    trainer.on_train_start()
    trainer.network.train()
    seconds, steps = job.seconds_left, 0
    while (left := job.seconds_left) > 0:
        for group in trainer.optimizer.param_groups:
            group["lr"] = trainer.initial_lr * (left / seconds) ** POWER
        trainer.train_step(next(trainer.dataloader_train))
        steps += 1
    trainer.on_train_end()
    trainer.set_deep_supervision_enabled(False)
    return trainer, steps


def train(job: Job) -> Trained:
    """Let nnU-Net prepare the data, and train until the time is over."""
    root = job.folder / "nnunet"
    folders = {f"nnUNet_{name}": str(root / name) for name in ("raw", "preprocessed", "results")}
    os.environ.update(folders, nnUNet_n_proc_DA="1")
    write_dataset(job, root)

    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    torch.manual_seed(job.seed)
    plans, dataset = plan_and_preprocess(job, root)
    torch.set_num_threads(job.threads)
    trainer, steps = fit(job, plans, dataset)
    predictor = nnUNetPredictor(
        perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
    )
    predictor.manual_initialization(
        trainer.network,
        trainer.plans_manager,
        trainer.configuration_manager,
        [trainer.network.state_dict()],
        dataset,
        "nnUNetTrainer",
        trainer.inference_allowed_mirroring_axes,
    )

    def segment(path: Path) -> Mask:
        image = read_pixels(path, SIZE).transpose(2, 0, 1)[:, None].astype(np.float32)
        properties = {"spacing": (999, 1, 1)}
        probabilities = predictor.predict_single_npy_array(image, properties, None, None, True)[1]
        return mask_at_size_of(path, probabilities[1, 0])

    return Trained(
        segment,
        {"steps": steps, "epochs": round(steps * BATCH / (len(job.train) + len(job.val)), 1)},
    )
