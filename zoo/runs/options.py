"""Numbers of runs that were measured several times, by an option of the measurement: quality by steps of a solver.

An option is a field of a number's protocol. In a table `protocol.<option>` is a key as a config's are: a run has a
part for each value. A curve is a set of numbers that agree in all fields that x does not decide, {x: numbers}.
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

from zoo.runs.gather import Found, Result
from zoo.runs.numbers import asked, on_split
from zoo.runs.protocol import OUTCOMES, Cell, protocol, same

PREFIX = "protocol."


def parted(
    runs: Sequence[Result], keys: Sequence[str], metrics: Sequence[str], splits: Sequence[str]
) -> tuple[list[Result], list[str]]:
    """Runs, each in as many parts as it was measured in ways: a part has the numbers of one value of each option.

    keys     of which those that begin with "protocol." name options; a part's config tells them under `protocol`
    metrics  whose numbers are dealt out; none: the name of each run's headline
    A run without such numbers has no part, and a sentence says so. ValueError for an option that no such number has.
    """
    options = [key.removeprefix(PREFIX) for key in keys if key.startswith(PREFIX)]
    if not options:
        return list(runs), []
    parts: list[Result] = []
    notes: list[str] = []
    known: set[str] = set()
    for run in runs:
        names = dict.fromkeys(name for name, _ in asked(run, metrics, splits))
        dealt: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {}
        for number in (number for name in names for number in on_split(run, splits, name)):
            told = protocol(run, number)
            known |= told.keys()
            chosen = {option: told[option] for option in options if option in told}
            dealt.setdefault(str(chosen), (chosen, []))[1].append(number)
        if not dealt:
            what = " or ".join(metrics) or "number"
            notes.append(f"not in the table: {run.name} ({run.folder}), it has no {what}")
        for key, (chosen, numbers) in dealt.items():
            config = run.config | {"protocol": chosen}
            parts.append(run._replace(identity=f"{run.identity} {key}", config=config, numbers=numbers))
    for option in options:
        if option not in known:
            near = get_close_matches(option, sorted(known), 1)
            cure = f"did you mean {PREFIX}{near[0]}?" if near else f"there are: {', '.join(sorted(known))}"
            raise ValueError(f"no number was measured with {option} in its protocol; {cure}")
    return parts, notes


def curves(
    runs: Sequence[Result], metric: str, option: str, splits: Iterable[str]
) -> dict[str, dict[Any, list[Found]]]:
    """The curves of a metric over an option, by what tells them apart: {"solver=euler": {10: [(run, number)]}}.

    One curve is called "". Where numbers at one x differ in several fields, the fewest that tell all apart are
    taken, those of few values first.
    """
    found = [pair for run in runs for pair in _measured(run, metric, option, splits)]
    named: dict[str, dict[Any, list[Found]]] = {}
    fields = apart(found, [option])
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


def left_out(
    name: str, keys: Sequence[str], cells: Sequence[Cell | None], others: Sequence[Sequence[Found]]
) -> list[str]:
    """The sentence about a table's runs that were measured in more ways than it shows, with what to type.

    keys    what its rows are by now
    others  row by row the numbers that are not in the cells, for their protocols
    """
    count = sum(map(len, others))
    if not count:
        return []
    pairs = zip(cells, others, strict=True)
    more = [PREFIX + field for cell, left in pairs if cell and left for field in apart([*cell.found, *left])]
    verb, what = ("is", "it") if count == 1 else ("are", "them")
    rows = ",".join(dict.fromkeys([*keys, *more]))
    return [f"{count} more of {name}, by other protocols, {verb} left out; --rows {rows} shows {what}"]


def apart(found: Sequence[Found], options: Sequence[str] = ()) -> list[str]:
    """The fewest fields of their protocols that tell numbers apart, beside some options, those of few values first."""
    told = [protocol(run, number) for run, number in found]
    known = dict.fromkeys(field for t in told for field in t if field not in (*options, *OUTCOMES))
    values = {field: _places(told, [field]) for field in known}
    fields = sorted((field for field in known if values[field] > 1), key=lambda field: values[field])
    chosen: list[str] = []
    whole = _places(told, [*options, *fields])
    for field in fields:
        before = _places(told, [*options, *chosen])
        if before == whole:
            break
        if _places(told, [*options, *chosen, field]) > before:
            chosen.append(field)
    for field in list(chosen):
        others = [other for other in chosen if other != field]
        if _places(told, [*options, *others]) == whole:
            chosen = others
    return chosen


def _places(told: Sequence[dict[str, Any]], fields: Sequence[str]) -> int:
    """How many different values some fields have together."""
    return len({str([t.get(field) for field in fields]) for t in told})
