"""Runs -> the table of a paper: a row per experiment, mean ± standard deviation over seeds, the best marked.

Numbers are ranked only against numbers of the same protocol: kind, split, count, data, weights and every
option of the measurement. Others stand in the same column with a letter that says how they differ from most.
"""

import csv
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from zoo.runs.gather import Result
from zoo.runs.protocol import Cell, marked, protocol, ranked, same
from zoo.runs.rows import Row, check, group, label, value

FACTS = {"steps": "steps", "parameters": "parameters", "seconds": "time"}
HIGHER = (
    "accuracy",
    "psnr",
    "ssim",
    "inception",
    "precision",
    "recall",
    "log_prob",
    "per_second",
    "active",
    "usage",
)


class Column(NamedTuple):
    """One number for all rows, None where a row has none; `published` is the papers'."""

    name: str
    unit: str
    split: str
    cells: list[Cell | None]
    published: list[float | None]


class Table(NamedTuple):
    """keys and rows stand left, then the numbers, then facts: per row the values that its runs have."""

    keys: tuple[str, ...]
    rows: list[Row]
    numbers: list[Column]
    facts: dict[str, list[list[Any]]]
    footnotes: dict[str, str]  # letter -> how these numbers differ
    notes: list[str]


def compare(
    results: Sequence[Result],
    keys: Sequence[str] = (),
    *,
    over: Sequence[str] = ("seed",),
    metrics: Sequence[str] = (),
    split: str | None = None,
    columns: Sequence[str] = tuple(FACTS),
    published: Mapping[tuple[str, str], float] | None = None,
) -> Table:
    """The table of finished runs.

    keys       config keys, a row for each combination of their values; none: a row for each config
    over       config keys that are averaged over
    metrics    names of numbers; none: each run's headline, its first number on the test split
    split      test, val ...; None: test, and val for runs that have no test
    columns    facts behind the numbers: steps, parameters, seconds, or config keys
    published  {(row, metric): value}; those in a config's `experiment.published` are added
    Raises ValueError for an unknown key, metric or split, with what there is, and where no run is finished.
    """
    finished = [run for run in results if run.status == "finished"]
    notes = [_unfinished(run) for run in results if run.status != "finished"]
    if not finished:
        raise ValueError(f"none of {len(results)} runs is finished: {'; '.join(notes)}")
    check(
        finished,
        [key for key in (*keys, *columns) if key not in FACTS] + [key for key in over if key != "seed"],
    )
    splits = (split,) if split else ("test", "val")
    _check_numbers(finished, metrics, splits)
    rows, mixed = group(finished, keys, over)
    notes += mixed
    asked = [found for row in rows for run in row.runs for found in _asked(run, metrics, splits)]
    shown = keys or ("name", "dataset.name")
    hidden = {"dataset"} if {"dataset", "dataset.name"} & set(shown) else set()
    footnotes: dict[str, str] = {}
    versions: dict[str, list[str]] = {}
    numbers = []
    for name, unit in dict.fromkeys(asked):
        cells, left_out = _cells(rows, name, unit, splits, versions)
        notes += left_out
        cells = marked(ranked(cells, higher(name)), hidden, footnotes)
        tested = Counter(cell.protocol["split"] for cell in cells if cell)
        known = [_published(row, name, published or {}) for row in rows]
        notes += [
            f"{' '.join(row.labels)} has no {name}: {why}"
            for row in rows
            for why in _reasons(row, name, splits)
        ]
        numbers.append(Column(name, unit, max(tested, key=lambda s: tested[s]), cells, known))
    if any(cell and cell.n > 1 for column in numbers for cell in column.cells):
        notes.insert(0, f"mean ± unbiased standard deviation (runs) over {', '.join(over)}")
    if footnotes:
        notes.insert(0, "the best is marked among numbers of one protocol only")
    unused = _unused(rows, numbers, published or {})
    notes += [f"no row and number for the published {name} of {row}" for row, name in unused]
    if len(versions) > 1:
        by = [
            f"{told or 'unknown'}: {', '.join(dict.fromkeys(who))}" for told, who in sorted(versions.items())
        ]
        notes.append(f"numbers of different versions of the code: {'; '.join(by)}")
    facts = {FACTS.get(key, key): [_facts(row, key) for row in rows] for key in columns}
    letters = {letter: text for text, letter in footnotes.items()}
    return Table(tuple(shown), rows, numbers, facts, letters, notes)


def higher(name: str) -> bool:
    """Whether more of a number is better: not of nats, bits, perplexity or distances."""
    return any(word in name for word in HIGHER)


def read_published(path: Path) -> dict[tuple[str, str], float]:
    """A CSV with columns row, metric, value -> {(row, metric): value}; rows are named as in the table."""
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file {path}; --published takes a CSV with columns row,metric,value"
        )
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    try:
        return {(line["row"], line["metric"]): float(line["value"]) for line in lines}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no CSV with columns row,metric,value (a number): {error!r}") from None


def _unfinished(run: Result) -> str:
    why = f"{run.status}: {run.reason}" if run.reason else run.status
    return f"not in the table: {run.name} ({run.folder}), {why}"


def _check_numbers(results: Sequence[Result], metrics: Sequence[str], splits: Sequence[str]) -> None:
    names = sorted({number["name"] for run in results for split in splits for number in _of(run, [split])})
    if not names:
        known = sorted({str(number.get("split")) for run in results for number in run.numbers})
        has = ", ".join(known) or "no numbers at all"
        raise ValueError(f"no run has numbers of the split {' or '.join(splits)}; there are: {has}")
    for name in metrics:
        if name not in names:
            near = get_close_matches(name, names, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ValueError(f"no run has the metric {name}; {hint}there are: {', '.join(names)}")


def _reasons(row: Row, name: str, splits: Iterable[str]) -> list[str]:
    """Why a row's runs have no value of a number, each reason once."""
    told = [n for run in row.runs for n in run.numbers if n["name"] == name and n["split"] in splits]
    return list(dict.fromkeys(str(n["reason"]) for n in told if n["value"] is None and n.get("reason")))


def _of(
    run: Result, splits: Iterable[str], name: str | None = None, unit: str | None = None
) -> list[dict[str, Any]]:
    """A run's numbers on the first of the splits where it has any."""
    for split in splits:
        found = [
            number
            for number in run.numbers
            if number.get("split") == split
            and name in (None, number["name"])
            and unit in (None, number.get("unit") or "")
            and number["value"] is not None
        ]
        if found:
            return found
    return []


def _asked(run: Result, metrics: Sequence[str], splits: Sequence[str]) -> list[tuple[str, str]]:
    """Name and unit of a run's numbers that the table shows: the metrics, or its headline."""
    found = (
        [number for name in metrics for number in _of(run, splits, name)] if metrics else _of(run, splits)[:1]
    )
    return [(number["name"], number.get("unit") or "") for number in found]


def _cells(
    rows: Sequence[Row], name: str, unit: str, splits: Sequence[str], versions: dict[str, list[str]]
) -> tuple[list[Cell | None], list[str]]:
    """Each row's mean. A run measured more than once gives the number whose protocol most runs share."""
    measured = {run.identity: _of(run, splits, name, unit) for row in rows for run in row.runs}
    votes: Counter[str] = Counter()
    for row in rows:
        for run in row.runs:
            votes.update({same(protocol(run, number)) for number in measured[run.identity]})
    cells: list[Cell | None] = []
    notes = []
    for row in rows:
        chosen: dict[str, list[tuple[dict[str, Any], dict[str, Any], str]]] = {}
        for run in row.runs:
            told = [(protocol(run, number), number) for number in measured[run.identity]]
            if told:
                how, number = max(told, key=lambda pair: votes[same(pair[0])])
                version = str(number.get("version") or run.version)
                chosen.setdefault(same(how), []).append((how, number, version))
        if not chosen:
            cells.append(None)
            continue
        kept = max(chosen.values(), key=len)
        left = sum(map(len, chosen.values())) - len(kept)
        who = " ".join(row.labels)
        if left:
            notes.append(f"{who} leaves out {left} of its runs: their {name} has another protocol")
        for _, _, version in kept:
            versions.setdefault(version, []).append(who)
        values = [number["value"] for _, number, _ in kept]
        finite = len(values) > 1 and all(map(math.isfinite, values))
        cells.append(
            Cell(
                statistics.fmean(values),
                statistics.stdev(values) if finite else None,
                len(values),
                kept[0][0],
            )
        )
    return cells, notes


def _published(row: Row, name: str, published: Mapping[tuple[str, str], float]) -> float | None:
    for who in _names(row):
        if (who, name) in published:
            return published[who, name]
    told = value(row.runs[0], f"experiment.published.{name}")
    return float(told) if isinstance(told, int | float) else None


def _names(row: Row) -> tuple[str, str]:
    return row.labels[0], " ".join(row.labels)


def _unused(
    rows: Sequence[Row], numbers: Sequence[Column], published: Mapping[tuple[str, str], float]
) -> list[Any]:
    shown = {(who, column.name) for row in rows for who in _names(row) for column in numbers}
    return [key for key in published if key not in shown]


def _facts(row: Row, key: str) -> list[Any]:
    """The different values that a row's runs have for a fact, or for a config key as a reader calls it."""
    if key in FACTS:
        told = [getattr(run, key) for run in row.runs if getattr(run, key) is not None]
    else:
        told = [label(value(run, key)) for run in row.runs]
    return list(dict.fromkeys(told)) if key != "seconds" else told
