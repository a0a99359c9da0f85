"""Main module of the training process; the fork server imports it, and with it torch."""

from __future__ import annotations

import contextlib
import errno
import time
from multiprocessing.connection import Connection

import numpy as np
import torch
import torch._dynamo  # the first optimizer imports it: once, before the fork  # noqa: F401
from numpy.typing import NDArray

from lesionseg.config import TrialConfig
from lesionseg.data.cache import Cache
from lesionseg.data.pairs import Record
from lesionseg.errors import InputError
from lesionseg.inference.ensemble import Ensemble
from lesionseg.inference.ensemble_selection import MAX_BYTES, select_ensemble
from lesionseg.inference.evaluate import evaluate
from lesionseg.inference.selection import select_inference
from lesionseg.models import build_model, count_params, multiply_adds
from lesionseg.runtime.device import is_device_lost, pick_device
from lesionseg.runtime.oom import is_out_of_memory
from lesionseg.runtime.throughput import images_per_second
from lesionseg.training import checkpoint
from lesionseg.training.measure import measure_training
from lesionseg.training.train import train
from lesionseg.training.types import Diverged, EpochRecord, Suspended, TrainData, TrainOptions
from lesionseg.viz import overlays
from lesionseg.viz.trial_sheet import select_by_area, write_trial_sheet
from search.trial_process import protocol

#: Errors of a disk that is full, failing or disconnected.
DISK_ERRORS = frozenset(
    {
        errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE,
        errno.ENODEV, errno.ENXIO, errno.ENOTCONN,
    }
)  # fmt: skip
#: Seconds between two StepDone messages, at least.
STEP_MESSAGE_S = 5.0
#: Part of a slot's memory for the probabilities of an ensemble's candidates.
PROBABILITIES_SHARE = 0.25


def run_job(job: protocol.Job, pipe: Connection) -> protocol.JobOutcome:
    """Run a job; messages are sent to ``pipe``, and replies read from it."""
    torch.set_num_threads(job.slot.threads)
    try:
        device = pick_device(job.slot.device)
    except InputError as error:  # the worker has checked the name
        return protocol.JobError(protocol.ErrorReason.DEVICE, str(error))
    if device.type == "cuda":
        # Without it, parts of torch would create a context on the first GPU too.
        torch.cuda.set_device(device)
        if job.slot.share < 1:
            torch.cuda.set_per_process_memory_fraction(job.slot.share, device)
    match job:
        case protocol.TrainJob():
            return _train(job, device, pipe)
        case protocol.SelectInferenceJob():
            return _select_inference(job, device)
        case protocol.SelectEnsembleJob():
            return _select_ensemble(job, device)
        case protocol.EvaluateJob():
            return _evaluate(job, device)
        case protocol.MeasureJob():
            return _measure(job, device)


def describe_error(error: Exception, trace: str) -> protocol.JobError:
    """Return the reason of an exception and one line that describes it."""
    text = " ".join(str(error).split())
    if not isinstance(error, Diverged | InputError):
        text = f"{type(error).__name__}: {text}"
    return protocol.JobError(_reason_of(error), text[:500], trace)


def _reason_of(error: Exception) -> protocol.ErrorReason:
    match error:
        case _ if is_out_of_memory(error):
            return protocol.ErrorReason.OOM
        case _ if is_device_lost(error):
            return protocol.ErrorReason.DEVICE
        case Diverged():
            return protocol.ErrorReason.DIVERGED
        case InputError():
            return protocol.ErrorReason.CONFIG
        case FileNotFoundError():
            return protocol.ErrorReason.DATA
        case OSError() if error.errno in DISK_ERRORS:
            return protocol.ErrorReason.DISK
    return protocol.ErrorReason.CRASH


def _train(
    job: protocol.TrainJob, device: torch.device, pipe: Connection
) -> protocol.Trained | protocol.Suspended:
    config = TrialConfig.from_dict(job.config)
    torch.manual_seed(config.seed)  # before the weights are initialized
    model = build_model(config.model, image_size=config.image_size)
    channel = Channel(pipe)
    built = protocol.ModelBuilt(count_params(model), multiply_adds(model, config.image_size))
    if channel.send(built):
        raise InputError("stopped before training")
    data = TrainData(Cache(job.cache), job.train, job.val)

    # Do not report or save results of pixels that were truncated.
    def send(record: EpochRecord) -> bool:
        data.cache.check_size()
        return channel.send(record)

    def should_suspend() -> bool:
        data.cache.check_size()
        return channel.is_suspended()

    try:
        result = train(
            config,
            data,
            send,
            TrainOptions(
                device=device,
                model=model,
                weights_path=job.weights_path,
                should_write=lambda: job.keep_stopped or not channel.stopped,
                keep=job.keep,
                state_path=job.state_path,
                accumulation_factor=job.accumulation_factor,
                should_suspend=should_suspend,
                on_resume=lambda history: pipe.send(protocol.Resumed(history)),
                on_step=channel.send_step,
                on_saved=lambda epoch, seconds: pipe.send(protocol.StateSaved(epoch, seconds)),
            ),
        )
    except Suspended as suspended:
        return protocol.Suspended(suspended.epoch)
    if job.picture_path is not None and (job.keep_stopped or not channel.stopped):
        with contextlib.suppress(Exception):  # an error costs only the picture
            images = select_by_area(data.cache, job.val)
            write_trial_sheet(model, data.cache, images, job.picture_path, device, config.amp)
    return protocol.Trained(result)


class Channel:
    """The training's end of the pipe. stopped: whether the reply STOP was received."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe, self.suspended, self.stopped = pipe, False, False
        self.last_step_at = time.monotonic()

    def send(self, message: protocol.ModelBuilt | EpochRecord) -> bool:
        """Send a message and wait for the reply; return whether to stop."""
        self.pipe.send(message)
        if self.suspended:
            return False
        reply = self.pipe.recv()
        self.suspended = reply == protocol.Reply.SUSPEND
        self.stopped = reply == protocol.Reply.STOP
        return self.stopped

    def is_suspended(self) -> bool:
        if not self.suspended and self.pipe.poll():
            self.suspended = self.pipe.recv() == protocol.Reply.SUSPEND
        return self.suspended

    def send_step(self, epoch: int, step: int, steps: int) -> None:
        """Send StepDone, at most every STEP_MESSAGE_S seconds."""
        if time.monotonic() - self.last_step_at > STEP_MESSAGE_S:
            self.last_step_at = time.monotonic()
            self.pipe.send(protocol.StepDone(epoch, step, steps))


def _select_inference(
    job: protocol.SelectInferenceJob, device: torch.device
) -> protocol.InferenceSelected:
    model, config = checkpoint.load(job.weights)
    cache = Cache(job.cache)
    choice = select_inference(
        model,
        cache.images[job.val],
        cache.masks[job.val],
        device=device,
        amp=config.amp,
        tta=job.tta,
        postprocess=job.postprocess,
        scale_free=job.scale_free,
    )
    cache.check_size()
    checkpoint.set_inference(job.weights, choice.inference)
    return protocol.InferenceSelected(choice)


def _select_ensemble(
    job: protocol.SelectEnsembleJob, device: torch.device
) -> protocol.EnsembleSelected:
    cache, memory_gb = Cache(job.cache), job.slot.memory_gb
    choice = select_ensemble(
        job.candidates,
        cache.images[job.val],
        cache.masks[job.val],
        limit=job.limit,
        device=device,
        max_bytes=MAX_BYTES if memory_gb is None else int(memory_gb * 1e9 * PROBABILITIES_SHARE),
    )
    cache.check_size()
    members = []
    for member in choice.members:
        model, config = checkpoint.load(job.candidates[member.index])
        members.append(checkpoint.MemberWeights(model.state_dict(), config, member.weight))
    checkpoint.save_ensemble(job.out, members)
    return protocol.EnsembleSelected(choice)


def _evaluate(job: protocol.EvaluateJob, device: torch.device) -> protocol.Evaluated:
    model, config = checkpoint.load(job.weights)
    inference = checkpoint.read_inference(job.weights)
    cache = Cache(job.cache)
    masks: dict[str, NDArray[np.bool_]] = {}

    def keep_mask(record: Record, predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> None:
        if record.name in job.show:
            masks[record.name] = overlays.shrink_mask(predicted)

    evaluation = evaluate(
        model, cache, job.records, device=device, inference=inference, amp=config.amp,
        on_image=keep_mask,
    )  # fmt: skip
    cache.check_size()
    speed = {
        kind: images_per_second(model, config.image_size, device, size, config.amp)
        for kind, size in (("batch", 16), ("single", 1))
    }
    if isinstance(model, Ensemble) and job.best_member is not None:
        member = model.members[job.best_member]
        speed["member"] = images_per_second(member, config.image_size, device, 16, config.amp)
    files = job.overlays and overlays.write_overlays(
        model, cache, evaluation, job.overlays, device, inference, config.amp
    )
    return protocol.Evaluated(evaluation, speed, files or (), masks)


def _measure(job: protocol.MeasureJob, device: torch.device) -> protocol.Measured:
    config = TrialConfig.from_dict(job.config)
    # Random weights: a measurement must not fetch files.
    model = build_model(config.model, image_size=config.image_size, load_pretrained=False)
    params, macs = count_params(model), multiply_adds(model, config.image_size)
    data = TrainData(Cache(job.cache), job.members, job.members)
    speed = measure_training(config, data, model, device, job.steps)
    return protocol.Measured(
        speed.seconds_per_step, speed.seconds_per_val_image, speed.peak_memory, params, macs
    )
