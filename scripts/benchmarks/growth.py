"""How time and memory of one layer grow with the length: the exponent p of T^p, fitted from 512 to 8,192.

1 is in proportion to T, 2 is what softmax attention written out has. A row tells the larger one of time and
memory. Layers are those of configs/mixer, width 64, forward and backward, batch 1.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from benchmarks.layers import Step
from benchmarks.measure import Row, interleaved
from zoo import nn as zoo

DIM, HEADS = 64, 4
LENGTHS = (512, 1024, 2048, 4096, 8192)
ROUNDS = 5
MIXERS: dict[str, Callable[[int], nn.Module]] = {
    "window": lambda T: zoo.SlidingWindow(DIM, HEADS, window=128),
    "flash": lambda T: zoo.MixedChunk(DIM),
    "linear": lambda T: zoo.LinearAttention(DIM, HEADS),
    "efficient": lambda T: zoo.EfficientAttention(DIM, HEADS),
    "performer": lambda T: zoo.Performer(DIM, HEADS),
    "nystrom": lambda T: zoo.Nystrom(DIM, HEADS, causal=False),
    "transnormer": lambda T: nn.Sequential(*(zoo.TransNormer(DIM, HEADS, layer=i, depth=2) for i in (0, 1))),
    "retention": lambda T: zoo.Retention(DIM, HEADS),
    "gated_delta": lambda T: zoo.GatedDelta(DIM, HEADS),
    "mamba": lambda T: zoo.Mamba(DIM),
    "mamba2": lambda T: zoo.Mamba2(DIM),
    "lru": lambda T: zoo.LRU(DIM, 64),
    "rwkv": lambda T: zoo.RWKV(DIM),
    "lstm": lambda T: zoo.LSTM(DIM),
    "gru": lambda T: zoo.GRU(DIM),
    "s4": lambda T: zoo.S4(DIM, length=T),
    "s4d": lambda T: zoo.S4D(DIM),
}
FOURIER = {"s4", "s4d"}  # T log T


def rows() -> Iterator[Row]:
    for name, build in MIXERS.items():
        torch.manual_seed(0)
        steps = {T: Step(build(T), torch.randn(1, T, DIM)) for T in LENGTHS}
        seconds = interleaved(steps, ROUNDS)  # type: ignore[arg-type]
        times = [exponent(spent) for spent in zip(*seconds.values(), strict=True)]
        memory = [steps[T].memory() for T in LENGTHS]
        first, last = (statistics.median(seconds[T]) * 1e3 for T in (LENGTHS[0], LENGTHS[-1]))
        yield Row(
            f"{name}: growth with length",
            f"time {statistics.median(times):.2f}",
            f"memory {exponent(memory):.2f}",
            [max(time, exponent(memory)) for time in times],
            most=1.25 if name in FOURIER else 1.1,
            note=f"exponent from {LENGTHS[0]} to {LENGTHS[-1]:,} tokens: {first:.3g} to {last:.4g} ms, "
            f"{memory[0]:.3g} to {memory[-1]:.4g} MB",
        )


def exponent(values: Sequence[float]) -> float:
    """p of values in proportion to T^p, by least squares on logarithms, at LENGTHS."""
    logs = [math.log(T) for T in LENGTHS]
    return statistics.linear_regression(logs, [math.log(value) for value in values]).slope
