"""Export a trained model as an ONNX file that runs without this project.

The file contains normalisation, the network or all members of an ensemble, and test-time
augmentation. It does not contain the resizing before and the postprocessing after it, which its
metadata describe.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lesionseg.data.image_io import Pixels
from lesionseg.data.loader import MEAN, STD
from lesionseg.errors import InputError, one_line
from lesionseg.inference.ensemble import Ensemble, mean_and_deviation
from lesionseg.inference.postprocess import DEFAULT_THRESHOLD, Probability
from lesionseg.inference.predictor import Segmenter
from lesionseg.inference.tta import TTA, NetworkOutput
from lesionseg.metrics.overlap import dice_score

#: Format of the metadata; increase the number when a key changes its meaning.
FORMAT = "lesionsearch-onnx/1"
#: Names of input and outputs, the second one of an ensemble only; the version of ONNX's operators.
INPUT, OUTPUTS, OPSET = "image", ("probability", "uncertainty"), 20
#: Packages that are needed to write and to check the file.
REQUIRED_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class PortableModel(nn.Module):
    """The exported module: images float [N, 3, S, S] in [0, 1] to OUTPUTS, [N, 1, S, S] each."""

    mean: Tensor
    scale: Tensor

    def __init__(self, model: nn.Module, tta: str) -> None:
        super().__init__()
        self.model, self.views = model, TTA[tta]
        self.register_buffer("mean", torch.tensor(MEAN).reshape(1, 3, 1, 1) / 255)
        self.register_buffer("scale", 255 / torch.tensor(STD).reshape(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return the mean over the views; of an ensemble the deviation over its members too."""
        x = (image - self.mean) * self.scale
        # One view after the other, for less memory.
        outputs = [view.undo(self._predict(view.apply(x))) for view in self.views]
        mean = torch.stack(outputs).mean(0) if len(outputs) > 1 else outputs[0]
        if isinstance(self.model, Ensemble):
            return mean_and_deviation(mean, self.model.weights)
        return mean

    def _predict(self, view: Tensor) -> Tensor:
        if isinstance(self.model, Ensemble):
            return self.model.member_probabilities(view)
        return torch.sigmoid(self.model(view))


@dataclass(frozen=True)
class OnnxComparison:
    """Comparison of ONNX Runtime with torch on the same images.

    images is their number, max_difference the largest difference in probability (or uncertainty),
    and mean_dice the mean Dice between the two masks at the network's size.
    """

    images: int
    max_difference: float
    mean_dice: float


def export_onnx(segmenter: Segmenter, path: Path, about: Mapping[str, str] | None = None) -> None:
    """Write the ONNX file.

    Args:
        segmenter: the model; is not changed.
        path: an existing file is replaced.
        about: further metadata, such as the study's name.

    Raises:
        InputError: a package is missing, or the network cannot be exported.
    """
    require_onnx()
    import onnx

    size = segmenter.image_size
    # A contiguous copy on the CPU: the memory format must not appear in the file.
    model = copy.deepcopy(segmenter.model).cpu().to(memory_format=torch.contiguous_format)
    portable = PortableModel(model, segmenter.inference.tta).eval()
    try:
        with _quiet(), torch.inference_mode(False), torch.no_grad():
            program = torch.onnx.export(
                portable,
                (torch.rand(2, 3, size, size),),
                dynamo=True,
                input_names=[INPUT],
                output_names=list(output_names(segmenter)),
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                opset_version=OPSET,
                verbose=False,
            )
        assert program is not None
        proto = program.model_proto
    except Exception as error:  # from the network's code, the tracer, or an operator ONNX lacks
        name = segmenter.config.model.name
        raise InputError(f"export: {name} cannot be written as ONNX: {one_line(error)}") from error
    onnx.helper.set_model_props(proto, dict(build_metadata(segmenter)) | dict(about or {}))
    onnx.save_model(proto, str(path))


def output_names(segmenter: Segmenter) -> tuple[str, ...]:
    """Return the names of the outputs that a model's file has."""
    return OUTPUTS if isinstance(segmenter.model, Ensemble) else OUTPUTS[:1]


def build_metadata(segmenter: Segmenter) -> dict[str, str]:
    """Return the file's metadata: input, output and the remaining postprocessing."""
    size, chain = segmenter.image_size, segmenter.inference.chain
    thresholds = (step.params["value"] for step in chain if step.name == "threshold")
    return _describe_members(segmenter.model) | {
        "format": FORMAT,
        "model": segmenter.config.model.name,
        "input": f"{INPUT}: float32 [N, 3, {size}, {size}], RGB, 0 to 1; normalised inside",
        "output": f"{OUTPUTS[0]}: float32 [N, 1, {size}, {size}], the lesion's probability, 0 to 1",
        "image_size": str(size),
        "channels": "RGB",
        "range": "0 to 1",
        "resize": "bilinear with antialiasing to a square, whatever the aspect (PIL BILINEAR)",
        "tta": segmenter.inference.tta,
        "threshold": str(float(next(thresholds, DEFAULT_THRESHOLD))),
        "after": "resize the probability bilinearly to the image's size; pixels strictly above "
        "the threshold are lesion; then apply the other steps of the chain",
        "chain": json.dumps(segmenter.inference.to_dict()["chain"]),
        "config": json.dumps(segmenter.config.to_dict()),
    }


def _describe_members(model: nn.Module) -> dict[str, str]:
    if not isinstance(model, Ensemble):
        return {}
    described = [
        {"model": config.model.name, "weight": weight, "config": config.to_dict()}
        for config, weight in zip(model.configs, model.weights.tolist(), strict=True)
    ]
    return {
        "members": json.dumps(described),
        "uncertainty": f"{OUTPUTS[1]}: float32, shape of the probability, 0 to 0.5: the standard "
        "deviation of the members' probabilities",
    }


class OnnxModel:
    """An exported file, run by ONNX Runtime on the CPU; InputError if it cannot be run."""

    def __init__(self, path: Path, threads: int = 0) -> None:
        require_onnx()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        try:
            self.session: Any = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's exceptions have no public base class
            raise InputError(f"{path}: ONNX Runtime cannot run it: {one_line(error)}") from error

    @property
    def metadata(self) -> dict[str, str]:
        """Metadata of ``build_metadata`` and of the export."""
        return dict(self.session.get_modelmeta().custom_metadata_map)

    def predict_probabilities(self, images: Pixels) -> Probability:
        """Return the lesion's probability [N, S, S] for images uint8 [N, S, S, 3], RGB."""
        return self.predict_outputs(images)[0]

    def predict_outputs(self, images: Pixels) -> list[Probability]:
        """Return each output, [N, S, S], for images uint8 [N, S, S, 3], RGB."""
        inputs = images.transpose(0, 3, 1, 2).astype(np.float32) / 255
        outputs = self.session.run(None, {INPUT: np.ascontiguousarray(inputs)})
        return [np.asarray(output[:, 0], np.float32) for output in outputs]


def compare_with_torch(
    segmenter: Segmenter, path: Path, images: Pixels, batch_size: int = 8
) -> OnnxComparison:
    """Compare an exported file with torch in single precision on images uint8 [N, S, S, 3]."""
    exported, differences = OnnxModel(path), []
    dice: list[float] = []
    threshold = float(exported.metadata["threshold"])
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        expected = _stack_outputs(segmenter.predict_outputs(batch))
        pairs = list(zip(expected, exported.predict_outputs(batch), strict=True))
        differences += [float(np.abs(ours - theirs).max()) for ours, theirs in pairs]
        dice += map(dice_score, *(p > threshold for p in pairs[0]))
    return OnnxComparison(len(images), float(np.max(differences)), float(np.mean(dice)))


def _stack_outputs(outputs: Sequence[NetworkOutput]) -> list[Probability]:
    """Return probabilities and, of an ensemble, uncertainties, [N, S, S] each."""
    stacks = [np.stack([output.probability for output in outputs])]
    if uncertainties := [o.uncertainty for o in outputs if o.uncertainty is not None]:
        stacks.append(np.stack(uncertainties))
    return stacks


def require_onnx() -> None:
    """Raise InputError if a package of the extra ``onnx`` is missing."""
    if missing := ", ".join(name for name in REQUIRED_PACKAGES if find_spec(name) is None):
        extra = "pip install 'lesionsearch[onnx]'"
        raise InputError(f"export: needs {missing}; install the extra: {extra}")


@contextlib.contextmanager
def _quiet() -> Any:
    """Suppress output, warnings and log messages of the exporter."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            yield
    finally:
        logging.disable(level)
