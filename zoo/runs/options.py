"""Numbers of runs that were measured several times, by an option of the measurement: quality by steps of a solver.

An option is a field of a number's protocol; a curve is a set of numbers that agree in all fields that x does not
decide, {x: numbers}.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from zoo.runs.gather import Result
from zoo.runs.protocol import protocol, same

PREFIX = "protocol."
Found = tuple[Result, dict[str, Any]]  # a run and a number of it


def curves(
    runs: Sequence[Result], metric: str, option: str, splits: Iterable[str]
) -> dict[str, dict[Any, list[Found]]]:
    """The curves of a metric over an option, by what tells them apart: {"solver=euler": {10: [(run, number)]}}.

    One curve is called "". Where numbers at one x differ in several fields, the fewest that tell all apart are
    taken, those of few values first.
    """
    found = [pair for run in runs for pair in _measured(run, metric, option, splits)]
    named: dict[str, dict[Any, list[Found]]] = {}
    fields = _apart(found, option)
    for run, number in found:
        told = protocol(run, number)
        name = " ".join(f"{field}={told.get(field)}" for field in fields)
        named.setdefault(name, {}).setdefault(told[option], []).append((run, number))
    return named


def _measured(run: Result, metric: str, option: str, splits: Iterable[str]) -> list[Found]:
    """A run's numbers on the first of the splits where it has any; of one protocol the newest."""
    for split in splits:
        kept = {
            same(protocol(run, number)): (run, number)
            for number in run.numbers
            if number["name"] == metric
            and number.get("split") == split
            and number["value"] is not None
            and number["protocol"].get(option) is not None
        }
        if kept:
            return list(kept.values())
    return []


def _apart(found: Sequence[Found], option: str) -> list[str]:
    """The fields, beside the option, that numbers with one value of it differ in."""
    told = [protocol(run, number) for run, number in found]
    values = {field: {same({"": t.get(field)}) for t in told} for t in told for field in t}
    fields = sorted((f for f in values if f != option and len(values[f]) > 1), key=lambda f: len(values[f]))
    chosen: list[str] = []
    whole = _places(told, [option, *fields])
    for field in fields:
        before = _places(told, [option, *chosen])
        if before == whole:
            break
        if _places(told, [option, *chosen, field]) > before:
            chosen.append(field)
    return chosen


def _places(told: Sequence[dict[str, Any]], fields: Sequence[str]) -> int:
    """How many different values some fields have together."""
    return len({same({field: t.get(field) for field in fields}) for t in told})
