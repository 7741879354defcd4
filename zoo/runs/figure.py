"""What a figure of run directories is: a list of lines, a line a list of points, each a mean over runs.

zoo.runs.figures makes them, zoo.runs.plot draws them as pictures, zoo.runs.svg as part of a page.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from zoo.runs.gather import Result
from zoo.runs.protocol import protocol, same
from zoo.runs.rows import Row, label, value

WORDS = {
    "bits/char": "bits per character",
    "bits/byte": "bits per byte",
    "bits/dim": "bits per dimension",
    "nats/example": "nats per example",
    "nats/token": "nats per token",
    "per token": "perplexity per token",
    "per word": "perplexity per word",
    "tokens/s": "tokens per second",
}


class Point(NamedTuple):
    """x, a number or a word; mean and unbiased standard deviation (None for one run) of n runs."""

    x: Any
    y: float
    deviation: float | None
    n: int


class Line(NamedTuple):
    """A row's points, and where it cannot go on: the x, and why."""

    name: str
    points: list[Point]
    stop: tuple[float, str] | None = None


class Figure(NamedTuple):
    """What is drawn. `x_kind` is "multiple", "bytes", "number", "linear" or "word"; `source` is the line below."""

    title: str
    x: str
    y: str
    lines: list[Line]
    x_kind: str
    source: str
    connected: bool = True


def points(figure: Figure) -> str:
    """A figure's numbers as text: a line for each x, a column for each of the figure's lines."""
    xs = sorted({p.x for line in figure.lines for p in line.points})
    at = [{p.x: p for p in line.points} for line in figure.lines]
    table = [[figure.x, *(line.name or figure.y for line in figure.lines)]]
    table += [[str(x), *(_told(known.get(x)) for known in at)] for x in xs]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join("  ".join(w.rjust(n) for w, n in zip(row, widths, strict=True)) for row in table)


def _told(point: Point | None) -> str:
    """A mean and its deviation; a dash where there is none."""
    if point is None:
        return "–"
    return f"{point.y:.4g}" + (f" ± {point.deviation:.2g}" if point.deviation is not None else "")


def known(runs: Sequence[Result], metric: str) -> None:
    """ValueError, with what there is, for a metric of which no run has a value."""
    names = sorted({number["name"] for run in runs for number in run.numbers if number["value"] is not None})
    if metric not in names:
        raise ValueError(f"no run has the metric {metric}; there are: {', '.join(names)}")


def title_of(name: str) -> str:
    """A number's name as a heading begins with it."""
    told = words_of(name)
    return told[0].upper() + told[1:]


def name_of(row: Row, keys: Sequence[str]) -> str:
    """How a line is called; a number is told with its key: "model.dim=64"."""
    if not keys:
        return " ".join(row.labels)
    found = [value(row.runs[0], key) for key in keys]
    told = zip(keys, row.labels, found, strict=True)
    return " ".join(f"{key}={text}" if numeric(x) else text for key, text, x in told)


def number_of(run: Result, name: str, splits: Iterable[str]) -> tuple[Result, dict[str, Any]] | None:
    """A run's number on the first of the splits where it has one: of several the last that was added."""
    for split in splits:
        for number in reversed(run.numbers):
            if number["name"] == name and number.get("split") == split and number["value"] is not None:
                return run, number
    return None


def reason_of(row: Row, name: str, splits: Iterable[str]) -> str | None:
    """Why a row has no such number."""
    told = (n for run in row.runs for n in run.numbers if n["name"] == name and n["split"] in splits)
    return next((str(number["reason"]) for number in told if number.get("reason")), None)


def point_of(row: Row, x: Any, numbers: Sequence[tuple[Result, Mapping[str, Any]]]) -> Point | None:
    """The mean over a row's runs. ValueError where they were measured by different protocols."""
    if not numbers:
        return None
    if len({same(protocol(run, number)) for run, number in numbers}) > 1:
        raise ValueError(
            f"{' '.join(row.labels)} averages {numbers[0][1]['name']} of different protocols; "
            "measure these runs alike, or tell them apart by --rows"
        )
    values = [number["value"] for _, number in numbers]
    return Point(
        x,
        statistics.fmean(values),
        statistics.stdev(values) if len(values) > 1 else None,
        len(values),
    )


def numeric(found: Any) -> bool:
    """Whether a value is a number, which True is not."""
    return isinstance(found, int | float) and not isinstance(found, bool)


def words_of(name: str) -> str:
    """A number's name in words: "bits per dim"."""
    return name.replace("_per_", " per ").replace("_", " ")


def axis_of(name: str, used: Sequence[tuple[Result, Mapping[str, Any]]]) -> str:
    """A y axis: what, in which unit, on which split, which way is better."""
    unit = str(used[0][1].get("unit") or "")
    if name == "accuracy":
        return "accuracy (%)"
    told = WORDS.get(unit, f"{words_of(name)} ({unit})" if unit else words_of(name))
    return f"≤ {told}" if any(number.get("kind") == "lower bound" for _, number in used) else told


def source_of(
    lines: Sequence[Line], used: Sequence[tuple[Result, Mapping[str, Any]]], over: Sequence[str]
) -> str:
    """Where the numbers come from: runs, data, split, code."""
    runs = {run.identity: run for run, _ in used}
    names = sorted({label(value(run, "dataset.name")) for run in runs.values()})
    splits = sorted({str(number["split"]) for _, number in used})
    versions = sorted({str(number.get("version") or run.version) for run, number in used} - {""})
    parts = [f"{', '.join(names)}, {' and '.join(splits)} split", f"{len(runs)} runs"]
    counts = sorted({point.n for line in lines for point in line.points})
    if counts[-1] > 1:
        n = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        parts.append(f"mean ± standard deviation over {', '.join(over)}, n = {n}")
    parts.append(
        f"zoo {', '.join(versions)}" if len(versions) < 3 else f"{len(versions)} versions of the zoo"
    )
    return "Source: " + "; ".join(part for part in parts if part.strip() != "zoo")


def distinct(lines: Sequence[Line]) -> list[Line]:
    """Lines without the words that all their names begin or end with."""
    words = [line.name.split(" ") for line in lines]
    if len(lines) > 1:
        while min(map(len, words)) > 1 and len({w[-1] for w in words}) == 1:
            words = [w[:-1] for w in words]
        while min(map(len, words)) > 1 and len({w[0] for w in words}) == 1:
            words = [w[1:] for w in words]
    return [line._replace(name=" ".join(w)) for line, w in zip(lines, words, strict=True)]
