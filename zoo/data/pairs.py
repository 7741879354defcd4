"""Pairs of noise and what a flow makes of it, as scripts/prepare.py reflow writes them: Liu et al. 2022, section 2.

ROOT/pairs.npz has x (N, ...), noise (N, ...) and maybe y (N,); ROOT/facts.json facts, and how they were made.
"""

import json
from collections.abc import Callable
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.data.arrays import Arrays, hold_out


def reflow(
    split: str, *, root: str, base: Callable[..., Any], levels: int | None = None, holdout: int = 1000
) -> Any:
    """Pairs for train and val; for test the data that the first flow was trained on, so that both are measured alike.

    root        the folder that scripts/prepare.py reflow wrote
    base        split -> the first flow's dataset
    levels      of the data; None for real numbers
    holdout     pairs kept for val
    """
    return base(split=split) if split == "test" else Pairs(split, root=root, levels=levels, holdout=holdout)


class Pairs(Arrays):
    """{"x": (B, *shape), "noise": (B, *shape)}, and y where the first flow had a condition.

    FileNotFoundError where there are no pairs; ValueError for a split that there is not.
    """

    def __init__(self, split: str, *, root: str, levels: int | None = None, holdout: int = 1000) -> None:
        path = Path(root) / "pairs.npz"
        if not path.exists():
            raise FileNotFoundError(
                f"{path} does not exist; scripts/prepare.py reflow run=runs/<one> writes it"
            )
        with np.load(path, allow_pickle=False) as file:
            known = {name: torch.from_numpy(file[name]) for name in file.files}
        made_by = json.loads((Path(root) / "facts.json").read_text())["made_by"]
        part = hold_out(split, len(known["x"]), holdout)
        y = known["y"][part] if "y" in known else None
        super().__init__(known["x"][part], y, levels=levels, protocol={"pairs": made_by}, name=str(path))
        self.noise = known["noise"][part].contiguous()

    def __getitem__(self, indices: Tensor) -> dict[str, Tensor]:
        batch = super().__getitem__(indices)
        return {
            **batch,
            "noise": self.noise.index_select(0, torch.as_tensor(indices, device=self.noise.device)),
        }

    def to(self, device: torch.device | str) -> "Pairs":
        """The same pairs on another device."""
        moved = super().to(device)
        moved.noise = self.noise.to(device)
        return moved

    @cached_property
    def fingerprint(self) -> str:
        """A hash of x, y and the noise."""
        own = blake2b(super().fingerprint.encode(), digest_size=16)
        own.update(self.noise.cpu().numpy())
        return own.hexdigest()
