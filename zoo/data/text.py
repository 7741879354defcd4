"""Text as windows of tokens: one long array, of which a batch is one gather.

N tokens in a split, T in a window, B windows in a batch. A token is a symbol's id in [0, levels); PAD = -1
stands where the last window of a split reaches beyond its end.
"""

import copy
import json
import lzma
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from zoo.data.cache import digest, home, keep
from zoo.data.vocabulary import Vocabulary, learned, measure
from zoo.types import PAD

LARGE = 1 << 24  # bytes of text from which on its tokens are kept in a file and not in memory
SMALL = 1 << 18  # bytes of text up to which its size under lzma is told: the baseline that needs no model


class Text:
    """One split of a text: indices (B,) -> {"x": (B, T)} int64.

    Training windows begin at every `stride`-th token and are always full. Those of val and test lie side by
    side and cover the split exactly, each token once, the last window filled with PAD.

    root      the folder of the data, where a corpus looks
    corpus    (split, root) -> UTF-8 bytes: a function of zoo.data.corpora, or another like it
    tokens    what the text is cut into: Characters(), Bytes(), Words(), BPE(size=...), learned from the
              training split
    length    T
    protocol  what else must be known to compare numbers measured on this text
    LookupError for a split that the corpus lacks; ValueError for a training split shorter than one window, an
    empty one, a symbol of val or test that training never showed.
    """

    def __init__(
        self,
        split: str,
        *,
        root: str | Path,
        corpus: Callable[[str, Path], bytes],
        tokens: Vocabulary,
        length: int = 256,
        stride: int = 1,
        protocol: Mapping[str, Any] | None = None,
    ) -> None:
        if length < 1 or stride < 1:
            raise ValueError(
                f"length={length} stride={stride}: both are counts of tokens; try length=256 stride=1"
            )
        root = Path(root).expanduser()
        text = corpus(split, root)
        train = split == "train"
        self.vocabulary = learned(tokens, lambda: text if train else corpus("train", root), home())
        try:
            self.tokens = torch.from_numpy(encoded(self.vocabulary, text, home()))  # (N,)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"the {split} split is not UTF-8 ({error.reason}), which {self.vocabulary.name} must be; "
                "use zoo.data.Bytes"
            ) from None
        except ValueError as error:
            raise ValueError(f"the {split} split: {error}") from None
        N = len(self.tokens)
        if (length if train else 1) > N:
            raise ValueError(
                f"the {split} split has {N} tokens, and a window has length={length}; try a length of at "
                f"most {N}, or a longer text"
            )
        self.length, self.step = length, stride if train else length
        self.windows = (N - length) // stride + 1 if train else -(-N // length)
        self.counts = {"tokens": N, **measure(text)}
        if self.vocabulary.unknown_id is not None:
            self.counts["unknown"] = int((self.tokens == self.vocabulary.unknown_id).sum())
        self.protocol = {
            "tokens": self.vocabulary.name,
            "context": length,
            "windows": "non-overlapping" if self.step == length else f"every {self.step}",
            "text": digest(text)[:12],
            **(protocol or {}),
        }
        if self.counts.get("unknown"):
            self.protocol["unknown"] = self.counts["unknown"]  # tokens that do not say what they stand for
        if len(text) <= SMALL:
            self.protocol["lzma_bits_per_char"] = round(
                8 * len(lzma.compress(text)) / self.counts["chars"], 2
            )

    @property
    def levels(self) -> int:
        """How many symbols a token may be."""
        return len(self.vocabulary)

    def __len__(self) -> int:
        return self.windows

    def __getitem__(self, indices: Tensor) -> dict[str, Tensor]:
        """IndexError beyond the last window: a gather would clamp it without a word."""
        low, high = (int(i) for i in torch.aminmax(indices))
        if low < 0 or high >= self.windows:
            raise IndexError(f"window {low if low < 0 else high} is not there: the split has {self.windows}")
        device = self.tokens.device
        places = indices.to(device)[:, None] * self.step + torch.arange(self.length, device=device)  # (B, T)
        x = self.tokens[places.clamp(max=len(self.tokens) - 1)].long()
        return {"x": x.masked_fill(places >= len(self.tokens), PAD)}

    def decode(self, x: Tensor) -> str:
        """The text of one window (T,); PAD is left out."""
        return self.vocabulary.decode(x[x != PAD].cpu().numpy())

    def encode(self, text: str) -> Tensor:
        """A text's tokens (P,): the beginning of a sample. ValueError for a symbol that the vocabulary lacks."""
        return torch.from_numpy(self.vocabulary.encode(text.encode()).astype(np.int64))

    def to(self, device: torch.device | str) -> Self:
        """The same text on another device, where batches are then made."""
        moved = copy.copy(self)
        moved.tokens = signed(self.tokens).to(device)
        return moved

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the tokens and of what they mean, 32 hex digits, the same on every device."""
        return digest(signed(self.tokens).cpu().numpy(), json.dumps(self.vocabulary.state()).encode())[:32]


def signed(tokens: Tensor) -> Tensor:
    """Tokens in a type that every device can gather from: bytes as they are, 16 and 32 bits as int32."""
    return tokens if tokens.dtype == torch.uint8 else tokens.int()


def encoded(vocabulary: Vocabulary, text: bytes, where: Path) -> np.ndarray:
    """The ids of a text, (N,): in memory if it is small, else mapped from a file, tokens-<16 hex>.npy."""
    if len(text) < LARGE:
        return vocabulary.encode(text)
    key = digest(text, type(vocabulary).__qualname__.encode(), json.dumps(vocabulary.state()).encode())
    path = where / f"tokens-{key[:16]}.npy"
    try:
        return np.load(path, mmap_mode="c")
    except (FileNotFoundError, ValueError, EOFError):  # not there, or damaged
        tokens = vocabulary.encode(text)
        return np.load(path, mmap_mode="c") if keep(path, lambda file: np.save(file, tokens)) else tokens
