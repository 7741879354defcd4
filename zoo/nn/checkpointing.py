"""Gradient checkpointing: parts of a forward pass are computed again in the backward pass, not kept.

n is the number of blocks that a model names in `blocks`. Losses and gradients stay what they are, dropout
included.
"""

import math
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

aten = torch.ops.aten
KEPT = [  # what costs most to compute again
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten.baddbmm.default,
    aten.convolution.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
]
POLICIES = "none, full, sqrt, selective, or a number n for every n-th block"


def checkpoint_blocks(model: nn.Module, policy: str | int) -> None:
    """Set, in place, which of a model's blocks recompute their activations. The last call counts.

    none        nothing is recomputed
    full        each block: memory for one block and n inputs, time of one more forward pass
    sqrt        segments of sqrt(n) blocks: memory for sqrt(n) blocks and sqrt(n) inputs (Chen et al. 2016).
                For models whose blocks are called one after the other, each on the last one's output
    a number    every such-and-such block: 2 is every other one
    selective   each block, but products of matrices, convolutions and attention are kept: cheap operations
                run again

    Raises ValueError for another policy, or for a model that names no blocks.
    """
    policy = int(policy) if str(policy).isdecimal() else policy
    if policy not in ("none", "full", "sqrt", "selective") and not (isinstance(policy, int) and policy > 0):
        raise ValueError(f"gradient_checkpointing={policy} is no policy; it takes {POLICIES}")
    blocks = list(getattr(model, "blocks", []))
    for block in blocks:
        block.__dict__.pop("forward", None)
    if policy == "none":
        return
    if not blocks:
        raise ValueError(
            f"{type(model).__name__} names no `blocks`, so gradient_checkpointing={policy} "
            "has nothing to recompute; try gradient_checkpointing=none"
        )
    if policy == "sqrt":
        size = math.isqrt(len(blocks) - 1) + 1
        for start in range(0, len(blocks), size):
            segment = Segment(blocks[start : start + size])
            for block in segment.blocks:
                block.forward = partial(segment.run, block)
        return
    options = {}
    if policy == "selective":
        options["context_fn"] = selective
    for block in blocks[:: policy if isinstance(policy, int) else 1]:
        block.forward = partial(recomputed, block, options)


def selective() -> tuple[Any, Any]:
    """The two contexts in which a block's forward and its repetition run."""
    return create_selective_checkpoint_contexts(KEPT)


def recomputed(block: nn.Module, options: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """A block's own forward, its activations kept only as far as `options` say."""
    forward = partial(type(block).forward, block)
    if not (block.training and torch.is_grad_enabled()):
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=True, **options, **kwargs)


class Segment:
    """Blocks that are recomputed together: the first runs all of them, the others hand on what they get."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        self.blocks = blocks
        self.expected: tuple[Any, ...] = ()

    def run(self, block: nn.Module, x: Any, *args: Any) -> Any:
        """What stands in for a block's forward.

        Raises RuntimeError if the blocks are not called one after the other with the same further arguments.
        """
        if not (block.training and torch.is_grad_enabled()):
            return type(block).forward(block, x, *args)
        if block is self.blocks[0]:
            x = checkpoint(self.chain, x, *args, use_reentrant=False, preserve_rng_state=True)
        elif [id(a) for a in self.expected] != [id(a) for a in (x, *args)]:
            raise RuntimeError(
                f"gradient_checkpointing=sqrt needs blocks that are called one after the other, and "
                f"{type(block).__name__} was given something else in between; try gradient_checkpointing=full"
            )
        self.expected = () if block is self.blocks[-1] else (x, *args)
        return x

    def chain(self, x: Any, *args: Any) -> Any:
        for block in self.blocks:
            x = type(block).forward(block, x, *args)
        return x
