"""Figures of models of sequences: a number by the length of the context, and by the size of the state."""

from collections.abc import Mapping, Sequence
from typing import Any

from zoo.runs.figure import (
    Figure,
    Line,
    axis_of,
    distinct,
    name_of,
    number_of,
    point_of,
    reason_of,
    source_of,
    title_of,
)
from zoo.runs.gather import Result
from zoo.runs.rows import Row


def by_length(
    rows: Sequence[Row], metric: str, keys: Sequence[str], splits: Sequence[str], over: Sequence[str]
) -> Figure:
    """A number against the context; no metric named: the first likelihood that was measured at several lengths."""
    measured = [number for row in rows for run in row.runs for number in run.numbers if _multiple(number)]
    names = {_stem(number) for number in measured}
    wanted = (metric,) if metric else ("bits_per_char", "bits_per_byte", "perplexity")
    stem = next((name for name in wanted if name in names), None)
    if stem is None:
        raise ValueError(
            f"no run was measured{f' for {metric}' if metric else ''} at several lengths; "
            "do it with evaluate.py run=<one> lengths=[1,2,4,8,16]"
        )
    measured = [number for number in measured if _stem(number) == stem]
    lines, used = [], []
    for row in rows:
        points, stop = [], None
        for multiple in sorted({int(number["protocol"]["multiple"]) for number in measured}):
            name = f"{stem}_at_{multiple}x"
            numbers = [found for run in row.runs if (found := number_of(run, name, splits))]
            if point := point_of(row, multiple, numbers):
                points.append(point)
                used += numbers
            elif stop is None and (why := reason_of(row, name, splits)):
                stop = (multiple, why)
        if points:
            lines.append(Line(name_of(row, keys), points, stop))
    trained = {number["protocol"]["context"] // number["protocol"]["multiple"] for _, number in used}
    length = f" = {trained.pop():,} tokens" if len(trained) == 1 else ""
    told = used[0][1]["protocol"].get("method") == "nats"
    return Figure(
        "Longer context than in training, same target tokens" if told else f"{title_of(stem)} by length",
        f"context, in multiples of the training length (1×{length})",
        axis_of(stem, used),
        distinct(lines),
        "multiple",
        source_of(lines, used, over),
    )


def by_state(
    rows: Sequence[Row], metric: str, keys: Sequence[str], splits: Sequence[str], over: Sequence[str]
) -> Figure:
    """A number against what a model can remember, the state's bytes of one example: a point for each size of a row."""
    lines, used = [], []
    for row in rows:
        at: dict[float, list[tuple[Result, dict[str, Any]]]] = {}
        for run in row.runs:
            size, found = number_of(run, "state_bytes_at_1x", splits), number_of(run, metric, splits)
            if size and found:
                at.setdefault(size[1]["value"], []).append(found)
        points = [point for x in sorted(at) if (point := point_of(row, x, at[x]))]
        if points:
            lines.append(Line(name_of(row, keys), points))
            used += [found for numbers in at.values() for found in numbers]
    if not lines:
        raise ValueError(
            f"no run has both {metric} and a state size; evaluate.py run=<one> speed=true measures the latter"
        )
    return Figure(
        f"{title_of(metric)} by the size of the state",
        "state of one example at the training length",
        axis_of(metric, used),
        distinct(lines),
        "bytes",
        source_of(lines, used, over),
        connected=any(len(line.points) > 1 for line in lines),
    )


def _multiple(number: Mapping[str, Any]) -> bool:
    """Whether a number is one of several lengths."""
    return "multiple" in number["protocol"] and "_at_" in str(number["name"])


def _stem(number: Mapping[str, Any]) -> str:
    return str(number["name"]).rpartition("_at_")[0]
