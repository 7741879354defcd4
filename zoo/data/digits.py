"""Optical Recognition of Handwritten Digits (Alpaydin & Kaynak 1998), small enough to come with the package.

The file beside this one holds the 1,797 images that scikit-learn ships, in its order (the test set of the UCI
repository, from 13 writers); scripts/prepare_digits.py makes it. Licence CC BY 4.0, see digits.txt.
"""

from pathlib import Path

import numpy as np
import torch

from zoo.data.arrays import Arrays, hold_out

FILE = Path(__file__).with_suffix(".npz")
TRAIN = 1_437


class Digits(Arrays):
    """Real handwritten digits: x (1, 8, 8) uint8 in 17 levels, y the digit. Needs no download.

    split "train" is the first 1,437 images without the last `holdout` of them, which are "val"; "test" the
    other 360. LookupError for "val" if holdout=0.
    """

    def __init__(self, split: str, *, holdout: int = 180) -> None:
        part = slice(TRAIN, None) if split == "test" else hold_out(split, TRAIN, holdout)
        with np.load(FILE) as file:
            x, y = torch.from_numpy(file["x"][part]), torch.from_numpy(file["y"][part])
        super().__init__(x.unsqueeze(1), y, levels=17, classes=10, name=str(FILE))
