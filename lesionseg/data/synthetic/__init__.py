"""Synthetic dermoscopic images of skin lesions with exact masks.

An image is composed in the order of the real scene: skin, lesion, artefacts, camera. The mask is
the set of pixels where the lesion covers more than one half; artefacts do not change it.
"""

from lesionseg.data.synthetic.composition import Sample, render
from lesionseg.data.synthetic.dataset import IMAGE_FOLDER, MASK_FOLDER, write_dataset

__all__ = ["IMAGE_FOLDER", "MASK_FOLDER", "Sample", "render", "write_dataset"]
