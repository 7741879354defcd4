"""Schedules: pure functions of the optimizer steps done, giving the factor of the learning rate in [0, 1].

step is 0 for the first optimizer step; steps is the horizon, the number of them all. Each begins with
`warmup` steps in which the factor grows linearly: the k-th of them has k / warmup.
"""

import math
from collections.abc import Sequence


def constant(step: int, *, steps: int, warmup: int = 0) -> float:
    """Warmup, then 1."""
    return min(1.0, (step + 1) / warmup) if warmup else 1.0


def cosine(step: int, *, steps: int, warmup: int = 0, final: float = 0.0) -> float:
    """Half a cosine from 1 to `final`: final + (1 - final) (1 + cos(pi u)) / 2.

    u is the fraction of the steps after the warmup that are done.
    Loshchilov & Hutter 2016, eq. 5, without restarts.
    """
    if step < warmup:
        return constant(step, steps=steps, warmup=warmup)
    return final + (1 - final) * (1 + math.cos(math.pi * progress(step, warmup, steps))) / 2


def linear(step: int, *, steps: int, warmup: int = 0, final: float = 0.0) -> float:
    """A straight line from 1 to `final`: 1 - (1 - final) u, u the fraction after the warmup."""
    if step < warmup:
        return constant(step, steps=steps, warmup=warmup)
    return 1 - (1 - final) * progress(step, warmup, steps)


def wsd(step: int, *, steps: int, warmup: int = 0, decay: float = 0.1, final: float = 0.0) -> float:
    """Warmup, stable, decay: 1 until the last `decay` of all steps, then 1 - (1 - final) u^0.5.

    Hu et al. 2024, "MiniCPM", for the three phases; Hägele et al. 2024, "Scaling Laws and Compute-Optimal
    Training Beyond Fixed Training Durations", for the 1 - sqrt form of the last.
    """
    begin = max(warmup, steps - round(decay * steps))
    if step < begin:
        return constant(step, steps=steps, warmup=warmup)
    return 1 - (1 - final) * math.sqrt(progress(step, begin, steps))


def staircase(
    step: int, *, steps: int, warmup: int = 0, at: Sequence[float] = (0.5, 0.75), factor: float = 0.1
) -> float:
    """Warmup, then 1, times `factor` at each of the fractions `at` of all steps."""
    down = factor ** sum(step >= fraction * steps for fraction in at)
    return constant(step, steps=steps, warmup=warmup) * down


def progress(step: int, begin: int, end: int) -> float:
    """How far a step is between two, in [0, 1]."""
    return min(1.0, (step - begin) / max(1, end - begin))
