"""train(): train one configuration and return its history and the kept weights."""

from __future__ import annotations

from collections.abc import Callable

from lesionseg.config import TrialConfig
from lesionseg.models import build_model
from lesionseg.runtime.device import configure_torch
from lesionseg.training import checkpoint
from lesionseg.training.trainer import Trainer
from lesionseg.training.training_state import CheckpointManager, state_identity
from lesionseg.training.types import EpochRecord, TrainData, TrainOptions, TrainResult


def train(
    config: TrialConfig,
    data: TrainData,
    on_epoch: Callable[[EpochRecord], bool] = lambda record: False,
    options: TrainOptions | None = None,
) -> TrainResult:
    """Train the configuration's network.

    The value that is passed to ``on_epoch`` and the returned one are the same statistic: the mean
    Dice per validation image at the configuration's image size. On a CPU, equal arguments and
    thread counts give bit-identical results, with or without suspensions.

    Args:
        config: what to train.
        data: training and validation images.
        on_epoch: called after each epoch; True stops the training.
        options: device, files, callbacks; the defaults of TrainOptions if None.

    Raises:
        InputError: the configuration cannot be built.
        Diverged: a loss became NaN or infinite.
        Suspended: ``options.should_suspend`` returned True.
    """
    options = options or TrainOptions()
    configure_torch(options.device, config.seed)
    model = options.model or build_model(config.model, image_size=config.image_size)
    identity = {}
    if options.state_path:
        parts = {"train": data.train, "val": data.val, "keep": options.keep}
        identity = state_identity(config, data.cache, **parts)
    checkpoints = CheckpointManager(options.state_path, identity, options.on_saved)
    trainer = Trainer(config, data, model, options, checkpoints)
    if checkpoints.load(trainer):
        options.on_resume(tuple(trainer.history))
    stopped = trainer.run(on_epoch)
    assert trainer.best is not None and trainer.best_weights is not None
    if options.weights_path is not None:
        checkpoint.save(options.weights_path, trainer.best_weights, config)
    return TrainResult(
        best=trainer.best,
        history=tuple(trainer.history),
        stopped=stopped,
        seconds=trainer.clock.seconds(),
        peak_memory=trainer.peak_memory,
        checkpoint=options.weights_path,
    )
