"""Byte-pair encoding: symbols between bytes and words. Nothing here imports torch.

Source: Sennrich, Haddow, Birch 2016; over bytes, never across words, as in Radford et al. 2019 (GPT-2).
"""

from functools import cached_property
from itertools import islice
from typing import Any, Self

import numpy as np

from zoo.data.vocabulary import pieces, smallest


class BPE:
    """Byte-pair encoding: pairs that occur often become symbols, beginning with the 256 bytes.

    size   how many symbols: 256 bytes and size - 256 merges
    model  the learned merges, as the `tokenizers` library writes them; empty: learned from the training text
    Every text has an encoding and comes back exactly. ValueError for size < 256, or more merges than the text
    has. Source: Sennrich, Haddow, Birch 2016; over bytes as in Radford et al. 2019 (GPT-2), with its rule for
    word limits.
    """

    name = "bpe"
    unknown_id = None

    def __init__(self, size: int = 1024, *, model: str = "") -> None:
        if size < 256:
            raise ValueError(f"BPE(size={size}) cannot hold the 256 bytes it begins with; choose size >= 256")
        self.size, self.model = size, model
        self.ready = bool(model)

    def __len__(self) -> int:
        return self.size

    def state(self) -> dict[str, Any]:
        return {"size": self.size, "model": self.model}

    def learn(self, text: bytes) -> Self:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(vocab_size=self.size, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator((piece.decode() for piece in pieces(text, 1 << 16)), trainer)
        if (found := tokenizer.get_vocab_size()) < self.size:
            raise ValueError(
                f"BPE(size={self.size}): the training text gives {found} symbols and no more; "
                f"choose size <= {found}"
            )
        return type(self)(self.size, model=tokenizer.to_str())

    @cached_property
    def tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        return Tokenizer.from_str(self.model)

    def encode(self, text: bytes) -> np.ndarray:
        parts, kind = [np.empty(0, smallest(len(self)))], smallest(len(self))
        cut = (piece.decode() for piece in pieces(text, 1 << 16))
        while batch := list(islice(cut, 64)):  # 4 MiB at a time: an encoding is much larger than its text
            parts += [np.array(encoding.ids, kind) for encoding in self.tokenizer.encode_batch_fast(batch)]
        return np.concatenate(parts)

    def decode(self, ids: np.ndarray) -> str:
        return str(self.tokenizer.decode(ids.tolist(), skip_special_tokens=False))
