"""The architectures of segmentation-models-pytorch (smp)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from lesionseg.errors import InputError, one_line
from lesionseg.models.encoders import ENCODERS, TRANSFORMERS, UNSUPPORTED, check_drop_path
from lesionseg.models.fine_tuning import FineTuning
from lesionseg.models.normalisation import normalise_input
from lesionseg.models.weights import load_encoder
from lesionseg.space import Categorical, Domain, Float, Int, RegistryEntry

#: Channels of a decoder by smp's argument: one number, or one for each stage, the coarsest first.
Channels = Mapping[str, int | tuple[int, ...]]

_STAGES: Channels = {"decoder_channels": (256, 128, 64, 32, 16)}


class Architecture(NamedTuple):
    """Properties of one architecture.

    name: class in smp.
    paper: arXiv number.
    channels: smp's default channels of the decoder; empty if they cannot be chosen.
    stride: image sizes are multiples of it; 0 stands for ``2**encoder_depth``.
    min_image_size: smallest image in pixels that can be trained in batches of two with all
        encoders.
    scse: the decoder supports attention by spatial and channel squeeze and excitation.
    multiple: the decoder's channels are multiples of it.
    """

    name: str
    paper: str
    channels: Channels
    stride: int
    min_image_size: int = 32
    scse: bool = False
    multiple: int = 8


ARCHITECTURES = {
    "unet": Architecture("Unet", "1505.04597", _STAGES, 0, scse=True),
    "unetplusplus": Architecture("UnetPlusPlus", "1807.10165", _STAGES, 0, scse=True),
    "manet": Architecture("MAnet", "2009.02130", {**_STAGES, "decoder_pab_channels": 64}, 0),
    "linknet": Architecture("Linknet", "1707.03718", {}, 0),
    "fpn": Architecture(
        "FPN",
        "1901.02446",
        {"decoder_pyramid_channels": 256, "decoder_segmentation_channels": 128},
        32,
        multiple=64,  # its group norm has 32 groups, of at least two channels
    ),
    "pspnet": Architecture("PSPNet", "1612.01105", {"psp_out_channels": 512}, 8),
    "deeplabv3": Architecture("DeepLabV3", "1706.05587", {"decoder_channels": 256}, 8),
    "deeplabv3plus": Architecture("DeepLabV3Plus", "1802.02611", {"decoder_channels": 256}, 16),
    # Its attention halves the encoder's features three more times.
    "pan": Architecture("PAN", "1805.10180", {"decoder_channels": 32}, 16, min_image_size=128),
    "upernet": Architecture("UPerNet", "1807.10221", {"decoder_channels": 256}, 32),
    "segformer": Architecture(
        "Segformer", "2105.15203", {"decoder_segmentation_channels": 256}, 32
    ),
    "dpt": Architecture(
        "DPT",
        "2103.13413",
        {"decoder_intermediate_channels": (256, 512, 1024, 1024), "decoder_fusion_channels": 256},
        32,
    ),
}

#: Scse attention divides channels by 16.
SCSE_MULTIPLE = 16

#: Parameters of every entry for training with pretrained encoders.
FINE_TUNING: dict[str, Domain] = {
    "encoder_lr_factor": Float(0.03, 1.0, default=1.0, log=True),
    "frozen_epochs": Int(0, 10, default=0),
    "layer_decay": Float(0.5, 1.0, default=1.0),
    "drop_path": Float(0.0, 0.5, default=0.0),
}


def build_smp(
    architecture: str,
    *,
    encoder: str,
    weights: str = "none",
    encoder_depth: int = 5,
    attention: str = "none",
    decoder_width: float = 1.0,
    drop_path: float = 0.0,
    **fine_tuning: Any,
) -> nn.Module:
    """Build an architecture without the parts of its encoder that its output does not depend on.

    Args:
        architecture: a key of ARCHITECTURES.
        encoder: smp's name of the encoder.
        weights: weights of the encoder: ``none`` for random ones, ``auto``, ``imagenet``,
            ``bundled``, or a file; see ``lesionseg.models.weights``.
        encoder_depth: halvings of the resolution, 3 to 5, for architectures of stride 0.
        attention: ``none`` or ``scse`` (Roy et al., arXiv:1803.02579), if supported.
        decoder_width: factor of smp's default channels of the decoder.
        drop_path: rate of the encoder's deepest block (Huang et al., arXiv:1603.09382).
        fine_tuning: fields of FineTuning, which the network has as ``fine_tuning``.

    Raises:
        InputError: encoder and architecture are incompatible, the encoder has no drop path, or the
            weights are unavailable.
    """
    try:
        check_drop_path(encoder, drop_path)
        # Unused parts are found by a forward pass with gradients, in any calling context.
        with torch.inference_mode(False), torch.enable_grad():
            model = _make(architecture, encoder, encoder_depth, attention, decoder_width, drop_path)
            _drop_unused(model, ARCHITECTURES[architecture].min_image_size)
        load_encoder(model, encoder, weights)
    except InputError as error:
        raise InputError(f"model.smp_{architecture}: {error}") from error
    # smp has no consistent exception type for unsupported combinations.
    except (ValueError, KeyError, NotImplementedError, TypeError, RuntimeError) as error:
        text = f"model.smp_{architecture}: encoder {encoder!r}: {one_line(error)}"
        raise InputError(text) from error
    normalise_input(model, encoder)
    model.fine_tuning = FineTuning(**fine_tuning)
    return cast(nn.Module, model)


def _entry(name: str, row: Architecture) -> RegistryEntry:
    encoders = TRANSFORMERS if name == "dpt" else ENCODERS
    choices = tuple(e for e in encoders if e not in UNSUPPORTED.get(name, ()))
    sources = ("auto", "imagenet", "bundled", "none")
    pretraining: dict[str, Domain] = {
        "weights": Categorical(sources, default="auto", files=True),
        **FINE_TUNING,
    }
    if row.channels:
        pretraining["decoder_width"] = Float(0.25, 2.0, default=1.0, log=True)
    space: dict[str, Domain] = {"encoder": Categorical(choices, choices[0])}
    if row.stride == 0:
        space["encoder_depth"] = Int(3, 5, default=5)
    if row.scse:
        space["attention"] = Categorical(("none", "scse"), default="none")
    return RegistryEntry(
        partial(build_smp, name),
        space | pretraining,
        f"{row.name} of segmentation-models-pytorch; arXiv:{row.paper}",
        stride=lambda encoder_depth=5, **_: row.stride or 2**encoder_depth,
        min_image_size=row.min_image_size,
        fixed_by_default=frozenset(pretraining),
    )


#: The entries ``smp_unet``, ``smp_fpn``, ... of MODELS.
SMP = {f"smp_{name}": _entry(name, row) for name, row in ARCHITECTURES.items()}


def _make(
    architecture: str,
    encoder: str,
    depth: int,
    attention: str = "none",
    decoder_width: float = 1.0,
    drop_path: float = 0.0,
) -> Any:
    import segmentation_models_pytorch as smp  # takes seconds

    row = ARCHITECTURES[architecture]
    multiple = row.multiple if attention == "none" else max(row.multiple, SCSE_MULTIPLE)
    options: dict[str, object] = dict(_scale_channels(row.channels, decoder_width, multiple, depth))
    if row.stride == 0:
        options["encoder_depth"] = depth
    if row.scse and attention != "none":
        options["decoder_attention_type"] = attention
    if architecture == "dpt":
        options["dynamic_img_size"] = True
    if drop_path > 0:
        options["drop_path_rate"] = drop_path
    # The class itself: smp.create_model ignores unknown arguments.
    return getattr(smp, row.name)(encoder, encoder_weights=None, classes=1, **options)


def _scale_channels(channels: Channels, factor: float, multiple: int, depth: int) -> Channels:
    """Multiply channels by a factor and round them; keep as many stages as the encoder has."""

    def scale(value: int) -> int:
        return max(multiple, round(value * factor / multiple) * multiple)

    return {
        name: scale(value) if isinstance(value, int) else tuple(map(scale, value[:depth]))
        for name, value in channels.items()
    }


class UnusedStage(nn.Module):
    """Replaces a module that the output does not depend on."""

    def forward(self, x: Tensor, *_: object) -> Tensor:
        """Return the first argument."""
        return x


def _drop_unused(model: nn.Module, size: int) -> None:
    """Remove modules that the output does not depend on and freeze such parameters.

    smp's encoders keep the stages below the used depth, some even run one of them, and heads for
    other tasks. They would count as parameters and enlarge checkpoints.
    """
    device = next(model.parameters()).device
    # Evaluation mode does not change batch-norm statistics and the random state.
    logits = model.eval()(torch.zeros(1, 3, size, size, device=device))
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(logits.sum(), parameters, allow_unused=True)
    used = {p for p, g in zip(parameters, gradients, strict=True) if g is not None}
    _replace_unused(model, used)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter in used)


def _replace_unused(module: nn.Module, used: set[nn.Parameter]) -> None:
    for name, child in list(module.named_children()):
        parameters = set(child.parameters())
        if parameters & used:
            _replace_unused(child, used)
        elif parameters:
            setattr(module, name, UnusedStage())
