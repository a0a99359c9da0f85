"""export: a trained model as one ONNX file that needs nothing of this project to run.

What is inside: normalisation, the network, the views of test-time augmentation and their mean.
What is not: resizing before it, and what the chain does after it. The file's metadata say all of
that, so that whoever runs it need not ask.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lesionseg.data.image_io import Pixels
from lesionseg.data.loader import MEAN, STD
from lesionseg.errors import InputError
from lesionseg.inference.mask_stats import Probability
from lesionseg.inference.postprocess import DEFAULT_THRESHOLD
from lesionseg.inference.predictor import Segmenter
from lesionseg.inference.tta import TTA

#: Format of the metadata; raise the number when a key changes its meaning.
FORMAT = "lesionsearch-onnx/1"
#: Names of the input and the output, and the version of ONNX's operators.
INPUT, OUTPUT, OPSET = "image", "probability", 20
#: What the file needs to be written and to be checked.
NEEDS = ("onnx", "onnxscript", "onnxruntime")


class PortableModel(nn.Module):
    """Images float [N, 3, S, S], RGB in [0, 1], to the lesion's probability [N, 1, S, S]."""

    mean: Tensor
    scale: Tensor

    def __init__(self, model: nn.Module, tta: str) -> None:
        super().__init__()
        self.model, self.views = model, TTA[tta]
        self.register_buffer("mean", torch.tensor(MEAN).reshape(1, 3, 1, 1) / 255)
        self.register_buffer("scale", 255 / torch.tensor(STD).reshape(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """The mean over the views; each is turned back."""
        x = (image - self.mean) * self.scale
        # One after the other: all at once would take the memory of so many batches.
        found = [view.undo(torch.sigmoid(self.model(view.apply(x)))) for view in self.views]
        return torch.stack(found).mean(0) if len(found) > 1 else found[0]


@dataclass(frozen=True)
class OnnxComparison:
    """How near ONNX Runtime comes to torch on the same images.

    images: how many. largest: the largest difference in probability. agreement: the mean Dice
    between the two masks at the network's size, 1 where they are the same.
    """

    images: int
    max_difference: float
    mean_dice: float


def export_onnx(segmenter: Segmenter, path: Path, about: Mapping[str, str] | None = None) -> None:
    """Writes the file.

    Args:
        segmenter: the model; it is left as it is.
        path: is replaced.
        about: more metadata, such as the study's name.

    Raises:
        InputError: a package is missing, or the network cannot be written as ONNX.
    """
    require_onnx()
    import onnx

    size = segmenter.image_size
    # A copy, plain in memory and on the CPU: the layout of the weights is no matter of the file.
    model = copy.deepcopy(segmenter.model).cpu().to(memory_format=torch.contiguous_format)
    portable = PortableModel(model, segmenter.inference.tta).eval()
    example = torch.rand(2, 3, size, size)
    try:
        with _quiet(), torch.inference_mode(False), torch.no_grad():
            program = torch.onnx.export(
                portable,
                (example,),
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                opset_version=OPSET,
                verbose=False,
            )
        assert program is not None
        proto = program.model_proto
    # What breaks depends on the network: its own code, the tracer, an operator that ONNX lacks.
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(
            f"export: {segmenter.config.model.name} cannot be written as ONNX: {reason}"
        ) from error
    onnx.helper.set_model_props(proto, dict(build_metadata(segmenter)) | dict(about or {}))
    onnx.save_model(proto, str(path))


def build_metadata(segmenter: Segmenter) -> dict[str, str]:
    """What goes in, what comes out and what is still to be done, for the file's metadata."""
    size, chain = segmenter.image_size, segmenter.inference.chain
    cuts = [float(p.params["value"]) for p in chain if p.name == "threshold"]
    return {
        "format": FORMAT,
        "model": segmenter.config.model.name,
        "input": f"{INPUT}: float32 [N, 3, {size}, {size}], RGB, 0 to 1; normalised inside",
        "output": f"{OUTPUT}: float32 [N, 1, {size}, {size}], the lesion's probability, 0 to 1",
        "image_size": str(size),
        "channels": "RGB",
        "range": "0 to 1",
        "resize": "bilinear with antialiasing to a square, whatever the aspect (PIL BILINEAR)",
        "tta": segmenter.inference.tta,
        "threshold": str(cuts[0] if cuts else DEFAULT_THRESHOLD),
        "after": "resize the probability bilinearly to the picture's size; lesion is what is "
        "strictly above the threshold; then the other steps of the chain, which are not inside",
        "chain": json.dumps(segmenter.inference.to_dict()["chain"]),
        "config": json.dumps(segmenter.config.to_dict()),
    }


class OnnxModel:
    """An exported file as ONNX Runtime runs it, on the CPU.

    Raises InputError where the file cannot be run.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        require_onnx()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        try:
            self.session: Any = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        # Its own exceptions have no common base that is public.
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"{path}: ONNX Runtime cannot run it: {reason}") from error

    @property
    def metadata(self) -> dict[str, str]:
        """What ``contract`` gave when it was written."""
        return dict(self.session.get_modelmeta().custom_metadata_map)

    def probabilities(self, images: Pixels) -> Probability:
        """The lesion's probability [N, S, S] for uint8 [N, S, S, 3], RGB."""
        plain = images.transpose(0, 3, 1, 2).astype(np.float32) / 255
        (found,) = self.session.run([OUTPUT], {INPUT: np.ascontiguousarray(plain)})
        return np.asarray(found[:, 0], np.float32)


def compare_with_torch(segmenter: Segmenter, path: Path, images: Pixels, batch_size: int = 8) -> OnnxComparison:
    """An exported file against torch in single precision on images uint8 [N, S, S, 3]."""
    portable, max_difference, dice = OnnxModel(path), 0.0, []
    cut = float(portable.metadata["threshold"])
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        ours, theirs = segmenter.probabilities(batch), portable.probabilities(batch)
        max_difference = max(max_difference, float(np.abs(ours - theirs).max()))
        for one, other in zip(ours > cut, theirs > cut, strict=True):
            both = int(one.sum() + other.sum())
            dice.append(2 * int((one & other).sum()) / both if both else 1.0)
    return OnnxComparison(len(images), max_difference, float(np.mean(dice)))


def require_onnx() -> None:
    """InputError where a package of the extra ``onnx`` is missing."""
    lacking = [name for name in NEEDS if find_spec(name) is None]
    if lacking:
        raise InputError(
            f"export: needs {', '.join(lacking)}; install the extra: pip install "
            f"'lesionsearch[onnx]'"
        )


@contextlib.contextmanager
def _quiet() -> Any:
    """Without what the exporter prints, warns and logs of its own progress."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
