"""Which of a run's numbers stands in a cell of a table, and the mean over a row's runs."""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

from zoo.runs.gather import Found, Result
from zoo.runs.protocol import Cell, protocol, same
from zoo.runs.rows import Row, called


def check_numbers(results: Sequence[Result], metrics: Sequence[str], splits: Sequence[str]) -> None:
    """Raises ValueError, with the nearest name, for a metric or a split of which no run has a number."""
    names = sorted(
        {number["name"] for run in results for split in splits for number in on_split(run, [split])}
    )
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


def on_split(
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
        [number for name in metrics for number in on_split(run, splits, name)]
        if metrics
        else on_split(run, splits)[:1]
    )
    return [(number["name"], number.get("unit") or "") for number in found]


def cells(
    rows: Sequence[Row], name: str, unit: str, splits: Sequence[str], over: Sequence[str] = ()
) -> tuple[list[Cell | None], list[list[Found]], list[str]]:
    """Each row's mean, with its runs' values by what they are averaged over.

    A run measured more than once gives the number whose protocol most runs share, and a mean is of one protocol. The
    row's numbers of others are returned as well, and sentences about the rows that have fewer runs for it.
    """
    measured: dict[str, list[tuple[str, dict[str, Any], dict[str, Any]]]] = {}
    votes: Counter[str] = Counter()
    for run in (run for row in rows for run in row.runs):
        told = [(protocol(run, number), number) for number in on_split(run, splits, name, unit)]
        measured[run.identity] = [(same(how), how, number) for how, number in told]
        votes.update({key for key, _, _ in measured[run.identity]})
    means: list[Cell | None] = []
    others: list[list[Found]] = []
    notes = []
    for row in rows:
        picked = [
            (run, *max(measured[run.identity], key=lambda told: votes[told[0]]))
            for run in row.runs
            if measured[run.identity]
        ]
        if not picked:
            means.append(None)
            others.append([])
            continue
        shown = Counter(key for _, key, _, _ in picked).most_common(1)[0][0]
        kept = [(run, how, number) for run, key, how, number in picked if key == shown]
        if left := len(picked) - len(kept):
            notes.append(
                f"{' '.join(row.labels)} leaves out {left} of its runs: their {name} has another protocol"
            )
        means.append(_mean(kept, over))
        others.append([(run, n) for run in row.runs for key, _, n in measured[run.identity] if key != shown])
    return means, others, notes


def _mean(kept: Sequence[tuple[Result, dict[str, Any], dict[str, Any]]], over: Sequence[str]) -> Cell:
    """The mean of runs' numbers of one protocol."""
    values = [number["value"] for _, _, number in kept]
    finite = len(values) > 1 and all(map(math.isfinite, values))
    return Cell(
        statistics.fmean(values),
        statistics.stdev(values) if finite else None,
        len(values),
        kept[0][1],
        tuple((place(run, over), number["value"]) for run, _, number in kept),
        tuple((run, number) for run, _, number in kept),
    )


def place(run: Result, over: Sequence[str]) -> str:
    """What a run is among those it is averaged with: its seed, or all of `over`."""
    return ", ".join(f"{key}={called(run, key)}" for key in over)
