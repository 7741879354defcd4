"""What a figure of run directories shows: numbers by context, by state size or by a config key.

A figure is a list of lines, a line a list of points, all of it from results.json; zoo.runs.plot draws it.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from zoo.runs.gather import Result
from zoo.runs.protocol import protocol, same
from zoo.runs.rows import MISSING, Row, check, group, label, value

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
    """What is drawn. `x_kind` is "multiple", "bytes", "number" or "word"; `source` is the line below."""

    title: str
    x: str
    y: str
    lines: list[Line]
    x_kind: str
    source: str
    connected: bool = True


def figure(
    what: str,
    results: Sequence[Result],
    keys: Sequence[str] = (),
    *,
    over: Sequence[str] = ("seed",),
    split: str | None = None,
) -> Figure:
    """The figure that `what` names: extrapolation, recall, or <metric>:<config key>.

    keys    config keys, a line for each combination of their values; none: a line for each config, and one
            for all of them where x is a config key

    Raises ValueError where no finished run has these numbers, for an unknown key or metric, and where runs
    that would be averaged were measured by different protocols.
    """
    finished = [run for run in results if run.status == "finished"]
    if not finished:
        raise ValueError(f"none of {len(results)} runs is finished")
    splits = (split,) if split else ("test", "val")
    if what == "extrapolation":
        check(finished, keys)
        return _extrapolation(group(finished, keys, over)[0], keys, splits, over)
    if what == "recall":
        check(finished, keys)
        return _recall(group(finished, keys, over)[0], keys, splits, over)
    metric, found, key = what.partition(":")
    if not (metric and found and key):
        raise ValueError(f"--plot {what}: it takes extrapolation, recall or <metric>:<config key>")
    check(finished, [*keys, key])
    return _by_key(finished, metric, key, keys, splits, over)


def _extrapolation(
    rows: Sequence[Row], keys: Sequence[str], splits: Sequence[str], over: Sequence[str]
) -> Figure:
    """Loss against the context, in multiples of the length that was trained on."""
    measured = [number for row in rows for run in row.runs for number in run.numbers if _multiple(number)]
    names = {_stem(number) for number in measured}
    wanted = ("bits_per_char", "bits_per_byte", "perplexity")
    stem = next((name for name in wanted if name in names), None)
    if stem is None:
        raise ValueError(
            "no run was measured at several lengths; do it with evaluate.py run=<one> lengths=[1,2,4,8,16]"
        )
    lines, used = [], []
    for row in rows:
        points, stop = [], None
        for multiple in sorted({int(number["protocol"]["multiple"]) for number in measured}):
            name = f"{stem}_at_{multiple}x"
            numbers = [found for run in row.runs if (found := _number(run, name, splits))]
            if point := _point(row, multiple, numbers):
                points.append(point)
                used += numbers
            elif stop is None and (why := _reason(row, name, splits)):
                stop = (multiple, why)
        if points:
            lines.append(Line(_name(row, keys), points, stop))
    trained = {number["protocol"]["context"] // number["protocol"]["multiple"] for _, number in used}
    length = f" = {trained.pop():,} tokens" if len(trained) == 1 else ""
    return Figure(
        "Longer context than in training, same target tokens",
        f"context, in multiples of the training length (1×{length})",
        _axis(stem, used),
        _distinct(lines),
        "multiple",
        _source(lines, used, over),
    )


def _recall(rows: Sequence[Row], keys: Sequence[str], splits: Sequence[str], over: Sequence[str]) -> Figure:
    """Accuracy against what a model can remember, the state's bytes of one example: a point for each size of a row."""
    lines, used = [], []
    for row in rows:
        at: dict[float, list[tuple[Result, dict[str, Any]]]] = {}
        for run in row.runs:
            size, found = _number(run, "state_bytes_at_1x", splits), _number(run, "accuracy", splits)
            if size and found:
                at.setdefault(size[1]["value"], []).append(found)
        points = [point for x in sorted(at) if (point := _point(row, x, at[x]))]
        if points:
            lines.append(Line(_name(row, keys), points))
            used += [found for numbers in at.values() for found in numbers]
    if not lines:
        raise ValueError(
            "no run has both an accuracy and a state size; evaluate.py run=<one> speed=true measures the latter"
        )
    return Figure(
        "Accuracy by the size of the state",
        "state of one example at the training length",
        "accuracy (%)",
        _distinct(lines),
        "bytes",
        _source(lines, used, over),
        connected=any(len(line.points) > 1 for line in lines),
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
    names = sorted({number["name"] for run in runs for number in run.numbers if number["value"] is not None})
    if metric not in names:
        raise ValueError(f"no run has the metric {metric}; there are: {', '.join(names)}")
    rows = group(runs, keys, over)[0] if keys else [Row(("",), list(runs))]
    numeric = all(_numeric(value(run, key)) for run in runs if value(run, key) is not MISSING)
    lines, used = [], []
    for row in rows:
        at: dict[Any, list[Result]] = {}
        for run in row.runs:
            if (x := value(run, key)) is not MISSING:
                at.setdefault(x if numeric else label(x), []).append(run)
        points = []
        for x in sorted(at):
            numbers = [found for run in at[x] if (found := _number(run, metric, splits))]
            if point := _point(row, x, numbers):
                points.append(point)
                used += numbers
        if points:
            lines.append(Line(_name(row, keys), points))
    if not lines:
        raise ValueError(f"no run has {metric} on {' or '.join(splits)}, and a value of {key}")
    kind = "number" if numeric else "word"
    title = f"{_words(metric)} by {key}"
    return Figure(
        title[0].upper() + title[1:],
        key,
        _axis(metric, used),
        _distinct(lines),
        kind,
        _source(lines, used, over),
        connected=numeric,
    )


def _name(row: Row, keys: Sequence[str]) -> str:
    """How a line is called; a number is told with its key: "model.dim=64"."""
    if not keys:
        return " ".join(row.labels)
    found = [value(row.runs[0], key) for key in keys]
    told = zip(keys, row.labels, found, strict=True)
    return " ".join(f"{key}={text}" if _numeric(x) else text for key, text, x in told)


def _number(run: Result, name: str, splits: Iterable[str]) -> tuple[Result, dict[str, Any]] | None:
    """A run's number on the first of the splits where it has one, the newest."""
    for split in splits:
        for number in reversed(run.numbers):
            if number["name"] == name and number.get("split") == split and number["value"] is not None:
                return run, number
    return None


def _reason(row: Row, name: str, splits: Iterable[str]) -> str | None:
    """Why a row has no such number."""
    told = (n for run in row.runs for n in run.numbers if n["name"] == name and n["split"] in splits)
    return next((str(number["reason"]) for number in told if number.get("reason")), None)


def _point(row: Row, x: Any, numbers: Sequence[tuple[Result, Mapping[str, Any]]]) -> Point | None:
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


def _multiple(number: Mapping[str, Any]) -> bool:
    """Whether a number is one of a text told with so many times the training length."""
    return "multiple" in number["protocol"] and number["protocol"].get("method") == "nats"


def _stem(number: Mapping[str, Any]) -> str:
    return str(number["name"]).rpartition("_at_")[0]


def _numeric(found: Any) -> bool:
    return isinstance(found, int | float) and not isinstance(found, bool)


def _words(name: str) -> str:
    return name.replace("_per_", " per ").replace("_", " ")


def _axis(name: str, used: Sequence[tuple[Result, Mapping[str, Any]]]) -> str:
    """A y axis: what, in which unit, on which split, which way is better."""
    unit = str(used[0][1].get("unit") or "")
    if name == "accuracy":
        return "accuracy (%)"
    told = WORDS.get(unit, f"{_words(name)} ({unit})" if unit else _words(name))
    return f"≤ {told}" if any(number.get("kind") == "lower bound" for _, number in used) else told


def _source(
    lines: Sequence[Line], used: Sequence[tuple[Result, Mapping[str, Any]]], over: Sequence[str]
) -> str:
    """Where the numbers come from: runs, data, split, code."""
    runs = {run.identity: run for run, _ in used}
    names = sorted({label(value(run, "dataset.name")) for run in runs.values()})
    splits = sorted({str(number["split"]) for _, number in used})
    versions = sorted({str(number.get("version") or run.version) for run, number in used} - {""})
    parts = [f"{', '.join(names)}, {' and '.join(splits)} split", f"{len(runs)} runs"]
    if any(point.n > 1 for line in lines for point in line.points):
        parts.append(f"mean ± standard deviation over {', '.join(over)}")
    parts.append(
        f"zoo {', '.join(versions)}" if len(versions) < 3 else f"{len(versions)} versions of the zoo"
    )
    return "Source: " + "; ".join(part for part in parts if part.strip() != "zoo")


def _distinct(lines: Sequence[Line]) -> list[Line]:
    """Lines without the words that all their names begin or end with."""
    words = [line.name.split(" ") for line in lines]
    if len(lines) > 1:
        while min(map(len, words)) > 1 and len({w[-1] for w in words}) == 1:
            words = [w[:-1] for w in words]
        while min(map(len, words)) > 1 and len({w[0] for w in words}) == 1:
            words = [w[1:] for w in words]
    return [line._replace(name=" ".join(w)) for line, w in zip(lines, words, strict=True)]
