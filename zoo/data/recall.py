"""Tasks of recall: what followed this token, earlier in the sequence? Made here, equal on every machine.

N examples of T tokens. x (T,) is what is read, y (T,) the target at each token, PAD where nothing is asked. A
language of H3 is trained on every token, random ones too, so its training loss stays far above 0; its val and
test count the last token alone.
"""

from collections.abc import Mapping

import numpy as np

from zoo.data.synthetic import Chance, Task, Whole, fit
from zoo.types import PAD


def language(sequence: Whole, split: str) -> tuple[Whole, Whole]:
    """A sequence (N, T + 1) as x, all but the last token, and y, the next token: in val and test the last."""
    y = sequence[:, 1:].copy()
    if split != "train":
        y[:, :-1] = PAD
    return sequence[:, :-1], y


class AssociativeRecall(Task):
    """Pairs of key and value, then a key that was seen: its value is asked for.

    x is `length` tokens: (length - 2) / 2 pairs, "=>" (levels - 2) and a key. Of the other levels the first
    half are keys, the second values; a key has one value throughout an example. levels - 1 is ".", of which
    the authors' language has one too, for keys that were not seen; here as there it never comes. Fu, Dao et al.
    2022 (H3), table 1: length 22 (20 tokens of pairs), levels 10, 5,000 examples for training and 500 for test.
    Their code's default is length 42, levels 20.

    ValueError for an odd length, one below 4, and fewer than 6 levels.
    """

    def __init__(self, split: str, *, sizes: Mapping[str, int], length: int = 22, levels: int = 10) -> None:
        fit(
            f"length={length} levels={levels}",
            {
                "pairs, the arrow and a key are an even number of tokens, 4 at least": (
                    length >= 4 and length % 2 == 0
                ),
                "two keys, two values, the arrow and the dot are six levels at least": levels >= 6,
            },
        )
        n, chance = sizes[split], Chance("associative recall", split)
        symbols = levels - 2
        K = symbols // 2
        value = K + chance.below(symbols - K, n, K)  # of each key
        keys = chance.below(K, n, (length - 2) // 2)
        seen = np.zeros((n, K), bool)
        np.put_along_axis(seen, keys, True, 1)
        asked = np.where(seen, chance.part(n, K), 0.0).argmax(1)[:, None]  # any that was seen, evenly
        pairs = np.stack([keys, np.take_along_axis(value, keys, 1)], 2).reshape(n, -1)
        arrow = np.full((n, 1), levels - 2)
        sequence = np.concatenate([pairs, arrow, asked, np.take_along_axis(value, asked, 1)], 1)
        scored = "every token" if split == "train" else "the last token"
        super().__init__(*language(sequence, split), scored=scored)


class Induction(Task):
    """Random tokens with one "=>" among them, and "=>" again: what followed it is asked for.

    x is `length` tokens: symbols of 0 ... levels - 3, evenly drawn, "=>" (levels - 2) at a random place and
    at the end. levels - 1, ".", never comes. Fu, Dao et al. 2022 (H3), table 1, "induction head": length 31 (30
    tokens before the last arrow), levels 20, 5,000 examples for training and 500 for test.

    ValueError for a length below 3 or fewer than 4 levels.
    """

    def __init__(self, split: str, *, sizes: Mapping[str, int], length: int = 31, levels: int = 20) -> None:
        fit(
            f"length={length} levels={levels}",
            {
                "arrow, answer and arrow again are three tokens at least": length >= 3,
                "two symbols, the arrow and the dot are four levels at least": levels >= 4,
            },
        )
        n, chance = sizes[split], Chance("induction", split)
        sequence = chance.below(levels - 2, n, length + 1)
        place = chance.below(length - 2, n, 1)
        np.put_along_axis(sequence, place, levels - 2, 1)
        sequence[:, -2] = levels - 2
        sequence[:, -1:] = np.take_along_axis(sequence, place + 1, 1)
        scored = "every token" if split == "train" else "the last token"
        super().__init__(*language(sequence, split), scored=scored)


class MQAR(Task):
    """Pairs of key and value, then every key once more, at gaps that follow a power law; each asks for its value.

    x is `length` tokens: `pairs` keys of 1 ... levels/2 - 1 and values of levels/2 ... levels - 1, all
    different, alternating; then each key again, at every second place at most, P(gap of 2 g) ~ (g + 1)^(power
    - 1) without repetition, earlier keys choosing first. y has the value at each key's second place. What is
    left is 0, or, with filler, drawn evenly from all levels.

    Arora et al. 2023 (Zoology), figure 2: levels 8192, power 0.01, (length, pairs) = (64, 4) (128, 8) (256,
    16) (512, 64), filler false, 100,000 examples for training and 3,000 for test. Mamba-2 fills (Dao & Gu 2024).

    ValueError for an odd length, more than length / 4 pairs, or fewer levels than keys need.
    """

    def __init__(
        self,
        split: str,
        *,
        sizes: Mapping[str, int],
        length: int = 64,
        pairs: int = 4,
        levels: int = 8192,
        power: float = 0.01,
        filler: bool = False,
    ) -> None:
        half = levels // 2
        fit(
            f"length={length} pairs={pairs} levels={levels} power={power}",
            {
                "length is even, and has room for two tokens a pair and two a question: pairs <= length / 4": (
                    length % 2 == 0 and 1 <= pairs <= length // 4
                ),
                f"{pairs} different keys need levels={2 * pairs + 2} at least": half - 1 >= pairs,
                "power must be positive; power=1 makes gaps even": power > 0,
            },
        )
        n, chance = sizes[split], Chance("mqar", split)
        keys = 1 + chance.distinct(n, pairs, half - 1)
        values = half + chance.distinct(n, pairs, levels - half)
        x = chance.below(levels, n, length) if filler else np.zeros((n, length), np.int64)
        x[:, 0 : 2 * pairs : 2], x[:, 1 : 2 * pairs : 2] = keys, values
        space = (length - 2 * pairs) // 2
        weight = np.arange(1, space + 1) ** (power - 1)
        # the smallest of exponential waiting times are draws by weight without repetition, in their order
        waiting = -np.log(chance.part(n, space)) / weight
        asked = 2 * pairs + 2 * waiting.argsort(1)[:, :pairs]
        np.put_along_axis(x, asked, keys, 1)
        y = np.full((n, length), PAD)
        np.put_along_axis(y, asked, values, 1)
        super().__init__(x, y, scored=f"the {pairs} questions")
