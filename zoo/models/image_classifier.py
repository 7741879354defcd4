"""A small convolutional classifier of images: what its layers see is a measure of how alike two pictures are.

x is an image of integers (B, C, H, W), y (B,) are labels below `classes`.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.models.classifier import labels
from zoo.nn.distortion import scaled
from zoo.nn.perceptual import FeatureNet, feature_distance
from zoo.types import Unfit


class ImageClassifier(nn.Module):
    """p(y | x) by a FeatureNet, and the distance of two pictures by its features.

    classes   how many there are
    widths    channels of each scale, from the full size inwards

    Raises Unfit for data that are not images of integers, and for data without classes.
    """

    def __init__(
        self,
        *,
        shape: Sequence[int],
        levels: int | None,
        classes: int | None,
        widths: Sequence[int] = (32, 64, 128),
    ) -> None:
        super().__init__()
        if levels is None or len(shape) != 3 or not classes:
            raise Unfit(
                f"a classifier of images needs integers (C, H, W) and labels, and this data has shape={list(shape)}, "
                f"levels={levels}, classes={classes}",
                lambda space: len(space.shape) == 3 and space.levels is not None and bool(classes),
            )
        self.shape, self.levels = tuple(shape), levels
        self.network = FeatureNet(shape[0], classes, widths=tuple(widths))

    @property
    def blocks(self) -> nn.ModuleList:
        """What gradient checkpointing may recompute: the scales."""
        return self.network.scales

    @property
    def told(self) -> str:
        """What a protocol says of its distance."""
        accuracy = getattr(self, "results", {}).get("accuracy")
        known = "" if accuracy is None else f" with accuracy {accuracy:.4f}"
        return f"features of a classifier{known} ({getattr(self, 'origin', 'untrained')})"

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The distance of pictures in [-1, 1]: (B, C, H, W) twice -> (B,)."""
        return feature_distance(self.network, a, b)

    def embed(self, x: Tensor) -> Tensor:
        """What its last scale sees in images of integers, the mean over places: (B, C, H, W) -> (B, D)."""
        return self.network.features(self.scaled(x))[-1].mean((2, 3))

    def loss(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        """loss: -log p(y | x) in nats per example."""
        return {"loss": F.cross_entropy(self.network(self.scaled(x)), labels(y))}

    def statistics(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        """How many examples there are, and how many were told right."""
        right = self.network(self.scaled(x)).argmax(-1) == labels(y)
        return {"right": right.sum(), "examples": right.new_ones(len(x), dtype=labels(y).dtype).sum()}

    def summarize(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """accuracy: how often the most probable class was the right one."""
        return {"accuracy": float(sums["right"]) / max(float(sums["examples"]), 1.0)}

    def scaled(self, x: Tensor) -> Tensor:
        """x in [-1, 1]."""
        return scaled(x, self.levels).to(next(self.parameters()).dtype)
