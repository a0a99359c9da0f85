"""Pretrained ImageNet weights of encoders: find, download and load them.

``imagenet`` is a file of the Hugging Face hub, in the revision that smp or timm pins. Files are
stored in the hub's cache, which can be copied to a machine without network. ``bundled`` is a file
of an installed package. ``auto`` is the first of ``imagenet``, ``bundled`` and ``none`` that is
available.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lesionseg.errors import InputError, format_some, one_line
from lesionseg.models.weight_files import (
    bundled_file,
    has_bundled,
    read_bundled,
    read_tensors,
)

#: The file of the weights in a repository, and the timeout for a hub that does not respond.
HUB_FILE, HUB_TIMEOUT_S = "model.safetensors", 5.0

#: Minimum share of the encoder's tensors that a file must contain.
MIN_TENSOR_SHARE = 0.9

#: Prefixes of the names of an encoder's tensors in files.
PREFIXES = ("", "encoder.", "encoder.model.", "model.", "model.encoder.", "module.", "backbone.")

#: Addresses of hubs that could not be reached; ``auto`` does not retry them in this process.
_unreachable_hubs: set[str] = set()


def resolve_weights(encoder: str, weights: str = "auto", *, fetch: bool = False) -> str:
    """Replace ``auto`` by the best source of ImageNet weights; other values are returned as given.

    Args:
        encoder: smp's name of the encoder.
        weights: as in ``ensure_weights``.
        fetch: download the hub's file if it is not in the cache. A hub that could not be
            reached is not retried in this process.

    Returns:
        ``imagenet``, ``bundled``, ``none`` or the path of a file.
    """
    if weights != "auto":
        return weights
    if _has_imagenet(encoder, fetch):
        return "imagenet"
    return "bundled" if has_bundled(encoder) else "none"


def source_of(encoder: str) -> tuple[str, str]:
    """Return the repository and revision of ImageNet weights; InputError if there are none."""
    import timm
    from segmentation_models_pytorch.encoders import encoders

    if encoder.startswith("tu-"):
        config = timm.models.get_pretrained_cfg(encoder.removeprefix("tu-"))
        if config is not None and config.hf_hub_id:
            repository, _, revision = config.hf_hub_id.partition("@")
            return repository, revision or "main"
    elif encoder in encoders and "imagenet" in encoders[encoder]["pretrained_settings"]:
        settings = encoders[encoder]["pretrained_settings"]["imagenet"]
        return settings["repo_id"], settings["revision"]
    raise InputError(f"weights: no ImageNet weights of encoder {encoder!r} are known; use none")


def ensure_weights(encoder: str, weights: str) -> None:
    """Check that the weights are on disk and download them if necessary.

    Args:
        encoder: smp's name of the encoder, such as ``resnet18``.
        weights: ``none``, ``auto``, ``imagenet``, ``bundled``, or the path of a .safetensors or
            .pth file.

    Raises:
        InputError: no such file, no bundled weights of this encoder, their package is not
            installed, or the hub's file cannot be downloaded; the message contains the command
            that installs or downloads it.
    """
    weights = resolve_weights(encoder, weights)
    if weights != "none":
        _locate(encoder, weights)


def load_encoder(model: nn.Module, encoder: str, weights: str) -> None:
    """Load weights into ``model.encoder``.

    Args:
        model: a network of segmentation-models-pytorch.
        encoder: smp's name of its encoder.
        weights: as in ``ensure_weights``; ``auto`` is resolved without network. The names in a
            file may have the usual prefixes; tensors of a classifier are ignored.

    Raises:
        InputError: as in ``ensure_weights``; or the file cannot be read, has a tensor of another
            shape, or contains fewer than 90% of the encoder's tensors.
    """
    from segmentation_models_pytorch.encoders import TimmUniversalEncoder, TimmViTEncoder

    weights = resolve_weights(encoder, weights)
    if weights == "none":
        return
    path = _locate(encoder, weights)
    state = read_bundled(encoder) if weights == "bundled" else read_tensors(path)
    inner = model.get_submodule("encoder")
    if isinstance(inner, TimmUniversalEncoder | TimmViTEncoder):  # smp's wrappers
        inner = inner.get_submodule("model")
    # Without batch norm's counters, which old files lack and nothing depends on.
    targets = {n: t for n, t in inner.state_dict().items() if not n.endswith("_batches_tracked")}
    tensors = _match_names(targets, state)
    if len(tensors) < MIN_TENSOR_SHARE * len(targets):
        raise InputError(
            f"weights: {path} holds {len(tensors)} of the {len(targets)} tensors of encoder "
            f"{encoder!r}, at least {MIN_TENSOR_SHARE:.0%} are needed; is it another encoder's "
            "file?"
        )
    wrong = [n for n, tensor in tensors.items() if tensor.shape != targets[n].shape]
    if wrong:
        raise InputError(
            f"weights: {path} has other shapes than encoder {encoder!r} for {format_some(wrong)}: "
            f"{list(tensors[wrong[0]].shape)} instead of {list(targets[wrong[0]].shape)}"
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            targets[name].copy_(tensor)


def _locate(encoder: str, weights: str) -> Path:
    if weights == "imagenet":
        return _from_hub(encoder)
    if weights == "bundled":
        return bundled_file(encoder)
    path = Path(weights).expanduser()
    if path.suffix not in (".safetensors", ".pth"):
        raise InputError(f"weights: must be a .safetensors or .pth file, got {weights!r}")
    if not path.is_file():
        raise InputError(f"weights: there is no file {weights!r}")
    return path


def _has_imagenet(encoder: str, fetch: bool) -> bool:
    from huggingface_hub import constants

    try:
        if _in_cache(encoder) is None:
            if not fetch or constants.ENDPOINT in _unreachable_hubs:
                return False
            _from_hub(encoder)
    except InputError:
        return False
    return True


def _in_cache(encoder: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    repository, revision = source_of(encoder)
    cached = try_to_load_from_cache(repository, HUB_FILE, revision=revision)
    return Path(cached) if isinstance(cached, str) else None


def _from_hub(encoder: str) -> Path:
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    if cached := _in_cache(encoder):
        return cached
    repository, revision = source_of(encoder)
    try:
        # Without network this fails at once; the download retries for half a minute.
        url = hf_hub_url(repository, HUB_FILE, revision=revision)
        get_hf_file_metadata(url, timeout=HUB_TIMEOUT_S)
        return Path(hf_hub_download(repository, HUB_FILE, revision=revision))
    except Exception as error:  # the hub's client passes on errors of several libraries
        if not isinstance(error, HfHubHTTPError):  # an HTTP error is a response of the hub
            _unreachable_hubs.add(constants.ENDPOINT)
        raise InputError(
            f"weights: 'imagenet' of encoder {encoder!r} is not in {constants.HF_HUB_CACHE} and "
            f"cannot be fetched ({one_line(error)}); with a network run `hf download {repository} "
            f"{HUB_FILE} --revision {revision}` and copy the cache folder "
            f"models--{repository.replace('/', '--')} into it, or give the path of the file"
        ) from error


def _match_names(targets: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the file's tensors by the encoder's names, with the prefix that matches most."""
    # Flattened: timm's feature extractors rename stages.0 to stages_0.
    flat = {name.replace(".", "_"): tensor for name, tensor in state.items()}
    prefixes = [prefix.replace(".", "_") for prefix in PREFIXES]
    keys = {name: name.replace(".", "_") for name in targets}
    matches = ({n: flat[p + k] for n, k in keys.items() if p + k in flat} for p in prefixes)
    return max(matches, key=len)
