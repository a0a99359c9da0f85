"""What a child does: the side of ``search.child`` that needs torch. Preloaded by its server."""

from __future__ import annotations

import time
from multiprocessing.connection import Connection

import torch

from lesionseg import checkpoint, figures
from lesionseg.config import TrialConfig
from lesionseg.data.cache import Cache
from lesionseg.data.split import positions
from lesionseg.device import pick_device
from lesionseg.errors import InputError
from lesionseg.evaluate import evaluate, predict
from lesionseg.models import build_model, count_params
from lesionseg.train import Diverged, EpochRecord, TrainData, train
from search.child import Broke, Built, Reason, Tested, TestJob, Trained, TrainJob


def work(job: TrainJob | TestJob, pipe: Connection) -> Trained | Tested | Broke:
    """Does the job; ``pipe`` takes Built and EpochRecords and gives the answers."""
    torch.set_num_threads(job.threads)
    return _train(job, pipe) if isinstance(job, TrainJob) else _test(job)


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
    model = build_model(config.model)

    def ask(message: Built | EpochRecord) -> bool:
        pipe.send(message)
        stop: bool = pipe.recv()
        return stop

    if ask(Built(count_params(model))):
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


def _test(job: TestJob) -> Tested:
    model, _ = checkpoint.load(job.weights)
    cache, device = Cache(job.cache), pick_device(job.device)
    evaluation = evaluate(model, cache, job.records, device=device)
    where = positions([r.name for r in job.records], cache.names)
    began = time.perf_counter()
    for _ in predict(model, cache, where, device=device):
        pass
    speed = len(where) / (time.perf_counter() - began)
    drawn = figures.draw_overlays(model, cache, evaluation, job.overlays, device)
    return Tested(evaluation.counts, evaluation.shapes, speed, drawn)
