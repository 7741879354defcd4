"""Which of a run's numbers stands in a cell of a table, and the mean over a row's runs."""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

from zoo.runs.gather import Result
from zoo.runs.protocol import Cell, protocol, same
from zoo.runs.rows import Row, label, value


def check_numbers(results: Sequence[Result], metrics: Sequence[str], splits: Sequence[str]) -> None:
    """Raises ValueError, with the nearest name, for a metric or a split of which no run has a number."""
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


def reasons(row: Row, name: str, splits: Iterable[str]) -> list[str]:
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


def asked(run: Result, metrics: Sequence[str], splits: Sequence[str]) -> list[tuple[str, str]]:
    """Name and unit of a run's numbers that the table shows: the metrics, or its headline."""
    found = (
        [number for name in metrics for number in _of(run, splits, name)] if metrics else _of(run, splits)[:1]
    )
    return [(number["name"], number.get("unit") or "") for number in found]


def cells(
    rows: Sequence[Row],
    name: str,
    unit: str,
    splits: Sequence[str],
    versions: dict[str, list[str]],
    over: Sequence[str] = (),
) -> tuple[list[Cell | None], list[str]]:
    """Each row's mean, with its runs' values by what they are averaged over, and sentences about what is left out.

    A run measured more than once gives the number whose protocol most runs share. `versions` collects which rows
    were measured by which version of the code.
    """
    measured = {run.identity: _of(run, splits, name, unit) for row in rows for run in row.runs}
    votes: Counter[str] = Counter()
    for row in rows:
        for run in row.runs:
            votes.update({same(protocol(run, number)) for number in measured[run.identity]})
    cells: list[Cell | None] = []
    notes = []
    for row in rows:
        chosen: dict[str, list[tuple[dict[str, Any], Result, dict[str, Any]]]] = {}
        for run in row.runs:
            told = [(protocol(run, number), number) for number in measured[run.identity]]
            if told:
                how, number = max(told, key=lambda pair: votes[same(pair[0])])
                chosen.setdefault(same(how), []).append((how, run, number))
        if not chosen:
            cells.append(None)
            continue
        kept = max(chosen.values(), key=len)
        left = sum(map(len, chosen.values())) - len(kept)
        who = " ".join(row.labels)
        if left:
            notes.append(f"{who} leaves out {left} of its runs: their {name} has another protocol")
        for _, run, number in kept:
            versions.setdefault(str(number.get("version") or run.version), []).append(who)
        values = [number["value"] for _, _, number in kept]
        finite = len(values) > 1 and all(map(math.isfinite, values))
        cells.append(
            Cell(
                statistics.fmean(values),
                statistics.stdev(values) if finite else None,
                len(values),
                kept[0][0],
                tuple((place(run, over), number["value"]) for _, run, number in kept),
            )
        )
    return cells, notes


def place(run: Result, over: Sequence[str]) -> str:
    """What a run is among those it is averaged with: its seed, or all of `over`."""
    return ", ".join(f"{key}={label(value(run, key))}" for key in over)
