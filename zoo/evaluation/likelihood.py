"""How probable a model finds a split of data: one number per unit, each with its kind, protocol and count.

nats are -log p(x) per example; bits/dim = nats / (D ln 2) with D elements per example; per symbol of text the nats of
the whole split are divided by the symbols of the whole split; perplexity = exp(nats per token).
"""

import inspect
import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from zoo import chance
from zoo.types import Density, can, scored

NAMES = {
    "nats": "nats",
    "bits/dim": "bits_per_dim",
    "bits/char": "bits_per_char",
    "bits/byte": "bits_per_byte",
    "perplexity": "perplexity",
}
UNITS = {"nats": "nats/example", "perplexity": "per token", "word_perplexity": "per word"}


def options_in_force(method: Callable[..., Any], given: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A method's keyword options: its defaults, with what was given. ValueError names an option that it has not."""
    parameters = inspect.signature(method).parameters.values()
    own = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    if unknown := sorted(set(given) - set(own)):
        has = ", ".join(own) or "none"
        raise ValueError(
            f"{name}.{unknown[0]}: the model's {name} has no option {unknown[0]!r}; it has: {has}"
        )
    return {**own, **given}


@torch.inference_mode()
def likelihood(
    model: Any,
    batches: Iterable[Mapping[str, Any]],
    *,
    facts: Mapping[str, Any],
    split: str,
    options: Mapping[str, Any] | None = None,
    counts: Mapping[str, int] | None = None,
    protocol: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """The numbers of one split, that of the data's own unit first.

    batches     {"x", "y"?} on the model's device, each example once; "since" in one is the option, for it alone
    facts       the dataset's: unit, levels, shape
    options     of model.log_prob; one named `since` leaves the tokens before it uncounted
    counts      symbols in the whole split ("tokens", "chars", "bytes", "words"), for units per symbol; where only
                a part is measured, those of which a token is one
    protocol    what the data add to the protocol (binarization, context ...)
    Raises ValueError for a model without log_prob, an unknown option, or a value that is not finite.
    """
    if not can(model, Density):
        raise ValueError(
            f"{type(model).__name__} has no likelihood: it has no log_prob and kind (zoo/types.py, Density)"
        )
    force = options_in_force(model.log_prob, options or {}, "log_prob")
    started = time.perf_counter()
    total, squares, examples, symbols = 0.0, 0.0, 0, 0
    for index, batch in enumerate(batches):
        chance.at(seed, "log_prob", split, index)
        now = {**force, "since": batch["since"]} if "since" in batch else force
        log_p = model.log_prob(batch["x"], batch.get("y"), **now).double()
        if not torch.isfinite(log_p).all():
            raise ValueError(
                f"log_prob is not finite for {int((~torch.isfinite(log_p)).sum())} examples of {split}"
            )
        total -= float(log_p.sum())
        squares += float(log_p.square().sum())
        examples += len(log_p)
        symbols += int(scored(batch["x"]).flatten(1)[:, int(now.get("since", 0)) :].sum())
    if not symbols:
        since = f" from token {force['since']} on" if force.get("since") else ""
        raise ValueError(f"the {split} split is empty{since}")
    mean = total / examples
    deviation = math.sqrt(max(squares / examples - mean**2, 0.0) / max(examples - 1, 1))
    told = {"method": "log_prob", **force, **(protocol or {})}
    if getattr(model, "conditional", False):
        told["given"] = "y"  # log p(x | y) compares with no log p(x)
    if facts.get("levels") is None:
        told["density"] = "of real numbers: compares with no probability"
    common = {
        "kind": model.kind,
        "split": split,
        "count": examples,
        "protocol": told,
        "seconds": round(time.perf_counter() - started, 3),
    }
    counts = counts or {}
    if symbols != counts.get("tokens", symbols):
        counts = one_to_one(counts, symbols)
    values = in_units(total, examples, symbols, facts, counts)
    first = NAMES.get(str(facts.get("unit")), "nats")
    order = sorted(values, key=lambda name: (name != first, list(values).index(name)))
    return [
        {
            "name": name,
            "value": values[name],
            "stderr": deviation * values[name] / mean if mean and "perplexity" not in name else None,
            "unit": UNITS.get(name, name.replace("_per_", "/")),
            **common,
        }
        for name in order
    ]


def one_to_one(counts: Mapping[str, int], symbols: int) -> dict[str, int]:
    """The counts of a part of a split, `symbols` tokens of it: of what each token is one of."""
    return {name: symbols for name, n in counts.items() if n == counts.get("tokens")}


def in_units(
    total: float, examples: int, symbols: int, facts: Mapping[str, Any], counts: Mapping[str, int]
) -> dict[str, float]:
    """The nats of a whole split in every unit that its data have."""
    values = {"nats": total / examples}
    if facts.get("kind") == "text":
        values["nats_per_token"] = total / symbols
        values["perplexity"] = math.exp(min(total / symbols, 700.0))
        if facts.get("unit") == "perplexity" and counts.get("words", symbols) != symbols:
            values["word_perplexity"] = math.exp(min(total / counts["words"], 700.0))
        for name, symbol in (("bits_per_char", "chars"), ("bits_per_byte", "bytes")):
            if counts.get(symbol):
                values[name] = total / math.log(2) / counts[symbol]
    else:
        values["bits_per_dim"] = total / math.log(2) / symbols
    return values
