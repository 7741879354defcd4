"""The figures that there are: numbers by context, by state size, by cost, by a config key or by an option."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from zoo.runs.curves import curve
from zoo.runs.figure import (
    Figure,
    Line,
    axis_of,
    distinct,
    known,
    name_of,
    number_of,
    numeric,
    point_of,
    source_of,
    title_of,
    words_of,
)
from zoo.runs.gather import Result
from zoo.runs.lengths import by_length, by_state
from zoo.runs.options import PREFIX, curves
from zoo.runs.rows import MISSING, Row, called, check, group, label, value

# what a run cost, and how its axis is called; beside these: state, length, a config key, protocol.<option>
COSTS: dict[str, tuple[str, Callable[[Result], float | None]]] = {
    "steps": ("optimizer steps", lambda run: run.steps),
    "seconds": ("training time (s)", lambda run: run.seconds),
    "parameters": ("parameters", lambda run: run.parameters),
    "flops": ("operations of training", lambda run: run.flops),
}
AXES = (*COSTS, "state", "length")
KNOWN = {"extrapolation": ":length", "recall": "accuracy:state"}


def figure(
    what: str,
    results: Sequence[Result],
    keys: Sequence[str] = (),
    *,
    over: Sequence[str] = ("seed",),
    split: str | None = None,
) -> Figure:
    """The figure that `what` names, <metric>:<x>.

    extrapolation        a likelihood against the context, in multiples of the training length
    recall               accuracy against the bytes of the state
    <metric>:<axis>      a number against steps, seconds, parameters, flops, state or length
    <metric>:<key>       a number against a value of the config
    <metric>:protocol.<option>   a number against an option that it was measured with
    <split>/<metric>:<axis>      what was logged in training against steps, seconds or flops

    keys    config keys, a line for each combination of their values; none: a line for each config, and one
            for all of them where x is a config key or a cost

    Raises ValueError where no finished run has these numbers, for an unknown key or metric, and where runs
    that would be averaged were measured by different protocols.
    """
    finished = [run for run in results if run.status == "finished"]
    if not finished:
        raise ValueError(f"none of {len(results)} runs is finished")
    splits = (split,) if split else ("test", "val")
    metric, found, x = KNOWN.get(what, what).partition(":")
    if not (found and x):
        raise ValueError(
            f"--plot {what}: it takes extrapolation, recall or <metric>:<config key>, for which "
            f"{', '.join(AXES)} and protocol.<option> may be"
        )
    if x not in AXES and not x.startswith(PREFIX):
        check(finished, [*keys, x])
    check(finished, keys)
    if "/" in metric:
        return curve(group(finished, keys, over)[0], metric, x, keys, over)
    if x == "length":
        return by_length(group(finished, keys, over)[0], metric, keys, splits, over)
    if x == "state":
        return by_state(group(finished, keys, over)[0], metric, keys, splits, over)
    if x in COSTS:
        return _by_cost(finished, metric, x, keys, splits, over)
    if x.startswith(PREFIX):
        return _by_option(finished, metric, x.removeprefix(PREFIX), keys, splits, over)
    return _by_key(finished, metric, x, keys, splits, over)


def _by_cost(
    runs: Sequence[Result],
    metric: str,
    fact: str,
    keys: Sequence[str],
    splits: Sequence[str],
    over: Sequence[str],
) -> Figure:
    """A number against what it cost: a point for each config, at the mean of its runs' costs."""
    known(runs, metric)
    lines, used = [], []
    for row in group(runs, keys, over)[0] if keys else [Row(("",), list(runs))]:
        points = []
        for same in group(row.runs, (), over)[0]:
            told = [(cost, found) for run in same.runs if (cost := COSTS[fact][1](run)) is not None
                    and (found := number_of(run, metric, splits))]  # fmt: skip
            numbers = [found for _, found in told]
            if numbers and (point := point_of(row, statistics.fmean(cost for cost, _ in told), numbers)):
                points.append(point)
                used += numbers
        if points:
            lines.append(Line(name_of(row, keys), sorted(points, key=lambda point: point.x)))
    if not lines:
        raise ValueError(f"no run has {metric} on {' or '.join(splits)}, and a count of {fact}")
    return Figure(
        f"{title_of(metric)} by {COSTS[fact][0]}",
        COSTS[fact][0],
        axis_of(metric, used),
        distinct(lines),
        "number",
        source_of(lines, used, over),
        connected=bool(keys) and any(len(line.points) > 1 for line in lines),
    )


def _by_key(
    runs: Sequence[Result],
    metric: str,
    key: str,
    keys: Sequence[str],
    splits: Sequence[str],
    over: Sequence[str],
) -> Figure:
    """A number against a value of the config."""
    known(runs, metric)
    rows = group(runs, keys, over)[0] if keys else [Row(("",), list(runs))]
    scaled = all(numeric(value(run, key)) for run in runs if value(run, key) is not MISSING)
    lines, used = [], []
    for row in rows:
        at: dict[Any, list[Result]] = {}
        for run in row.runs:
            if (x := value(run, key)) is not MISSING:
                at.setdefault(x if scaled else called(run, key), []).append(run)
        points = []
        for x in sorted(at):
            numbers = [found for run in at[x] if (found := number_of(run, metric, splits))]
            if point := point_of(row, x, numbers):
                points.append(point)
                used += numbers
        if points:
            lines.append(Line(name_of(row, keys), points))
    if not lines:
        raise ValueError(f"no run has {metric} on {' or '.join(splits)}, and a value of {key}")
    kind = "number" if scaled else "word"
    return Figure(
        f"{title_of(metric)} by {key}",
        key,
        axis_of(metric, used),
        distinct(lines),
        kind,
        source_of(lines, used, over),
        connected=scaled,
    )


def _by_option(
    runs: Sequence[Result],
    metric: str,
    option: str,
    keys: Sequence[str],
    splits: Sequence[str],
    over: Sequence[str],
) -> Figure:
    """A number against an option that it was measured with, as the steps of a solver."""
    lines, used = [], []
    for row in group(runs, keys, over)[0]:
        for name, at in curves(row.runs, metric, option, splits).items():
            numbers = [found for x in at for found in at[x]]
            told = {x if numeric(x) else label(x): at[x] for x in at}
            points = [point for x in sorted(told) if (point := point_of(row, x, told[x]))]
            lines.append(Line(" ".join(filter(None, (name_of(row, keys), name))), points))
            used += numbers
    if not lines:
        raise ValueError(
            f"no run has {metric} on {' or '.join(splits)} with {option} in its protocol; "
            f"measure it: evaluate.py -m run=<one> metrics=[...] sample.{option}=..."
        )
    scaled = all(numeric(point.x) for line in lines for point in line.points)
    return Figure(
        f"{title_of(metric)} by {words_of(option)}",
        words_of(option),
        axis_of(metric, used),
        distinct(lines),
        "number" if scaled else "word",
        source_of(lines, used, over),
        connected=scaled,
    )
