"""Gradient checkpointing: parts of a forward pass are computed again in the backward pass, not kept.

n is the number of blocks that a model names in `blocks`. Losses and gradients stay what they are, dropout
included; of `invertible`, up to the rounding of what is inverted.

A block gives x, or, if it is a bijection, (x, log-determinant). A model whose blocks are not all called one after
the other, each on the last one's x, also names `runs`: lists of those that are.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from zoo.nn.invertible import Inverted

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
POLICIES = "none, full, sqrt, selective, invertible, or a number n for every n-th block"


def checkpoint_blocks(model: nn.Module, policy: str | int) -> None:
    """Set, in place, which of a model's blocks recompute their activations. The last call counts.

    none        nothing is recomputed
    full        each block: memory for one block and n inputs, time of one more forward pass
    sqrt        segments of sqrt(n) blocks: memory for sqrt(n) blocks and sqrt(n) inputs (Chen et al. 2016).
                For models whose blocks are called one after the other, each on the last one's output
    a number    every such-and-such block: 2 is every other one
    selective   each block, but products of matrices, convolutions and attention are kept: cheap operations
                run again, and all of an LSTM or GRU
    invertible  each run of blocks: memory for its output, from which its activations are found by inverting the
                blocks. For flows

    Raises ValueError for another policy, for a model that names no blocks, and for invertible where a block has
    no inverse.
    """
    policy = int(policy) if str(policy).isdecimal() else policy
    known = ("none", "full", "sqrt", "selective", "invertible")
    if policy not in known and not (isinstance(policy, int) and policy > 0):
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
    if policy == "invertible" and not all(hasattr(block, "inverse") for block in blocks):
        raise ValueError(
            f"gradient_checkpointing=invertible: the blocks of {type(model).__name__} have no inverse to recompute "
            "their inputs by, as those of a flow have; try gradient_checkpointing=full"
        )
    if policy in ("sqrt", "invertible"):
        for run in getattr(model, "runs", [blocks]):
            size = math.isqrt(len(blocks) - 1) + 1 if policy == "sqrt" else len(run)
            for start in range(0, len(run), size):
                segment = Segment(run[start : start + size], kept if policy == "sqrt" else inverted)
                for block in segment.blocks:
                    block.forward = partial(segment.run, block)
        return
    for block in blocks[:: policy if isinstance(policy, int) else 1]:
        options = {"context_fn": selective} if policy == "selective" and not overwrites(block) else {}
        block.forward = partial(recomputed, block, options)


def overwrites(block: nn.Module) -> bool:
    """Whether products of matrices cannot be kept: torch's LSTM and GRU write their gates over them."""
    return any(isinstance(module, nn.RNNBase) for module in block.modules())


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
    """Blocks that are recomputed together: the first runs all of them, the others hand on what they get.

    through   (blocks, x, *args) -> what comes out of the last one: `kept` or `inverted`
    """

    def __init__(self, blocks: Sequence[nn.Module], through: Callable[..., Any]) -> None:
        self.blocks, self.through = blocks, through
        self.expected: tuple[Any, ...] = ()

    def run(self, block: nn.Module, x: Any, *args: Any) -> Any:
        """What stands in for a block's forward; the log-determinant of all bijections is the first one's.

        Raises RuntimeError if the blocks are not called one after the other with the same further arguments.
        """
        if not (block.training and torch.is_grad_enabled()):
            return type(block).forward(block, x, *args)
        if block is self.blocks[0]:
            out = self.through(self.blocks, x, *args)
        elif [id(a) for a in self.expected] != [id(a) for a in (x, *args)]:
            raise RuntimeError(
                f"gradient_checkpointing=sqrt or invertible needs blocks that are called one after the other, and "
                f"{type(block).__name__} was given something else in between; try gradient_checkpointing=full"
            )
        else:
            out = (x, x.new_zeros(len(x))) if hasattr(block, "inverse") else x
        handed = out[0] if isinstance(out, tuple) else out
        self.expected = () if block is self.blocks[-1] else (handed, *args)
        return out


def kept(blocks: Sequence[nn.Module], x: Any, *args: Any) -> Any:
    """What blocks make of x, of which only x is kept."""
    return checkpoint(chain, blocks, x, *args, use_reentrant=False, preserve_rng_state=True)


def inverted(blocks: Sequence[nn.Module], x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What bijections make of x, of which only the result is kept."""
    return Inverted.apply(blocks, x, *(p for block in blocks for p in block.parameters() if p.requires_grad))


def chain(blocks: Sequence[nn.Module], x: Any, *args: Any) -> Any:
    """Blocks one after the other; log-determinants, if they have any, add up."""
    total = None
    for block in blocks:
        x = type(block).forward(block, x, *args)
        if isinstance(x, tuple):
            x, log_det = x
            total = log_det if total is None else total + log_det
    return x if total is None else (x, total)
