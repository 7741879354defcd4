"""Model FLOPs utilisation: the part of a GPU's measured speed that a Transformer's training step makes use of.

width 1,024, length 2,048, bfloat16 by autocast, torch.compile, fused AdamW in the step. The GPU's speed is that of
a product of two 8192 x 8192 matrices in bfloat16.
"""

from collections.abc import Callable
from functools import partial

import torch

from benchmarks.layers import DEVICE, clock
from benchmarks.measure import Row
from benchmarks.training import ADAMW
from zoo.models import Autoregressive
from zoo.nn import Attention

DIM, DEPTH, HEADS, TOKENS, LEVELS, BATCH = 1024, 12, 16, 2048, 256, 16
SIDE = 8192


def row() -> Row:
    what = "model FLOPs utilisation"
    if DEVICE.type != "cuda":
        return Row(what, note="there is no GPU here")
    name = torch.cuda.get_device_name()
    a, b = torch.randn(2, SIDE, SIDE, device=DEVICE, dtype=torch.bfloat16)
    fastest = 2 * SIDE**3 / seconds(lambda: a @ b)
    flops = training_flops(dim=DIM, depth=DEPTH, tokens=TOKENS, levels=LEVELS, batch=BATCH)
    reached = flops / seconds(training_step())
    return Row(
        what,
        f"{reached / 1e12:.0f} TFLOP/s",
        f"{fastest / 1e12:.0f} TFLOP/s",
        [reached / fastest],
        least=0.45,
        note=f"{name}'s bfloat16 product of {SIDE:,}-wide matrices; dim {DIM}, {DEPTH} blocks, {TOKENS:,} tokens, "
        f"batch {BATCH}, compiled; causal attention counted half",
    )


def training_flops(
    *, dim: int, depth: int, tokens: int, levels: int, batch: int, ratio: float = 4.0
) -> float:
    """Floating-point operations of one training step of a causal Transformer, D = dim, T = tokens.

    A product of matrices has two for each of its multiplications; nothing else is counted. Per token, forward:

        each block      2 (4 D^2)           queries, keys, values, output
                        2 (2 ratio D^2)     feed-forward
                        2 (2 D T / 2)       scores and means of values: half of them, for half is masked
        once            2 D levels          the head; the embedding is a look-up

    and twice as many backward. What is computed anew, as checkpoints are, does not count.
    """
    block = 2 * (4 + 2 * ratio) * dim**2 + 2 * dim * tokens
    return 3 * batch * tokens * (depth * block + 2 * dim * levels)


def training_step() -> Callable[[], None]:
    """A function that takes one step: loss, gradients, optimizer."""
    model = Autoregressive(
        shape=(TOKENS,), levels=LEVELS, dim=DIM, depth=DEPTH, mixer=partial(Attention, heads=HEADS)
    ).to(DEVICE)
    optimizer = ADAMW(model.parameters())
    loss = torch.compile(model.loss)
    x = torch.randint(LEVELS, (BATCH, TOKENS), device=DEVICE)

    def take() -> None:
        optimizer.zero_grad()
        with torch.autocast(DEVICE.type, torch.bfloat16):
            told = loss(x)["loss"]
        told.backward()
        optimizer.step()

    return take


def seconds(work: Callable[[], object], *, warm: int = 5, times: int = 20) -> float:
    """Of one, on an idle GPU."""
    for _ in range(warm):
        work()
    before = clock()
    for _ in range(times):
        work()
    return (clock() - before) / times
