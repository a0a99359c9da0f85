"""Synthetic dermoscopy: pictures of skin lesions with exact masks, drawn from a seed.

A picture is built the way the real one comes about, from the skin outwards:

- **skin**: a tone from light to dark, mottled by pigment and blood, with skin lines, follicles,
  freckles and faint vessels;
- **lesion**: an irregular outline of any size, elongated, off-centre, sharp here and blurred
  there, filled with melanin at several depths (brown, black, blue-grey), blood and white
  regression, in the patterns dermatologists read: network, globules, blotches, cysts, fissures;
- **artefacts** lying on the skin: hairs, rulers, stickers, pen ink, gel bubbles, glare;
- **camera**: uneven light, vignette or the black rim of the dermatoscope, colour cast, tone
  curve, softness and sensor noise.

Pigments are optical densities: they subtract light as absorbers do, so that more of the same
melanin turns tan into brown and brown into black without a list of colours.

The mask is exact. It is the set where the lesion's coverage exceeds one half, before artefacts
and camera; neither changes it, and the soft edge is symmetric about its contour.
"""

from lesionseg.data.synthetic._dataset import write_dataset
from lesionseg.data.synthetic._render import Sample, render

__all__ = ["Sample", "render", "write_dataset"]
