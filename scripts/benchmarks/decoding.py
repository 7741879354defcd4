"""A token's time after 4,096 others over that after 64: one where a layer remembers in a state that does not grow.

One layer of width 64, batch 1, without gradients. Softmax attention, which keeps all keys and values, stands
beside; a last row tells how often its cache copies what it holds.
"""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.growth import DIM, HEADS, MIXERS
from benchmarks.layers import DEVICE, clock
from benchmarks.measure import Row, interleaved, over
from zoo.nn import Attention, SlidingWindow, TransNormer
from zoo.nn.attention import Cache

SHORT, LONG = 64, 4096
TOKENS = 16  # in a round
LAYERS: dict[str, Callable[[int], nn.Module]] = {
    **{name: build for name, build in MIXERS.items() if name not in ("efficient", "nystrom")},  # not causal
    "window": lambda T: SlidingWindow(DIM, HEADS, window=SHORT),  # full from the start
    "transnormer": lambda T: TransNormer(DIM, HEADS, layer=1, depth=2),
}


def rows() -> Iterator[Row]:
    for name, build in LAYERS.items():
        yield later(name, build(SHORT), most=1.1)
    yield later("softmax, with its cache", Attention(DIM, HEADS))
    yield copies()


@torch.no_grad()
def later(name: str, layer: Any, *, most: float | None = None) -> Row:
    """Per token after a long prompt and after a short one."""
    layer = layer.to(DEVICE).eval()
    candidates = {T: partial(tokens, layer, started(layer, T)) for T in (LONG, SHORT)}
    seconds = interleaved(candidates, 41)  # type: ignore[arg-type]
    after = {T: f"{sorted(spent)[len(spent) // 2] * 1e6:.4g} µs" for T, spent in seconds.items()}
    return Row(
        f"{name}: a token after {LONG:,}",
        *(after[T] for T in (LONG, SHORT)),
        over(seconds[LONG], seconds[SHORT]),
        most=most,
        note=f"the same layer after {SHORT}",
    )


def started(layer: Any, T: int) -> Any:
    """The state after T tokens."""
    return layer.prefill(torch.randn(1, T, DIM, device=DEVICE))[1]


@torch.no_grad()
def tokens(layer: Any, state: Any) -> float:
    """Seconds of one token; the state stays as it is."""
    state = copy.deepcopy(state)
    x = torch.randn(TOKENS, 1, DIM, device=DEVICE)
    before = clock()
    for x_t in x:
        _, state = layer.step(x_t, state)
    return (clock() - before) / TOKENS


def copies() -> Row:
    """Keys that a cache has copied, for each that came in, when it has just made itself more room."""
    one = torch.zeros(1, 1, 1, 1)
    cache, copied = Cache(one, one), 0
    for _ in range(LONG):
        room, size = cache.k.shape[2], cache.size
        cache.append(one, one)
        copied += size if cache.k.shape[2] > room else 0
    return Row(
        "softmax's cache: keys copied per token",
        f"{copied:,}",
        f"{LONG:,}",
        [copied / LONG],
        most=2,
        note=f"keys copied over tokens, after {LONG:,}; room doubles when it is full, so never more than 2",
    )
