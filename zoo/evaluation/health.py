"""What a model tells of its own health over a whole split: codebook use, active units, accuracy."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from zoo import chance


@torch.inference_mode()
def health(
    model: Any,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    split: str,
    protocol: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """The numbers of a model that has `statistics` and `summarize`, from the sums over one split."""
    sums: dict[str, Tensor] = {}
    count = 0
    for index, batch in enumerate(batches):
        chance.at(seed, "statistics", split, index)
        for name, value in model.statistics(batch["x"], batch.get("y")).items():
            sums[name] = sums[name] + value if name in sums else value
        count += len(batch["x"])
    told = {"method": "statistics", **(protocol or {})}
    return [
        {
            "name": name,
            "value": float(value),
            "unit": "",
            "kind": "exact",
            "split": split,
            "count": count,
            "protocol": told,
        }
        for name, value in model.summarize(sums).items()
    ]
