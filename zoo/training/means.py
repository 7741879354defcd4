"""Means over examples that stay on the device until somebody wants to read them."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


class Means:
    """Weighted means of named scalars: per batch a stack and an addition on the device, no synchronisation.

    Each name is averaged over the examples of those batches in which it occurred.
    """

    def __init__(self) -> None:
        self.sums: dict[
            tuple[str, ...], Tensor
        ] = {}  # names -> their sums over examples, and the number of those

    def add(self, terms: Mapping[str, Tensor], n: int) -> None:
        """Count a batch of n examples whose means are `terms`, scalars."""
        names, values = tuple(terms), [*terms.values()]
        with torch.no_grad():
            total = self.sums.get(names)
            if total is None or total.device != values[0].device:
                # float64: the sum over an epoch keeps what float32 would round off; Apple's GPUs have none
                dtype = torch.float32 if values[0].device.type == "mps" else torch.float64
                begin = torch.zeros(len(names) + 1) if total is None else total
                self.sums[names] = total = begin.to(values[0].device, dtype)
            total.add_(torch.stack([*values, values[0].new_ones(())]), alpha=n)

    def reduced(self, reduce: Callable[[Tensor], Tensor]) -> dict[tuple[str, ...], Tensor]:
        """Sums and counts of all ranks; `reduce` adds a tensor over ranks, so all ranks have to call this."""
        return {names: reduce(total.clone()) for names, total in self.sums.items()}

    def read(self, reduce: Callable[[Tensor], Tensor]) -> tuple[dict[str, float], int]:
        """Means over all ranks, and the number of examples; the one synchronisation."""
        sums: dict[str, float] = {}
        counts: dict[str, float] = {}
        examples = 0.0
        for names, total in self.reduced(reduce).items():
            *values, count = total.tolist()
            examples += count
            for name, value in zip(names, values):
                sums[name] = sums.get(name, 0.0) + value
                counts[name] = counts.get(name, 0.0) + count
        return {name: sums[name] / counts[name] for name in sums}, round(examples)

    def clear(self) -> None:
        """Begin anew."""
        self.sums = {}

    def state_dict(self, reduce: Callable[[Tensor], Tensor]) -> dict[tuple[str, ...], Tensor]:
        """Sums over all ranks, for a checkpoint."""
        return {names: total.cpu() for names, total in self.reduced(reduce).items()}

    def load_state_dict(self, state: Mapping[Any, Tensor], rank: int = 0) -> None:
        """Go on from a checkpoint's sums: rank 0 takes them all, the others begin at zero."""
        self.sums = {
            names: total.clone() if rank == 0 else torch.zeros_like(total) for names, total in state.items()
        }
