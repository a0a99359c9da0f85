"""Fine-tuning of networks with a pretrained encoder: learning rates by depth, and freezing.

Only networks with a submodule ``encoder`` have an attribute ``fine_tuning``; others train all
parameters alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import Parameter


@dataclass(frozen=True)
class FineTuning:
    """How the encoder of a network is trained. By default it is trained like the decoder.

    Attributes:
        encoder_lr_factor: learning rate of the encoder's deepest stage over that of the decoder.
        frozen_epochs: number of first epochs in which the encoder is not changed. A training of no
            more epochs never trains its encoder, which is allowed.
        layer_decay: factor between the learning rates of one stage of the encoder and of the next
            deeper one.
    """

    encoder_lr_factor: float = 1.0
    frozen_epochs: int = 0
    layer_decay: float = 1.0


def fine_tuning_of(model: nn.Module) -> FineTuning:
    """Return a network's fine-tuning; the default for networks without an encoder."""
    tuning: FineTuning = getattr(model, "fine_tuning", FineTuning())
    return tuning


def lr_factors(model: nn.Module, image_size: int) -> dict[Parameter, float]:
    """Return the factors of the learning rates of the encoder's parameters; none by default.

    The encoder's deepest stage has the factor ``encoder_lr_factor``, each stage before it
    ``layer_decay`` times that of the next one; cf. Clark et al., arXiv:2003.10555, appendix A, and
    Bao et al., arXiv:2106.08254, section 3.1.
    """
    tuning = fine_tuning_of(model)
    if tuning == FineTuning():
        return {}
    encoder = model.get_submodule("encoder")
    if tuning.layer_decay == 1.0:
        return dict.fromkeys(encoder.parameters(), tuning.encoder_lr_factor)
    factors: dict[Parameter, float] = {}
    for distance, stage in enumerate(reversed(find_stages(encoder, image_size))):
        factor = tuning.encoder_lr_factor * tuning.layer_decay**distance
        factors |= dict.fromkeys(stage, factor)
    return factors


def find_stages(encoder: nn.Module, image_size: int) -> list[list[Parameter]]:
    """Return the trainable parameters of an encoder by stage, the shallowest stage first.

    A parameter belongs to the first feature map that depends on it. This holds for convolutional
    encoders, whose feature maps get coarser, and for plain transformers, whose feature maps are
    outputs of several blocks.

    Args:
        encoder: maps images [N, 3, S, S] to feature maps; its mode is restored.
        image_size: side of the images in pixels.
    """
    parameters = [p for p in encoder.parameters() if p.requires_grad]
    training = encoder.training
    image = torch.zeros(1, 3, image_size, image_size, device=parameters[0].device)
    # Evaluation mode does not change batch-norm statistics and the random state.
    with torch.inference_mode(False), torch.enable_grad():
        features = [f for f in _flatten(encoder.eval()(image)) if f.requires_grad]
    encoder.train(training)
    stages: list[list[Parameter]] = []
    for feature in features:
        gradients = torch.autograd.grad(
            feature.sum(), parameters, allow_unused=True, retain_graph=True
        )
        used = [g is not None for g in gradients]
        stages.append([p for p, is_used in zip(parameters, used, strict=True) if is_used])
        parameters = [p for p, is_used in zip(parameters, used, strict=True) if not is_used]
        if not parameters:
            break
    return [stage for stage in stages if stage]


def _flatten(features: object) -> Iterator[Tensor]:
    """Yield the feature maps; encoders of transformers return a list of them and one of tokens."""
    if isinstance(features, Tensor):
        yield features
    elif isinstance(features, list | tuple):
        for feature in features:
            yield from _flatten(feature)


class EncoderFreezing:
    """Keeps the encoder of a network as it is during the first ``frozen_epochs``.

    No gradient is computed for it, and its batch norms use their stored statistics and do not
    change them.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model, self._epochs = model, fine_tuning_of(model).frozen_epochs
        self._encoder = model.get_submodule("encoder") if self._epochs else nn.Identity()
        # Others are never trained: the output does not depend on them.
        self._parameters = [p for p in self._encoder.parameters() if p.requires_grad]

    def start_epoch(self, epoch: int) -> None:
        """Set the network's mode for the training of an epoch, counted from 1."""
        self._model.train()
        is_frozen = epoch <= self._epochs
        if is_frozen:
            self._encoder.eval()
        for parameter in self._parameters:
            parameter.requires_grad_(not is_frozen)
