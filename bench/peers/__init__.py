"""What people would do with the same images and the same processor time, side by side.

    python -m bench.peers DATA --out DIR [--minutes 15] [--threads 2] [--only abcdf] [--quick]
        [--external ph2=DIR ...] [--nnunet PYTHON] [--seed 0] [--limit N] [--merge]

DATA is a folder of images and masks. It is split as a study splits it, near-duplicates grouped:
70% train, 15% val, 15% test. Each peer runs in a process of its own, one after the other, with the
same number of threads. It is given all images of train and val and a number of minutes of wall
time, from the start of its process to its trained model; what it does with them is its own.
Processor time is that of the process and of all its descendants.

| | peer |
|---|---|
| a | the best published baseline: the first three of the recorded table are screened |
| b | a U-Net from scratch, as in a notebook |
| c | a plain script: a U-Net with ImageNet weights, fine-tuned by one cycle |
| d | Optuna with its defaults over the settings of (c), then the best one trained |
| e | nnU-Net 2D, if ``--nnunet`` names the Python of an environment that has nnunetv2 |
| f | ``lesionsearch run auto`` |
| g | ``lesionsearch run quick`` as it is shipped, with ``--quick``; takes its own time |

All are judged in one way: by their masks at the true masks' own sizes, on the test images and on
external data sets, which no peer has seen. Predicting these images is not part of the minutes;
(f) and (g) have already tested their model within theirs. A peer's folder keeps its masks, scores
per image and times, so that peers can be run at different times and merged into one table.
"""
