"""A text in windows that overlap: no token but the first is told with little before it, and each counts once.

T tokens are a window. Windows begin at every `stride`-th token; the first counts all of its tokens, each other one
only its last `stride`, which are new to it and have T - stride tokens or more before them. stride = T is windows
side by side, stride = 1 gives every token all the context that there is, at T times the cost.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.evaluation.likelihood import options_in_force
from zoo.types import PAD, scored


def strided(
    dataset: Any,
    stride: int,
    *,
    batch_size: int = 1,
    examples: int | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Iterator[dict[str, Any]], dict[str, Any]]:
    """Batches {"x": (B, T), "since": k}, of which tokens from k on count, and what the protocol says of them.

    dataset     a text in windows of T tokens that lie side by side
    examples    only so many windows, evenly spread
    """
    T = int(dataset.protocol["context"])
    N = (len(dataset) - 1) * T + int(scored(dataset[torch.tensor([len(dataset) - 1])]["x"]).sum())
    begins = torch.arange(0, max(N - T, 0) + stride, stride)
    told = {"windows": f"every {stride}", "since": T - stride, "first": "all tokens"}
    if examples is not None and examples < len(begins):
        told["examples"] = f"{examples} evenly spread of {len(begins)}"
        begins = begins[torch.linspace(0, len(begins) - 1, examples).round().long()]

    def batches() -> Iterator[dict[str, Any]]:
        first = int((begins == 0).sum())
        for since, some in ((0, begins[:first]), (T - stride, begins[first:])):
            for part in some.split(batch_size) if len(some) else ():
                yield {"x": window(dataset, part, T).to(device), "since": since}

    return batches(), told


def window(dataset: Any, begins: Tensor, T: int) -> Tensor:
    """T tokens from each place of the text on, PAD beyond its end.  (B,) -> (B, T)"""
    block = begins // T
    there = block + 1 < len(dataset)
    ahead = dataset[torch.where(there, block + 1, block)]["x"]
    both = torch.cat([dataset[block]["x"], torch.where(there.to(ahead.device)[:, None], ahead, PAD)], 1)
    places = (begins % T)[:, None] + torch.arange(T)
    return both.gather(1, places.to(both.device))


def check(
    model: Any, dataset: Any, stride: int, facts: Mapping[str, Any], split: str, **options: Any
) -> None:
    """Raises ValueError for a stride that is none, data that are no text, and a model that counts whole windows only.

    options     of log_prob, that are asked for besides
    """
    told = getattr(dataset, "protocol", {})
    if facts.get("kind") != "text" or told.get("windows") != "non-overlapping":
        raise ValueError(
            f"stride={stride}: the {split} split of {facts.get('name')} is no text in windows that lie side by "
            "side; a stride is for val or test of a text"
        )
    if not isinstance(stride, int) or not 1 <= stride <= told["context"]:
        raise ValueError(
            f"stride={stride}: windows have {told['context']} tokens; try a stride from 1 to {told['context']}"
        )
    log_prob = getattr(model, "log_prob", None)
    if log_prob is None or "since" not in options_in_force(log_prob, {}, "log_prob"):
        raise ValueError(
            f"stride={stride}: {type(model).__name__} cannot count a part of a window (its log_prob has no since)"
        )
    if "since" in options:
        raise ValueError(f"stride={stride} says from where on tokens count; leave log_prob.since out")
