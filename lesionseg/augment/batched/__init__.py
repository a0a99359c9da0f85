"""Augmentation of whole batches in torch, on any device.

``draw_plan`` lets the transforms of a pipeline draw the same random numbers as on the host, in the
same order and from the same seed, and stores them as a plan of a few numbers per image.
``apply_plan`` applies it to the batch on its device. The results equal those of the host except
for rounding, for resampling (here once per image), and for the differences that
``lesionseg.augment.batched.apply.remove_hair`` lists.

Artefacts made of lines and ellipses are drawn on the host, as opacity layers of one byte per pixel,
and painted on the device. ``pack_plan`` puts a plan into one block of memory for the transfer.
"""
