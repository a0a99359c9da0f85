"""The architectures of segmentation-models-pytorch (smp)."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lesionseg.errors import InputError, one_line
from lesionseg.models.weights import load_encoder
from lesionseg.space import Categorical, Domain, Int, RegistryEntry

#: Hierarchical encoders, for every architecture except dpt; ``tu-`` ones are timm's.
ENCODERS = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnext50_32x4d",
    "se_resnet50",
    "efficientnet-b0",
    "efficientnet-b2",
    "efficientnet-b4",
    "mobilenet_v2",
    "tu-mobilenetv3_large_100",
    "mit_b0",
    "mit_b1",
    "mit_b2",
    "tu-convnext_atto",
    "tu-convnext_tiny",
    "tu-pvt_v2_b0",
    "tu-pvt_v2_b1",
)

#: Plain vision transformers, for dpt only.
TRANSFORMERS = ("tu-vit_tiny_patch16_224", "tu-vit_small_patch16_224", "tu-deit_tiny_patch16_224")

#: Encoders that an architecture cannot be combined with; a test compares this with smp.
UNSUPPORTED: dict[str, frozenset[str]] = {
    # Their half-resolution features have no channels.
    "unetplusplus": frozenset({"mit_b0", "mit_b1", "mit_b2"}),
    "linknet": frozenset({"mit_b0", "mit_b1", "mit_b2"}),
    # The stages cannot be dilated.
    "deeplabv3": frozenset({"tu-pvt_v2_b0", "tu-pvt_v2_b1"}),
    "deeplabv3plus": frozenset({"tu-pvt_v2_b0", "tu-pvt_v2_b1"}),
    "pan": frozenset({"tu-pvt_v2_b0", "tu-pvt_v2_b1"}),
}


class Architecture(NamedTuple):
    """Properties of one architecture.

    name: class in smp.
    paper: arXiv number.
    stride: image sizes are multiples of it; 0 stands for ``2**encoder_depth``.
    min_image_size: smallest image in pixels that can be trained in batches of two with all
        encoders.
    scse: the decoder supports attention by spatial and channel squeeze and excitation.
    """

    name: str
    paper: str
    stride: int
    min_image_size: int = 32
    scse: bool = False


ARCHITECTURES = {
    "unet": Architecture("Unet", "1505.04597", 0, scse=True),
    "unetplusplus": Architecture("UnetPlusPlus", "1807.10165", 0, scse=True),
    "manet": Architecture("MAnet", "2009.02130", 0),
    "linknet": Architecture("Linknet", "1707.03718", 0),
    "fpn": Architecture("FPN", "1901.02446", 32),
    "pspnet": Architecture("PSPNet", "1612.01105", 8),
    "deeplabv3": Architecture("DeepLabV3", "1706.05587", 8),
    "deeplabv3plus": Architecture("DeepLabV3Plus", "1802.02611", 16),
    # Its attention halves the encoder's features three more times.
    "pan": Architecture("PAN", "1805.10180", 16, min_image_size=128),
    "upernet": Architecture("UPerNet", "1807.10221", 32),
    "segformer": Architecture("Segformer", "2105.15203", 32),
    "dpt": Architecture("DPT", "2103.13413", 32),
}

#: Channels of the decoder's stages, the coarsest first; smp's defaults.
DECODER_CHANNELS = (256, 128, 64, 32, 16)


def build_smp(
    architecture: str,
    *,
    encoder: str,
    weights: str = "none",
    encoder_depth: int = 5,
    attention: str = "none",
) -> nn.Module:
    """Build an architecture without the parts of its encoder that its output does not depend on.

    Args:
        architecture: a key of ARCHITECTURES.
        encoder: smp's name of the encoder.
        weights: weights of the encoder: ``none`` for random ones, ``imagenet``, or a file; see
            ``lesionseg.models.weights``.
        encoder_depth: halvings of the resolution, 3 to 5, for architectures of stride 0.
        attention: ``none`` or ``scse`` (Roy et al., arXiv:1803.02579), if supported.

    Raises:
        InputError: encoder and architecture are incompatible, or the weights are unavailable.
    """
    try:
        # Unused parts are found by a forward pass with gradients, in any calling context.
        with torch.inference_mode(False), torch.enable_grad():
            model = _make(architecture, encoder, encoder_depth, attention)
            _drop_unused(model, ARCHITECTURES[architecture].min_image_size)
    # smp has no consistent exception type for unsupported combinations.
    except (ValueError, KeyError, NotImplementedError, TypeError, RuntimeError) as error:
        text = f"model.smp_{architecture}: encoder {encoder!r}: {one_line(error)}"
        raise InputError(text) from error
    try:
        load_encoder(model, encoder, weights)
    except InputError as error:
        raise InputError(f"model.smp_{architecture}: {error}") from error
    return model


def _entry(name: str, row: Architecture) -> RegistryEntry:
    encoders = TRANSFORMERS if name == "dpt" else ENCODERS
    choices = tuple(e for e in encoders if e not in UNSUPPORTED.get(name, ()))
    weights = Categorical(("none", "imagenet"), default="none", files=True)
    space: dict[str, Domain] = {"encoder": Categorical(choices, choices[0]), "weights": weights}
    if row.stride == 0:
        space["encoder_depth"] = Int(3, 5, default=5)
    if row.scse:
        space["attention"] = Categorical(("none", "scse"), default="none")
    return RegistryEntry(
        partial(build_smp, name),
        space,
        f"{row.name} of segmentation-models-pytorch; arXiv:{row.paper}",
        stride=lambda encoder_depth=5, **_: row.stride or 2**encoder_depth,
        min_image_size=row.min_image_size,
        fixed_by_default=frozenset({"weights"}),
    )


#: The entries ``smp_unet``, ``smp_fpn``, ... of MODELS.
SMP = {f"smp_{name}": _entry(name, row) for name, row in ARCHITECTURES.items()}


def _make(architecture: str, encoder: str, depth: int, attention: str) -> nn.Module:
    import segmentation_models_pytorch as smp  # takes seconds

    row, options = ARCHITECTURES[architecture], dict[str, object]()
    if row.stride == 0:
        options["encoder_depth"] = depth
    if row.stride == 0 and architecture != "linknet":
        options["decoder_channels"] = DECODER_CHANNELS[:depth]
    if row.scse and attention != "none":
        options["decoder_attention_type"] = attention
    if architecture == "dpt":
        options["dynamic_img_size"] = True
    # The class itself: smp.create_model ignores unknown arguments.
    model: nn.Module = getattr(smp, row.name)(encoder, encoder_weights=None, classes=1, **options)
    return model


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
