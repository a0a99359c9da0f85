"""What a child does: the side of ``search.trial_process.process`` that needs torch. Preloaded by its server."""

from __future__ import annotations

import contextlib
import errno
import time
from multiprocessing.connection import Connection

import numpy as np
import torch
import torch._dynamo  # torch does with the first optimizer: here once, before the fork  # noqa: F401
from numpy.typing import NDArray

from lesionseg.config import TrialConfig
from lesionseg.data.cache import Cache
from lesionseg.data.index import Record
from lesionseg.errors import InputError
from lesionseg.inference.evaluate import evaluate
from lesionseg.inference.selection import choose
from lesionseg.models import build_model, count_params
from lesionseg.models.cost import multiply_adds
from lesionseg.runtime.device import pick_device
from lesionseg.runtime.malloc import keep_memory
from lesionseg.runtime.oom import is_short
from lesionseg.runtime.throughput import images_per_second
from lesionseg.training import checkpoint
from lesionseg.training.train import Diverged, EpochRecord, TrainData, train
from lesionseg.training.train import Suspended as Put
from lesionseg.viz import overlays
from lesionseg.viz.trial_sheet import draw_sheet, spread
from search.trial_process.protocol import (
    GO_ON,
    STOP,
    SUSPEND,
    Evaluated,
    EvaluateJob,
    InferenceSelected,
    Job,
    JobError,
    JobOutcome,
    ModelBuilt,
    Reason,
    Resumed,
    SelectInferenceJob,
    StateSaved,
    StepDone,
    Suspended,
    Trained,
    TrainJob,
)

#: Seconds between two signs of life of a training, at least.
SIGN_OF_LIFE = 5.0


def work(job: Job, pipe: Connection) -> JobOutcome:
    """Does the job; ``pipe`` takes Built and EpochRecords and gives the answers."""
    torch.set_num_threads(job.threads)
    if pick_device(job.device).type == "cpu":
        keep_memory()
    match job:
        case TrainJob():
            return _train(job, pipe)
        case SelectInferenceJob():
            return _choose(job)
        case EvaluateJob():
            return _test(job)


def broke(error: Exception, trace: str) -> JobError:
    """An exception as a reason that people can act on."""
    reason: Reason = "crash"
    match error:
        case _ if is_short(error):
            reason = "oom"
        case Diverged():
            reason = "diverged"
        case InputError():
            reason = "config"
        case FileNotFoundError():
            reason = "data"
        case OSError() if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            reason = "disk"
    text = " ".join(str(error).split())
    message = (
        text if isinstance(error, Diverged | InputError) else f"{type(error).__name__}: {text}"
    )
    return JobError(reason, message[:500], trace)


def _train(job: TrainJob, pipe: Connection) -> Trained | Suspended:
    config = TrialConfig.from_dict(job.config)
    device = pick_device(job.device)
    if device.type == "cuda" and job.share < 1:
        torch.cuda.set_per_process_memory_fraction(job.share, device)
    torch.manual_seed(config.seed)  # before the weights are drawn
    model = build_model(config.model, image_size=config.image_size)
    line = _Line(pipe)
    if line.ask(ModelBuilt(count_params(model), multiply_adds(model, config.image_size))):
        raise InputError("refused before training")
    try:
        result = train(
            config,
            TrainData(Cache(job.cache), job.train, job.val),
            line.ask,
            device=device,
            save_to=job.save_to,
            keep=job.keep,
            model=model,
            state=job.state,
            parts=job.parts,
            suspend=line.is_to_suspend,
            on_resume=lambda history: pipe.send(Resumed(history)),
            on_step=line.step,
            on_saved=lambda epoch: pipe.send(StateSaved(epoch)),
        )
    except Put as put:
        return Suspended(put.epoch)
    _draw(job, device)
    return Trained(result)


def _draw(job: TrainJob, device: torch.device) -> None:
    """The trial's picture, with the weights that were kept; without it a trial is as good."""
    if job.picture is None or job.save_to is None:
        return
    with contextlib.suppress(Exception):
        model, _ = checkpoint.load(job.save_to)
        cache = Cache(job.cache)
        draw_sheet(model, cache, spread(cache, job.val), job.picture, device)


class _Line:
    """The training's end of the pipe: what it says, what it is told, and when."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe, self.suspending, self.spoke = pipe, False, time.monotonic()

    def ask(self, message: ModelBuilt | EpochRecord) -> bool:
        """Whether to stop."""
        self.pipe.send(message)
        answer = GO_ON if self.suspending else self.pipe.recv()
        self.suspending = self.suspending or answer == SUSPEND
        return bool(answer == STOP)

    def is_to_suspend(self) -> bool:
        """Whether the training is to be put down here and now."""
        if not self.suspending and self.pipe.poll():
            self.suspending = self.pipe.recv() == SUSPEND
        return self.suspending

    def step(self, epoch: int, step: int, steps: int) -> None:
        """Says now and then that it goes on."""
        if time.monotonic() - self.spoke > SIGN_OF_LIFE:
            self.spoke = time.monotonic()
            self.pipe.send(StepDone(epoch, step, steps))


def _choose(job: SelectInferenceJob) -> InferenceSelected:
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
    return InferenceSelected(choice)


def _test(job: EvaluateJob) -> Evaluated:
    model, config = checkpoint.load(job.weights)
    inference = checkpoint.read_inference(job.weights)
    cache, device = Cache(job.cache), pick_device(job.device)
    shown: dict[str, NDArray[np.bool_]] = {}

    def keep(record: Record, predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> None:
        if record.name in job.show:
            shown[record.name] = overlays.shrunk(predicted)

    evaluation = evaluate(
        model, cache, job.records, device=device, inference=inference, on_image=keep
    )
    speed = {
        kind: images_per_second(model, config.image_size, device, size)
        for kind, size in (("batch", 16), ("single", 1))
    }
    drawn: tuple[tuple[str, str], ...] = ()
    if job.overlays is not None:
        drawn = overlays.draw_overlays(model, cache, evaluation, job.overlays, device, inference)
    return Evaluated(evaluation, speed, drawn, shown)
