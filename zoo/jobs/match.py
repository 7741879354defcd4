"""Models of equal cost: a width is adjusted until a model has so many parameters, or takes so many operations."""

from collections.abc import Callable
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf, open_dict

from zoo.config import build
from zoo.evaluation.cost import training_flops
from zoo.jobs.budget import EXAMPLES
from zoo.jobs.compose import plain
from zoo.jobs.data import loaders

UNITS = {"params": "parameters", "flops": "operations per example"}
TRIES = 64  # widths near to a wanted one that are tried, where a model refuses some
DOUBLINGS = 24


def matched(config: DictConfig) -> DictConfig:
    """The config with the width that comes as near as can be to the cost that its `match` asks for.

    match   {by: "params" | "flops", target, width: a dotted key, within: the relative distance that is accepted};
            `value`, the width, and `reached`, its cost, are added to it. What depends on the width in the config
            follows it
    Widths that the model refuses, as heads that do not divide them, are passed over. Raises ValueError for a key
    that is no whole number, for a width that the cost does not depend on, and for a target that is not reached.
    """
    asked = config.match
    begin = OmegaConf.select(config, asked.width)
    name = f"match.width={asked.width}"
    if not isinstance(begin, int) or isinstance(begin, bool) or begin < 1:
        raise ValueError(f"{name}: it is {begin}; a width is a whole number, 1 or more")
    target = float(asked.target)
    if target <= 0:
        raise ValueError(f"match.target={asked.target}: it must be more than 0")
    width, reached = nearest(lambda w: cost(wide(config, w)), begin, target, f"{name}: the {UNITS[asked.by]}")
    off = abs(reached - target) / target
    if off > asked.within:
        raise ValueError(
            f"match.target={asked.target}: {asked.width}={width} comes nearest, with {reached:,.0f} "
            f"{UNITS[asked.by]}, which is {off:.0%} off; match.within={off + 0.01:.2f} accepts it"
        )
    found = wide(config, width)
    with open_dict(found):
        found.match.value, found.match.reached = width, reached
    return found


def wide(config: DictConfig, width: int) -> DictConfig:
    """The config with another width."""
    other = config.copy()
    OmegaConf.update(other, config.match.width, width)
    return other


def cost(config: DictConfig) -> float:
    """The cost of a config's model, of the kind that its `match` names. Raises what the model's constructor raises."""
    whole = plain(config)
    if config.match.by == "flops":
        batch = next(iter(loaders(whole).loader("train", EXAMPLES, EXAMPLES)))
        return training_flops(build(whole["model"], "model"), batch)
    try:
        with torch.device("meta"):  # nothing is drawn, and no memory taken
            model = build(whole["model"], "model")
    except (RuntimeError, NotImplementedError):  # it computes something when it is made
        model = build(whole["model"], "model")
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def nearest(cost: Callable[[int], float], begin: int, target: float, name: str) -> tuple[int, float]:
    """The width whose cost, which grows with it, is nearest to a target, and that cost; by halving.

    begin   a width that there is: what its cost raises is raised
    """
    known: dict[int, float | None] = {begin: cost(begin)}

    def at(width: int) -> float | None:
        if width not in known:
            try:
                known[width] = cost(width)
            except ValueError:
                known[width] = None
        return known[width]

    def near(width: int, low: int, high: float) -> int | None:
        ways = (width + sign * step for step in range(TRIES) for sign in (1, -1))
        return next((w for w in ways if low < w < high and at(w) is not None), None)

    low, high = 0, float("inf")
    width: int | None = begin
    for _ in range(DOUBLINGS):
        if width is None:
            break
        if value(known, width) <= target:
            low = width
        else:
            high = width
        if low and high < float("inf"):
            break
        width = near(2 * width, low, high) if high == float("inf") else near(width // 2, low, high)
    made = {w: c for w, c in known.items() if c is not None}
    if len(made) > 1 and len(set(made.values())) == 1:
        raise ValueError(f"{name} do not depend on it")
    while high < float("inf") and (width := near((low + int(high)) // 2, low, high)) is not None:
        if value(known, width) <= target:
            low = width
        else:
            high = width
    made = {w: c for w, c in known.items() if c is not None}
    width = min(made, key=lambda w: (abs(made[w] - target), w))
    return width, made[width]


def value(known: dict[int, Any], width: int) -> float:
    """The cost of a width that was found to be one."""
    return float(known[width])
