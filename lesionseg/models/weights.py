"""ImageNet weights of the library's encoders: found on disk, fetched, and loaded.

They come from the Hugging Face hub, in the revision that the library pins, and stay in the hub's
own cache, so that another machine's cache folder can be copied over.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lesionseg.errors import InputError, format_some

#: Seconds that a silent hub is waited for.
PATIENCE = 5.0

#: The least share of the encoder's tensors that a file must hold.
LEAST_SHARE = 0.9

#: What files put before the names of an encoder's tensors: nothing, or where it was kept.
PREFIXES = ("", "encoder.", "encoder.model.", "model.", "model.encoder.", "module.", "backbone.")

_UNTOUCHED: ContextVar[bool] = ContextVar("untouched", default=False)


class Source(NamedTuple):
    """One file of one revision of a repository on the hub."""

    repository: str
    revision: str
    file: str = "model.safetensors"


@contextmanager
def skip_pretrained_weights() -> Iterator[None]:
    """Networks built inside keep their random weights, whatever ``weights`` says.

    For those who load a trained checkpoint next: it needs no pretrained file any more. It holds
    for the thread that enters it.
    """
    token = _UNTOUCHED.set(True)
    try:
        yield
    finally:
        _UNTOUCHED.reset(token)


def source_of(encoder: str) -> Source:
    """Where the ImageNet weights of an encoder lie; InputError if none are known."""
    import timm
    from segmentation_models_pytorch.encoders import encoders

    if encoder.startswith("tu-"):
        config = timm.models.get_pretrained_cfg(encoder.removeprefix("tu-"))
        if config is not None and config.hf_hub_id:
            repository, _, revision = config.hf_hub_id.partition("@")
            return Source(repository, revision or "main")
    elif encoder in encoders and "imagenet" in encoders[encoder]["pretrained_settings"]:
        settings = encoders[encoder]["pretrained_settings"]["imagenet"]
        return Source(settings["repo_id"], settings["revision"])
    raise InputError(f"weights: no ImageNet weights of encoder {encoder!r} are known; use none")


def ensure_weights(encoder: str, weights: str) -> None:
    """Makes sure that the weights are on disk, fetching them once if need be.

    Args:
        encoder: an encoder's name as in the tables, such as ``resnet18``.
        weights: ``none``, ``imagenet`` or the path of a .safetensors or .pth file.

    Raises InputError: there is no such file, or it can neither be found nor fetched; it says
    which command fetches it on a machine with a network.
    """
    if weights != "none":
        _locate(encoder, weights)


def load_encoder(model: nn.Module, encoder: str, weights: str) -> None:
    """Loads weights into ``model.encoder``, unless under `untouched`.

    Args:
        model: a network of segmentation-models-pytorch.
        encoder: the name of its encoder.
        weights: ``none`` (nothing is done), ``imagenet`` or a file's path. The names in the file
            may carry the usual prefixes; a classifier's tensors in it are passed over.

    Raises InputError: as `ensure_weights`; or the file cannot be read, has a tensor of another
    shape, or holds fewer than 90 percent of the encoder's tensors.
    """
    if weights == "none" or _UNTOUCHED.get():
        return
    path = _locate(encoder, weights)
    own = _tensors(_inner(model))
    found = _match(own, _read(path))
    if len(found) < LEAST_SHARE * len(own):
        raise InputError(
            f"weights: {path} holds {len(found)} of the {len(own)} tensors of encoder "
            f"{encoder!r}, at least {LEAST_SHARE:.0%} are needed; is it another encoder's file?"
        )
    wrong = [n for n, tensor in found.items() if tensor.shape != own[n].shape]
    if wrong:
        raise InputError(
            f"weights: {path} has other shapes than encoder {encoder!r} for {format_some(wrong)}: "
            f"{list(found[wrong[0]].shape)} instead of {list(own[wrong[0]].shape)}"
        )
    with torch.no_grad():
        for name, tensor in found.items():
            own[name].copy_(tensor)


def _locate(encoder: str, weights: str) -> Path:
    if weights == "imagenet":
        return _from_hub(encoder, source_of(encoder))
    path = Path(weights).expanduser()
    if path.suffix not in (".safetensors", ".pth"):
        raise InputError(f"weights: must be a .safetensors or .pth file, got {weights!r}")
    if not path.is_file():
        raise InputError(f"weights: there is no file {weights!r}")
    return path


def _from_hub(encoder: str, source: Source) -> Path:
    from huggingface_hub import try_to_load_from_cache

    cache = _cache()
    kept = try_to_load_from_cache(
        source.repository, source.file, cache_dir=cache, revision=source.revision
    )
    if isinstance(kept, str):
        return Path(kept)
    reason = "HF_HUB_OFFLINE is set"
    if not _offline():
        try:
            return _fetch(source, cache)
        # The hub's client lets the errors of several libraries through.
        except Exception as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
    raise InputError(
        f"weights: 'imagenet' of encoder {encoder!r} is not in {cache} and cannot be fetched "
        f"({reason}); with a network run `hf download {source.repository} {source.file} "
        f"--revision {source.revision}` and copy the cache folder "
        f"models--{source.repository.replace('/', '--')} into it, or give the path of the file"
    )


def _fetch(source: Source, cache: Path) -> Path:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    # Asked for once beforehand: the download itself tries a missing network for half a minute.
    url = hf_hub_url(source.repository, source.file, revision=source.revision)
    get_hf_file_metadata(url, timeout=PATIENCE)
    return Path(
        hf_hub_download(source.repository, source.file, revision=source.revision, cache_dir=cache)
    )


def _cache() -> Path:
    """The hub's cache folder, by its environment variables as they are now."""
    from huggingface_hub import constants

    if os.environ.get("HF_HUB_CACHE"):
        return Path(os.environ["HF_HUB_CACHE"]).expanduser()
    if os.environ.get("HF_HOME"):
        return Path(os.environ["HF_HOME"]).expanduser() / "hub"
    return Path(constants.HF_HUB_CACHE)


def _offline() -> bool:
    from huggingface_hub import constants

    said = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    return said or bool(constants.HF_HUB_OFFLINE)


def _inner(model: nn.Module) -> nn.Module:
    """The encoder itself; those of timm are wrapped once more."""
    from segmentation_models_pytorch.encoders import TimmUniversalEncoder, TimmViTEncoder

    encoder = model.get_submodule("encoder")
    wrapped = isinstance(encoder, TimmUniversalEncoder | TimmViTEncoder)
    return encoder.get_submodule("model") if wrapped else encoder


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    # Old files lack batch norm's counters, which nothing depends on.
    return {
        name: tensor
        for name, tensor in module.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }


def _read(path: Path) -> Mapping[str, Tensor]:
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        for key in ("state_dict", "model"):
            state = state[key] if isinstance(state.get(key), dict) else state
        return {str(name): t for name, t in state.items() if isinstance(t, Tensor)}
    # What a broken file raises depends on where it is broken: pickle, zip, header, type.
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"weights: {path} cannot be read: {reason}") from error


def _match(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The file's tensors under the encoder's names, by the prefix that fits most of them."""
    best: dict[str, Tensor] = {}
    for prefix in PREFIXES:
        plain = {_flat(k.removeprefix(prefix)): t for k, t in state.items() if k.startswith(prefix)}
        found = {name: plain[_flat(name)] for name in own if _flat(name) in plain}
        best = max(best, found, key=len)
    return best


def _flat(name: str) -> str:
    # timm's feature extractors flatten stages.0 to stages_0 and leave the rest as it is.
    return name.replace(".", "_")
