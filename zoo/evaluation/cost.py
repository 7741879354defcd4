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


def cost(model: Any, batch: Mapping[str, Tensor]) -> dict[str, float]:
    """What a model takes: on any machine the same, as far as it is counted, and the memory of training it.

    parameters         that are trained
    weights            bytes of all parameters and buffers
    gradients          bytes of those that training has
    activations        bytes that one example's forward pass keeps for its backward pass
    flops_per_example  floating-point operations of training on one, as training_flops counts them

    batch   {"x": (B, ...), "y"?} on the model's device. The model is left as it was
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    kept: dict[int, int] = {}
    own = {storage(tensor) for tensor in (*model.parameters(), *model.buffers(), *batch.values())}

    def keep(tensor: Tensor) -> Tensor:
        if storage(tensor) not in own:
            kept[storage(tensor)] = tensor.untyped_storage().nbytes()
        alive.append(tensor)  # a place in memory that is used again would count once
        return tensor

    alive: list[Tensor] = []
    copied = copy.deepcopy(model).train()
    own |= {storage(tensor) for tensor in (*copied.parameters(), *copied.buffers())}
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = copied.loss(**batch)["loss"]
        loss.backward()
    examples = len(batch["x"])
    return {
        "parameters": sum(p.numel() for p in trained),
        "weights": sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers())),
        "gradients": sum(p.numel() * p.element_size() for p in trained),
        "activations": sum(kept.values()) / examples,
        "flops_per_example": counter.get_total_flops() / examples,
    }


def storage(tensor: Tensor) -> int:
    """Where a tensor's numbers lie; views of one tensor lie at one place."""
    return tensor.untyped_storage().data_ptr()
