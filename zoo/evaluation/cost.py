"""What a model costs, counted and not timed: the same on every machine."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode


def training_flops(model: Any, batch: Mapping[str, Tensor]) -> float:
    """Floating-point operations of training on one example: the loss and its gradients.

    Counted are products of matrices, convolutions and attention, two for each multiplication; what goes element
    by element, a scan say, is not, and what gradient checkpointing computes again is.

    batch   {"x": (B, ...), "y"?} on the model's device. The model is left as it was
    """
    copied = copy.deepcopy(model).train()
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        copied.loss(**batch)["loss"].backward()
    return counter.get_total_flops() / len(batch["x"])
