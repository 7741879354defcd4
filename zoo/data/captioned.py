"""Labelled data told in words: the label's caption takes its place.

y (B, L) are the tokens of a caption, PAD after its end. A corpus is what zoo.data.Text has: (split, root) -> UTF-8
text, here with one caption in each line, that of label 0 first.
"""

import copy
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from zoo.data.cache import digest, home
from zoo.data.shapes import HUES, NAMES, Shapes
from zoo.data.vocabulary import Vocabulary, learned
from zoo.types import PAD

COLOURS = ("red", "yellow", "green", "cyan", "blue", "magenta")


class Captioned:
    """A labelled dataset with captions as y: indices (B,) -> {"x": (B, *shape), "y": (B, L)} int64.

    source    source(split), a dataset with labels as y
    corpus    (split, root) -> the captions, one in each line: zoo.data.captions, or another like it
    tokens    what they are cut into: Characters(), Bytes(), BPE(size=...), learned from all of them
    root      the folder of the data, where a corpus looks
    length    L
    ValueError for a caption longer than that, and for data whose labels are more than the captions.
    """

    def __init__(
        self,
        split: str,
        *,
        source: Callable[[str], Any],
        corpus: Callable[[str, Path], bytes],
        tokens: Vocabulary,
        root: str | Path,
        length: int = 32,
    ) -> None:
        self.source, self.length = source(split), length
        text = corpus("train", Path(root).expanduser())
        self.vocabulary = learned(tokens, lambda: text, home())
        self.table = torch.stack([self.told(line) for line in text.decode().splitlines()])  # (K, L)
        if (labels := int(self.source.y.max()) + 1) > len(self.table):
            raise ValueError(
                f"there are {labels} labels and {len(self.table)} captions; each label needs one"
            )
        self.protocol = {
            **getattr(self.source, "protocol", {}),
            "captions": digest(text)[:12],
            "tokens": self.vocabulary.name,
        }

    @property
    def levels(self) -> int:
        """How many symbols a token of a caption may be."""
        return len(self.vocabulary)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, indices: Tensor) -> dict[str, Tensor]:
        batch = self.source[indices]
        return {"x": batch["x"], "y": self.table[batch["y"]]}

    def told(self, text: str) -> Tensor:
        """A caption's tokens, (L,). ValueError for one that is too long, or has symbols that no caption has."""
        tokens = torch.from_numpy(self.vocabulary.encode(text.encode()).astype("int64"))
        if len(tokens) > self.length:
            raise ValueError(
                f"the caption {text!r} has {len(tokens)} tokens, and there is room for {self.length}; "
                f"set dataset.source.length={len(tokens)} and train, or say it shorter"
            )
        return torch.nn.functional.pad(tokens, (0, self.length - len(tokens)), value=PAD)

    def to(self, device: torch.device | str) -> Self:
        """The same data on another device, where batches are then made."""
        moved = copy.copy(self)
        moved.source, moved.table = self.source.to(device), self.table.to(device)
        return moved

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the content: of the data, and of the captions' tokens."""
        return digest(str(self.source.fingerprint).encode(), self.table.cpu().numpy().tobytes())


def captions(split: str, root: Path, *, names: Sequence[str], template: str = "a photo of {}") -> bytes:
    """What is said of each class: the template with its name, one in each line."""
    return "\n".join(template.format(name) for name in names).encode()


class ColouredShapes(Shapes):
    """zoo.data.Shapes whose labels are colour and shape: y = 8 colour + shape, six colours around the wheel.

    Hues between -1/12 and 1/12 of the wheel are red, the next sixth is yellow, then green, cyan, blue, magenta.
    """

    def __init__(self, split: str) -> None:
        super().__init__(split)
        colour = (self.factors[:, 1] * 12 + HUES) // (2 * HUES) % 6
        self.y = 8 * colour + self.factors[:, 0]


def coloured_shapes(split: str, root: Path) -> bytes:
    """What is said of each label of ColouredShapes: "a red disc", one in each line."""
    return "\n".join(f"a {colour} {shape}" for colour, shape in product(COLOURS, NAMES)).encode()
