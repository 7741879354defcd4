"""Data that fits in memory: one gather per batch, chance included, and no Python per example.

x is data (N, *shape), y labels (N, ...), B the size of a batch. What is drawn anew each time an example is
seen comes from torch's default generator of the device that the data are on, for the whole batch at once.
"""

import copy
from collections.abc import Callable
from functools import cached_property
from hashlib import blake2b
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor


class Arrays:
    """A dataset held in tensors: indices (B,) -> {"x": (B, *shape)} and, with labels, {"y": (B, ...)} int64.

    levels    x lies in [0, levels): uint8 or int64; None where x is real
    classes   y lies in [0, classes); None where it isn't to be checked
    augment   x (B, *shape) -> x (B, *shape), applied to every batch: `CropFlip(padding=4)`
    protocol  what must be known to compare numbers measured on this data: {"binarization": "static"}
    name      what an error calls the data, as a rule its file

    ValueError where x holds values outside its levels, y outside its classes, or their numbers differ.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor | None = None,
        *,
        levels: int | None = None,
        classes: int | None = None,
        augment: Callable[[Tensor], Tensor] | None = None,
        protocol: dict[str, Any] | None = None,
        name: str = "the data",
    ) -> None:
        if not len(x):
            raise ValueError(f"{name} holds no examples")
        if levels is not None:
            _check_range(x, levels, f"{name} holds the value", f"levels={levels}")
        if y is not None:
            if len(y) != len(x):
                raise ValueError(
                    f"{name} holds {len(x)} examples but {len(y)} labels; each example needs one"
                )
            if classes is not None:
                _check_range(y, classes, f"{name} holds the label", f"classes={classes}")
            y = y.long()
        self.x, self.y = x.contiguous(), y  # a gather from strided rows takes thirty times as long
        self.augment, self.protocol = augment, dict(protocol or {})

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, indices: Tensor) -> dict[str, Tensor]:
        indices = torch.as_tensor(indices, device=self.x.device)
        x = self.x.index_select(0, indices)
        if self.augment is not None:
            x = self.augment(x)
        return {"x": x} if self.y is None else {"x": x, "y": self.y.index_select(0, indices)}

    def to(self, device: torch.device | str) -> Self:
        """The same data on another device, where batches are then made."""
        moved = copy.copy(self)
        moved.x = self.x.to(device)
        moved.y = None if self.y is None else self.y.to(device)
        return moved

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the content, 32 hex digits: type, shape and bytes of x and y, not of what is drawn."""
        digest = blake2b(digest_size=16)
        for part in (self.x, self.y):
            if part is not None:
                digest.update(f"{part.dtype} {tuple(part.shape)}".encode())
                digest.update(part.cpu().contiguous().numpy())
        return digest.hexdigest()


def hold_out(split: str, count: int, holdout: int) -> slice:
    """Which of `count` training examples a split takes: "val" the last `holdout`, "train" those before.

    LookupError for "val" if holdout=0; ValueError for an unknown split or a holdout that leaves nothing to
    train on.
    """
    if split not in ("train", "val"):
        raise ValueError(f"split={split!r} is unknown; there are train, val and test")
    if not 0 <= holdout < count:
        raise ValueError(
            f"holdout={holdout} cannot be taken from {count} training examples; try holdout={count // 10}"
        )
    if split == "val" and not holdout:
        raise LookupError("no val split: holdout=0")
    return slice(0, count - holdout) if split == "train" else slice(count - holdout, count)


class CropFlip:
    """A shifted and, one time in two, mirrored copy of each image: x (B, C, H, W) -> (B, C, H, W).

    Each image is padded with zeros on all sides, a window of its own size is cut at a random place, and its
    columns are reversed with probability 1/2 (the usual augmentation of CIFAR: He et al. 2016, section 4.2).
    Every row of the result is a run of W neighbours in the padded images and their mirror images, so that all
    rows are one gather.
    """

    def __init__(self, padding: int = 4, *, flip: bool = True) -> None:
        if padding < 0:
            raise ValueError(f"padding={padding} is negative; padding=4 shifts an image by up to 4 pixels")
        self.padding, self.flip = padding, flip

    def __call__(self, x: Tensor) -> Tensor:
        B = len(x)
        place = torch.randint(2 * self.padding + 1, (2, B), device=x.device)
        mirror = torch.randint(2, (B,), device=x.device) * int(self.flip)
        return crop_flip(x, *place, mirror, self.padding)

    def __repr__(self) -> str:
        return f"CropFlip(padding={self.padding}, flip={self.flip})"


def crop_flip(x: Tensor, top: Tensor, left: Tensor, mirror: Tensor, padding: int) -> Tensor:
    """Image b of x (B, C, H, W), mirrored where mirror[b] is 1, padded, and cut out at (top[b], left[b])."""
    B, C, H, W = x.shape
    pool = F.pad(torch.cat([x, x.flip(3)]), (padding,) * 4)  # (2B, C, H', W')
    tall, wide = pool.shape[2:]
    image = torch.arange(B, device=x.device) + B * mirror
    channel = image[:, None] * C + torch.arange(C, device=x.device)  # (B, C)
    row = channel[:, :, None] * tall + top[:, None, None] + torch.arange(H, device=x.device)  # (B, C, H)
    start = row * wide + left[:, None, None]
    return pool.flatten().unfold(0, W, 1).index_select(0, start.flatten()).view(B, C, H, W)


class Bernoulli:
    """A binary image drawn from a grey one: a pixel x (uint8) becomes 1 with probability x / 255, exactly."""

    def __call__(self, x: Tensor) -> Tensor:
        return bernoulli(x)

    def __repr__(self) -> str:
        return "Bernoulli()"


def bernoulli(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """x uint8 -> uint8 in {0, 1}, P(1) = x / 255: a whole number drawn evenly from 0..254 lies below x."""
    u = torch.randint(255, x.shape, dtype=torch.uint8, device=x.device, generator=generator)
    return (u < x).to(torch.uint8)


def _check_range(values: Tensor, stop: int, subject: str, rule: str) -> None:
    if values.is_floating_point():
        raise ValueError(
            f"{subject} {values.flatten()[0].item()}, a real number, but {rule} asks for whole numbers"
        )
    low, high = (int(v) for v in torch.aminmax(values))
    if low < 0 or high >= stop:
        wrong = low if low < 0 else high
        raise ValueError(f"{subject} {wrong}, but {rule} allows only 0 to {stop - 1}")
