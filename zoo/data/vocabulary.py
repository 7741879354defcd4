"""Texts as numbers: bytes, characters, words. Nothing here imports torch.

A text is UTF-8 `bytes`. A vocabulary of V symbols turns it into an array of ids in [0, V), of the smallest
unsigned type that holds V, and back. A vocabulary without symbols (`Characters()`) has yet to learn them from
a training text; learning returns a new one and changes nothing.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np

from zoo.data.cache import digest, home, keep

EOS = "<eos>"  # stands for the end of a line where symbols are words
UNKNOWN = "<unk>"


class Vocabulary(Protocol):
    """What a text is cut into. Its class's constructor arguments are its whole state."""

    name: ClassVar[str]
    ready: bool  # whether its symbols are known
    unknown_id: int | None  # what stands for symbols that it lacks; None: there is no such thing

    def __len__(self) -> int:
        """How many symbols there are: the `levels` of the data."""
        ...

    def state(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON can hold them."""
        ...

    def learn(self, text: bytes) -> Self:
        """The same kind of vocabulary with the symbols of a training text."""
        ...

    def encode(self, text: bytes) -> np.ndarray:
        """UTF-8 text -> ids (N,). ValueError names a symbol that is not known, and its place."""
        ...

    def decode(self, ids: np.ndarray) -> str:
        """Ids (N,) -> text."""
        ...


class Bytes:
    """Every byte is a symbol: 256 of them, nothing to learn, nothing unknown."""

    name = "bytes"
    ready = True
    unknown_id = None

    def __len__(self) -> int:
        return 256

    def state(self) -> dict[str, Any]:
        return {}

    def learn(self, text: bytes) -> Self:
        return self

    def encode(self, text: bytes) -> np.ndarray:
        return np.frombuffer(text, np.uint8).copy()

    def decode(self, ids: np.ndarray) -> str:
        """Bytes that are no UTF-8 (a window may begin inside a character) become U+FFFD."""
        return ids.astype(np.uint8).tobytes().decode("utf-8", "replace")


class Characters:
    """Every Unicode character is a symbol, in the order of code points.

    symbols  the alphabet; empty: the characters of the training text
    unknown  one more symbol, the last, for every character that the alphabet lacks; it decodes as U+FFFD
    """

    name = "chars"

    def __init__(self, symbols: str = "", *, unknown: bool = False) -> None:
        self.symbols, self.unknown = symbols, unknown
        self.ready = bool(symbols)
        self.unknown_id = len(symbols) if unknown else None

    def __len__(self) -> int:
        return len(self.symbols) + self.unknown

    def state(self) -> dict[str, Any]:
        return {"symbols": self.symbols, "unknown": self.unknown}

    def learn(self, text: bytes) -> Self:
        alphabet = set().union(*(piece.decode() for piece in pieces(text)))
        return type(self)("".join(sorted(alphabet)), unknown=self.unknown)

    def encode(self, text: bytes) -> np.ndarray:
        table = np.full(0x110000, len(self.symbols), np.uint32)  # by code point
        table[points(self.symbols)] = np.arange(len(self.symbols))
        parts, done = [np.empty(0, smallest(len(self)))], 0
        for piece in pieces(text):
            ids = table[points(piece.decode())]
            if not self.unknown and (strange := np.flatnonzero(ids == len(self.symbols))).size:
                place = int(strange[0])
                raise ValueError(
                    f"character {piece.decode()[place]!r} at position {done + place} is not among the "
                    f"{len(self)} of the training text; use zoo.data.Bytes, or Characters with unknown=true"
                )
            parts.append(ids.astype(smallest(len(self))))
            done += len(ids)
        return np.concatenate(parts)

    def decode(self, ids: np.ndarray) -> str:
        return "".join((self.symbols + "\ufffd")[i] for i in ids.tolist())


class Words:
    """Whatever stands between white space is a symbol, and so is the end of a line, <eos>; the frequent ones
    first.

    Made for texts whose publisher has replaced rare words by <unk>, as WikiText: a word that is not among the
    symbols becomes <unk> where that is one of them.
    """

    name = "words"

    def __init__(self, symbols: Sequence[str] = ()) -> None:
        self.symbols = list(symbols)
        self.ready = bool(symbols)
        self.unknown_id = self.symbols.index(UNKNOWN) if UNKNOWN in self.symbols else None

    def __len__(self) -> int:
        return len(self.symbols)

    def state(self) -> dict[str, Any]:
        return {"symbols": self.symbols}

    def learn(self, text: bytes) -> Self:
        counts = Counter(words(text))
        return type(self)([word.decode() for word in sorted(counts, key=lambda word: (-counts[word], word))])

    @cached_property
    def ids(self) -> dict[bytes, int]:
        return {word.encode(): i for i, word in enumerate(self.symbols)}

    def encode(self, text: bytes) -> np.ndarray:
        unknown = -1 if self.unknown_id is None else self.unknown_id
        ids = np.fromiter((self.ids.get(word, unknown) for word in words(text)), np.int32)
        if unknown < 0 and (strange := np.flatnonzero(ids < 0)).size:
            place = int(strange[0])
            word = next(islice(words(text), place, None)).decode("utf-8", "replace")
            raise ValueError(
                f"word {word!r} at position {place} is not among the {len(self)} of the training text, "
                f"which has no {UNKNOWN}; use zoo.data.BPE"
            )
        return ids.astype(smallest(len(self)))

    def decode(self, ids: np.ndarray) -> str:
        """Words with a space between them; where lines ended, a new one begins."""
        lines = " ".join(self.symbols[i] for i in ids.tolist()).split(EOS)
        return "\n".join(line.strip() for line in lines)


def learned(tokens: Vocabulary, train: Callable[[], bytes], where: Path) -> Vocabulary:
    """A vocabulary with its symbols: itself where it has them, else from its file, else learned from train().

    where   the folder of the file, vocabulary-<16 hex>.json: the digits are a hash of the training text and
            of the settings, so that a file never belongs to another text
    """
    if tokens.ready:
        return tokens
    text = train()
    key = digest(text, type(tokens).__qualname__.encode(), json.dumps(tokens.state()).encode())
    path = where / f"vocabulary-{key[:16]}.json"
    try:
        return type(tokens)(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):  # not there, or damaged
        result = tokens.learn(text)
        keep(path, lambda file: file.write(json.dumps(result.state()).encode()))
        return result


def vocabulary_size(source: Mapping[str, Any]) -> int:
    """The levels of a text: how many symbols the vocabulary of a `source` (corpus, tokens, root) has."""
    root = Path(source["root"]).expanduser()
    return len(learned(source["tokens"], lambda: source["corpus"]("train", root), home()))


def pieces(text: bytes, size: int = 1 << 22) -> Iterator[bytes]:
    """A text in parts of at most `size` bytes, cut after a line, or between characters in a longer one."""
    start = 0
    while start < len(text):
        stop = min(start + size, len(text))
        if stop < len(text):
            line = text.rfind(b"\n", start, stop) + 1
            stop = line if line > start else boundary(text, stop)
        yield text[start:stop]
        start = stop


def boundary(text: bytes, place: int) -> int:
    """The nearest place, at or before the given one, where a character begins."""
    while 0 < place < len(text) and text[place] & 0xC0 == 0x80:
        place -= 1
    return place


def words(text: bytes) -> Iterator[bytes]:
    """The words of a text, and <eos> where a line ends."""
    for line in BytesIO(text):
        yield from line.split()
        yield EOS.encode()


def measure(text: bytes) -> dict[str, int]:
    """How long a text is in chars, bytes and words; ends of lines are words, as in published perplexities."""
    space = np.isin(np.arange(256), list(b" \t\n\r\v\f"))
    chars, words, lines, after = 0, 0, text.count(b"\n") + (not text.endswith(b"\n")), True
    for piece in pieces(text):
        content = np.frombuffer(piece, np.uint8)
        blank = space[content]
        chars += int(np.count_nonzero(content & 0xC0 != 0x80))
        words += int(np.count_nonzero(~blank[1:] & blank[:-1])) + bool(after and not blank[0])
        after = bool(blank[-1])
    return {"chars": chars, "bytes": len(text), "words": words + (lines if text else 0)}


def points(text: str) -> np.ndarray:
    """The code points of a text, (N,) uint32."""
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def smallest(levels: int) -> type[np.unsignedinteger[Any]]:
    """The smallest unsigned type that holds ids below `levels`."""
    return np.uint8 if levels <= 1 << 8 else np.uint16 if levels <= 1 << 16 else np.uint32
