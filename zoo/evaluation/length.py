"""How well a text is told with more context than a model was trained with.

T tokens are what was trained on, a multiple m is a context of m T tokens. The targets are the same at every
multiple: the last T tokens of each window, so nothing but the context before them grows.
"""

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from zoo.evaluation.likelihood import NAMES, UNITS, in_units, one_to_one
from zoo.types import scored

BINS = 16  # of a curve, in T tokens
FAILS = (ValueError, torch.OutOfMemoryError)  # a table of positions that ends; a length that no memory holds


@torch.inference_mode()
def by_length(
    model: Any,
    dataset: Any,
    multiples: Sequence[int],
    *,
    facts: Mapping[str, Any],
    split: str,
    protocol: Mapping[str, Any] | None = None,
    batch_size: int = 1,
    examples: int | None = None,
    device: torch.device | str = "cpu",
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Numbers "bits_per_char_at_4x", as many per multiple as the text has units, and curves of loss by position.

    model       has nats(x) -> (B, T'), -log p of each token, for windows x (B, T') of any length
    dataset     a text in windows of T tokens that lie side by side
    facts       its unit and kind
    batch_size  windows at multiple 1; at m it is an m-th, so that a batch has as many tokens
    examples    only so many target blocks, evenly spread

    Where a model cannot go on (a table of positions ends, memory is full) a number's value is None, and `reason`
    says why. A curve has nats by position in the window: of tokens `position` to `position` + `width`.

    Raises ValueError for a model without nats, data that are no text in windows side by side, a split that is
    shorter than the longest window, and multiples below 1.
    """
    T = check(model, dataset, multiples, facts, split)
    blocks = targets(len(dataset), max(multiples), examples)
    numbers, curves = [], []
    for m in sorted(set(multiples)):
        how = {
            "method": "nats",
            **(protocol or {}),
            "context": m * T,
            "windows": f"every {T}",
            "multiple": m,
            "targets": "same",
            "scored": f"the last {T} tokens of each window, {len(blocks)} of {len(dataset)} blocks",
        }
        common = {"kind": model.kind, "split": split, "count": len(blocks), "protocol": how}
        started = time.perf_counter()
        try:
            told, curve = measured(model, windows(dataset, blocks, m, max(1, batch_size // m), device), T)
        except FAILS as error:
            values: dict[str, Any] = {}
            errors: dict[str, Any] = {}
            common["reason"] = str(error).splitlines()[0]
        else:
            total, symbols = float(told[:, 0].sum()), int(told[:, 1].sum())
            counts = one_to_one(getattr(dataset, "counts", {}), symbols)
            values = in_units(total, len(blocks), symbols, facts, counts)
            mean, n = total / len(blocks), len(blocks)
            spread = float(told[:, 0].std()) / math.sqrt(n) / mean if n > 1 and mean else None
            errors = {
                name: spread * value
                for name, value in values.items()
                if spread is not None and "perplexity" not in name
            }
            curves.append({"name": "nats_by_position", "split": split, "protocol": how, **curve})
        seconds = round(time.perf_counter() - started, 3)
        numbers += [
            {
                "name": f"{name}_at_{m}x",
                "value": values.get(name),
                "stderr": errors.get(name),
                "unit": UNITS.get(name, name.replace("_per_", "/")),
                **common,
                "seconds": seconds,
            }
            for name in units(facts, dataset, T)
        ]
    return numbers, curves


def check(model: Any, dataset: Any, multiples: Sequence[int], facts: Mapping[str, Any], split: str) -> int:
    """T. Raises ValueError for what cannot be measured by length."""
    if not callable(getattr(model, "nats", None)):
        raise ValueError(
            f"lengths={list(multiples)}: {type(model).__name__} does not tell the nats of each token "
            "(no method nats); lengths are for autoregressive models"
        )
    told = getattr(dataset, "protocol", {})
    if facts.get("kind") != "text" or told.get("windows") != "non-overlapping":
        raise ValueError(
            f"lengths={list(multiples)}: the {split} split of {facts.get('name')} is no text in windows that lie "
            "side by side; lengths are measured on val or test of a text"
        )
    if min(multiples) < 1:
        raise ValueError(f"lengths={list(multiples)}: multiples of the training length are at least 1")
    if max(multiples) > len(dataset):
        raise ValueError(
            f"lengths={list(multiples)}: the {split} split has {len(dataset)} windows, too few for one that is "
            f"{max(multiples)} times as long; try at most {len(dataset)}"
        )
    return int(told["context"])


def targets(blocks: int, most: int, examples: int | None = None) -> Tensor:
    """The blocks of T tokens that are counted, (N,): those with most - 1 before them, or some, evenly spread."""
    there = torch.arange(most - 1, blocks)
    if examples is None or examples >= len(there):
        return there
    return there[torch.linspace(0, len(there) - 1, examples).round().long()]


def windows(
    dataset: Any, blocks: Tensor, m: int, batch: int, device: torch.device | str = "cpu"
) -> Iterator[Tensor]:
    """m blocks as one window, of which the last is a target.  (B, m T) each time"""
    for some in blocks.split(batch):
        places = some[:, None] + torch.arange(1 - m, 1)  # (B, m)
        yield dataset[places.flatten()]["x"].unflatten(0, places.shape).flatten(1).to(device)


def measured(model: Any, batches: Iterable[Tensor], T: int) -> tuple[Tensor, dict[str, Any]]:
    """Nats and number of each window's last T tokens, (N, 2), and the curve over all positions.

    Raises ValueError if nats are not finite.
    """
    told, sums = [], torch.zeros(())
    for x in batches:
        nats = model.nats(x).double()
        there = scored(x)
        if not torch.isfinite(nats).all():
            raise ValueError(f"nats are not finite for {int((~torch.isfinite(nats)).sum())} tokens")
        told.append(torch.stack([nats[:, -T:].sum(1), there[:, -T:].sum(1)], 1).cpu())
        sums = sums + torch.stack([nats.sum(0), there.sum(0)]).cpu()  # (2, m T)
    width = max(1, T // BINS)
    sums = torch.stack([part.sum(1) for part in sums.split(width, 1)], 1)
    values = [float(nats / n) if n else None for nats, n in sums.T]
    return torch.cat(told), {
        "unit": "nats/token",
        "width": width,
        "position": [i * width for i in range(len(values))],
        "value": values,
        "count": [int(n) for n in sums[1]],
    }


def units(facts: Mapping[str, Any], dataset: Any, T: int) -> list[str]:
    """The names of a text's numbers, that of its own unit first: perplexity, and bits where a token is a symbol."""
    names = in_units(1.0, 1, T, facts, one_to_one(getattr(dataset, "counts", {}), T))
    first = NAMES.get(str(facts.get("unit")))
    return sorted((name for name in names if not name.startswith("nats")), key=lambda name: name != first)
