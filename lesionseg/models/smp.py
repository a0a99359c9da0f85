"""The architectures of segmentation-models-pytorch, one row each, through one builder."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lesionseg.errors import InputError
from lesionseg.models.weights import load_encoder
from lesionseg.space import Categorical, Domain, Int, RegistryEntry

#: Encoders with stages of falling resolution, for every architecture but dpt. Those of ``tu-``
#: come from timm.
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

#: Plain vision transformers, which dpt alone can use.
TRANSFORMERS = ("tu-vit_tiny_patch16_224", "tu-vit_small_patch16_224", "tu-deit_tiny_patch16_224")

#: Pairs that the library cannot build or run, and why; a test holds this against the library.
REFUSED: dict[str, frozenset[str]] = {
    # The library says so: their half-resolution features have no channels.
    "unetplusplus": frozenset({"mit_b0", "mit_b1", "mit_b2"}),
    "linknet": frozenset({"mit_b0", "mit_b1", "mit_b2"}),
    # The stages cannot be dilated.
    "deeplabv3": frozenset({"tu-pvt_v2_b0", "tu-pvt_v2_b1"}),
    "deeplabv3plus": frozenset({"tu-pvt_v2_b0", "tu-pvt_v2_b1"}),
    "pan": frozenset({"tu-pvt_v2_b0", "tu-pvt_v2_b1"}),
}


class Architecture(NamedTuple):
    """What tells one architecture of the library from another.

    name: its class in the library.
    paper: its arXiv number.
    stride: what image sizes are multiples of; 0 where the depth decides (``2**encoder_depth``).
    min_image_size: the least image size in pixels that trains with two images, whatever the encoder.
    scse: its decoder can attend by squeeze and excitation over channels and space.
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
    # Its attention halves what the encoder gives three times more.
    "pan": Architecture("PAN", "1805.10180", 16, min_image_size=128),
    "upernet": Architecture("UPerNet", "1807.10221", 32),
    "segformer": Architecture("Segformer", "2105.15203", 32),
    "dpt": Architecture("DPT", "2103.13413", 32),
}

#: What is imported when a network is built.
REQUIRED_IMPORTS = ("segmentation_models_pytorch",)
#: Channels of the decoder's stages, the coarsest first, as the library has them.
DECODER_CHANNELS = (256, 128, 64, 32, 16)


def build_smp(
    architecture: str,
    *,
    encoder: str,
    weights: str = "none",
    encoder_depth: int = 5,
    attention: str = "none",
) -> nn.Module:
    """One of ARCHITECTURES, without the parts of its encoder that its output does not depend on.

    Args:
        architecture: a key of ARCHITECTURES.
        encoder: a name of the library's.
        weights: ``none`` for random ones, ``imagenet``, or a file for the encoder; see
            `lesionseg.models.weights`, also for how to build without them.
        encoder_depth: halvings of the resolution, 3 to 5, where the decoder follows them.
        attention: ``none`` or ``scse`` (Roy et al., arXiv:1803.02579), where the decoder has it.

    Raises InputError: with the library's reason where encoder and architecture do not go
    together, and where the weights cannot be had.
    """
    try:
        # A forward pass with gradients tells what is unused, wherever this is called from.
        with torch.inference_mode(False), torch.enable_grad():
            model = _make(architecture, encoder, encoder_depth, attention)
            _drop_unused(model, ARCHITECTURES[architecture].min_image_size)
    # The library refuses with whatever breaks first.
    except (ValueError, KeyError, NotImplementedError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"model.smp_{architecture}: encoder {encoder!r}: {reason}") from error
    try:
        load_encoder(model, encoder, weights)
    except InputError as error:
        raise InputError(f"model.smp_{architecture}: {error}") from error
    return model


def smp_options() -> dict[str, RegistryEntry]:
    """The rows ``smp_unet``, ``smp_fpn``, ... of MODELS."""
    return {f"smp_{name}": _row(name, row) for name, row in ARCHITECTURES.items()}


def _row(name: str, row: Architecture) -> RegistryEntry:
    encoders = TRANSFORMERS if name == "dpt" else ENCODERS
    choices = tuple(e for e in encoders if e not in REFUSED.get(name, ()))
    space: dict[str, Domain] = {
        "encoder": Categorical(choices, default=choices[0]),
        "weights": Categorical(("none", "imagenet"), default="none", files=True),
    }
    if row.stride == 0:
        space["encoder_depth"] = Int(3, 5, default=5)
    if row.scse:
        space["attention"] = Categorical(("none", "scse"), default="none")
    return RegistryEntry(
        partial(build_smp, name),
        space,
        f"{row.name} of segmentation-models-pytorch; arXiv:{row.paper}",
        stride=partial(_stride, row.stride),
        min_image_size=row.min_image_size,
        fixed_by_default=frozenset({"weights"}),
    )


def _stride(fixed: int, *, encoder_depth: int = 5, **_: object) -> int:
    return fixed or 2**encoder_depth


def _make(architecture: str, encoder: str, depth: int, attention: str) -> nn.Module:
    row = ARCHITECTURES[architecture]
    import segmentation_models_pytorch as smp  # seconds, for who builds none of them

    # By name from the module, so that no misspelt argument is swallowed on the way.
    maker = getattr(smp, row.name)
    chosen: dict[str, object] = {}
    if row.stride == 0:
        chosen["encoder_depth"] = depth
    if row.stride == 0 and architecture != "linknet":
        chosen["decoder_channels"] = DECODER_CHANNELS[:depth]
    if row.scse and attention != "none":
        chosen["decoder_attention_type"] = attention
    if architecture == "dpt":
        chosen["dynamic_img_size"] = True
    model: nn.Module = maker(encoder_name=encoder, encoder_weights=None, classes=1, **chosen)
    return model


class UnusedStage(nn.Module):
    """Stands where a part was that the output does not depend on."""

    def forward(self, x: Tensor, *_: object) -> Tensor:
        """Its first argument."""
        return x


def _drop_unused(model: nn.Module, size: int) -> None:
    """Removes the parts that the output does not depend on and freezes single parameters.

    The library's encoders keep the stages below the depth that is used, some even run one of
    them, and heads for other tasks. They would count as parameters and fill checkpoints.
    """
    mode = model.training
    first = next(model.parameters())
    # In evaluation mode batch norm's statistics and the random state stay as they are.
    logits = model.eval()(torch.zeros(1, 3, size, size, device=first.device))
    model.train(mode)
    reached = set(_leaves(logits))
    _prune(model, reached)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter in reached)


def _prune(module: nn.Module, reached: set[Tensor]) -> None:
    for name, child in list(module.named_children()):
        parameters = set(child.parameters())
        if parameters & reached:
            _prune(child, reached)
        elif parameters:
            setattr(module, name, UnusedStage())


def _leaves(output: Tensor) -> Iterator[Tensor]:
    """The parameters that a tensor was computed from."""
    waiting, seen = [output.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        waiting.extend(following for following, _ in node.next_functions)
