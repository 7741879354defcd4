"""Images as sequences of patches: (B, C, H, W) <-> (B, H W / P^2, P P C)."""

from collections.abc import Sequence

from torch import Tensor

from zoo.types import Space, Unfit


def patchify(x: Tensor, patch: int) -> Tensor:
    """Patches of an image, by row and column; in each row, column and channel.  (B, C, H, W) -> (B, T, P P C)"""
    B, C, H, W = x.shape
    x = x.view(B, C, H // patch, patch, W // patch, patch)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(B, -1, patch * patch * C)


def unpatchify(x: Tensor, shape: Sequence[int], patch: int) -> Tensor:
    """The image (B, C, H, W) of patches (B, T, P P C); shape is (C, H, W)."""
    C, H, W = shape
    x = x.view(len(x), H // patch, W // patch, patch, patch, C)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(len(x), C, H, W)


def patched(shape: Sequence[int], patch: int) -> tuple[int, int]:
    """Patches down and across an image (C, H, W). Unfit if they do not tile it, or it is no image."""

    def fits(space: Space) -> bool:
        return len(space.shape) == 3 and not any(side % patch for side in space.shape[1:])

    if not fits(Space(tuple(shape))):
        raise Unfit(
            f"shape={list(shape)} is cut into patches of {patch} x {patch}, so it must be an image (C, H, W) "
            f"whose sides are multiples of {patch}; take another patch, or backbone=mlp for what is no image",
            fits,
        )
    return shape[1] // patch, shape[2] // patch
