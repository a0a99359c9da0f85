"""A pipeline's other executor: a whole batch at once in torch, on whatever device it lies.

A pipeline of AUGMENTS is one policy: a list of transforms with their ranges and probabilities.
Albumentations carries it out image by image on the host. Here ``draw_plan`` has the same transforms
draw the same random numbers, in the same order and from the same seed, and notes what they would
do as a plan of a few numbers an image; ``apply_plan`` does it to the batch where it lies. So both
give the same pictures, up to rounding, to how often a picture is resampled (here once), and to
what ``strands`` says of hair removed.

Only what is drawn with lines and ellipses is drawn on the host, as layers of opacity of a byte a
pixel; they travel with the plan, and are painted where the batch lies. ``pack_plan`` makes one piece of
memory of it all for the way.
"""

from lesionseg.augment.batched.apply import apply_plan
from lesionseg.augment.batched.packing import PackedPlan, pack_plan, unpack_plan
from lesionseg.augment.batched.plan import BatchPlan, draw_plan, is_batchable

__all__ = ["PackedPlan", "BatchPlan", "apply_plan", "draw_plan", "is_batchable", "pack_plan", "unpack_plan"]
