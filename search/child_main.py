"""What a child does: the side of ``search.child`` that needs torch. Preloaded by its server."""

from __future__ import annotations

from multiprocessing.connection import Connection

import numpy as np
import torch
from numpy.typing import NDArray

from lesionseg import checkpoint, figures
from lesionseg.config import TrialConfig
from lesionseg.data.cache import Cache
from lesionseg.data.index import Record
from lesionseg.device import pick_device
from lesionseg.errors import InputError
from lesionseg.evaluate import evaluate
from lesionseg.inference import choose
from lesionseg.models import build_model, count_params
from lesionseg.models.cost import multiply_adds
from lesionseg.speed import images_per_second
from lesionseg.train import Diverged, EpochRecord, TrainData, train
from search.child import (
    Broke,
    Built,
    ChooseJob,
    Chosen,
    Job,
    Reason,
    Tested,
    TestJob,
    Trained,
    TrainJob,
)


def work(job: Job, pipe: Connection) -> Trained | Chosen | Tested | Broke:
    """Does the job; ``pipe`` takes Built and EpochRecords and gives the answers."""
    torch.set_num_threads(job.threads)
    match job:
        case TrainJob():
            return _train(job, pipe)
        case ChooseJob():
            return _choose(job)
        case TestJob():
            return _test(job)


def broke(error: Exception, trace: str) -> Broke:
    """An exception as a reason that people can act on."""
    reason: Reason = "crash"
    match error:
        case torch.OutOfMemoryError() | MemoryError():
            reason = "oom"
        case Diverged():
            reason = "diverged"
        case InputError():
            reason = "config"
    text = " ".join(str(error).split())
    message = (
        text if isinstance(error, Diverged | InputError) else f"{type(error).__name__}: {text}"
    )
    return Broke(reason, message[:500], trace)


def _train(job: TrainJob, pipe: Connection) -> Trained:
    config = TrialConfig.from_dict(job.config)
    torch.manual_seed(config.seed)  # before the weights are drawn
    model = build_model(config.model, image_size=config.image_size)

    def ask(message: Built | EpochRecord) -> bool:
        pipe.send(message)
        stop: bool = pipe.recv()
        return stop

    if ask(Built(count_params(model), multiply_adds(model, config.image_size))):
        raise InputError("refused before training")
    result = train(
        config,
        TrainData(Cache(job.cache), job.train, job.val),
        ask,
        device=pick_device(job.device),
        save_to=job.save_to,
        keep=job.keep,
        model=model,
    )
    return Trained(result)


def _choose(job: ChooseJob) -> Chosen:
    model, _ = checkpoint.load(job.weights)
    cache = Cache(job.cache)
    choice = choose(
        model,
        cache.images[job.members],
        cache.masks[job.members],
        device=pick_device(job.device),
        ttas=("none", "flips", "d4") if job.tta else ("none",),
        postprocess=job.postprocess,
    )
    checkpoint.set_inference(job.weights, choice.inference)
    return Chosen(choice)


def _test(job: TestJob) -> Tested:
    model, config = checkpoint.load(job.weights)
    inference = checkpoint.read_inference(job.weights)
    cache, device = Cache(job.cache), pick_device(job.device)
    shown: dict[str, NDArray[np.bool_]] = {}

    def keep(record: Record, predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> None:
        if record.name in job.show:
            shown[record.name] = figures.shrunk(predicted)

    evaluation = evaluate(
        model, cache, job.records, device=device, inference=inference, on_image=keep
    )
    speed = {
        kind: images_per_second(model, config.image_size, device, size)
        for kind, size in (("batch", 16), ("single", 1))
    }
    drawn: tuple[tuple[str, str], ...] = ()
    if job.overlays is not None:
        drawn = figures.draw_overlays(model, cache, evaluation, job.overlays, device, inference)
    return Tested(evaluation, speed, drawn, shown)
