"""Runs grouped into the rows of a table, by what their configs say.

A key is a name of the config with dots, "optimizer.lr"; its value is a leaf or a whole block, "position".
The key "name" is the run's own.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

from zoo.runs.gather import Result
from zoo.runs.identity import execution

MISSING = object()  # a run's config has no such key; None is a value


class Row(NamedTuple):
    """Runs that are averaged, and what stands before them: one label per key."""

    labels: tuple[str, ...]
    runs: list[Result]


def value(run: Result, key: str) -> Any:
    """What a run's config says under a dotted key; MISSING if it has none."""
    if key == "name":
        return run.name
    found: Any = run.config
    for part in key.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return MISSING
        found = found[part]
    return found


def check(runs: Sequence[Result], keys: Iterable[str]) -> None:
    """Raises ValueError, with the nearest name, for a key that no run has."""
    for key in keys:
        if all(value(run, key) is MISSING for run in runs):
            known = {"name"}.union(*(_keys(run.config) for run in runs))
            parents = [key.rpartition(".")[0]] if key.rpartition(".")[0] in known else []
            near = parents + get_close_matches(key, sorted(known), 1)
            cure = (
                f"did you mean {' or '.join(near)}?"
                if near
                else f"there are: {', '.join(sorted(k for k in known if '.' not in k))}"
            )
            raise ValueError(f"no run has the config key {key}; {cure}")


def label(found: Any) -> str:
    """A value as a reader calls it: a block by its `name` or by its class, a list by its items."""
    if found is MISSING:
        return "–"
    if isinstance(found, Mapping):
        if "_target_" in found:
            return str(found["_target_"]).rpartition(".")[2]
        return str(found["name"]) if "name" in found else json.dumps(found, sort_keys=True)
    if isinstance(found, list | tuple):
        return ", ".join(map(label, found))
    return f"{found:g}" if isinstance(found, float) else str(found)


def only(runs: Sequence[Result], conditions: Iterable[str]) -> list[Result]:
    """The runs that meet all conditions, each `key=label` or, for either of several, `key=label,label`.

    ValueError for what is no condition, an unknown key, and a label that no run has, with those that there are.
    """
    kept = list(runs)
    for condition in conditions:
        key, equal, wanted = condition.partition("=")
        if not equal:
            raise ValueError(f"--where {condition}: it takes key=label, as position=alibi,rope")
        check(runs, [key])
        labels = {called(run, key) for run in runs}
        if missing := [one for one in wanted.split(",") if one not in labels]:
            known = ", ".join(sorted(labels, key=_natural))
            raise ValueError(f"--where {condition}: no run has {key}={missing[0]}; there are: {known}")
        kept = [run for run in kept if called(run, key) in wanted.split(",")]
    return kept


def called(run: Result, key: str) -> str:
    """What a reader calls a run's value: a block by the word that chose it, where that is known, else by its class."""
    found = value(run, key)
    word = run.choices.get(key) if isinstance(found, Mapping) else None
    return word or label(found)


def group(
    runs: Sequence[Result], keys: Sequence[str] = (), over: Sequence[str] = ("seed",)
) -> tuple[list[Row], list[str]]:
    """Runs -> rows, sorted by their labels, and sentences about rows whose runs differ in more than `over`.

    Without keys a row is all runs whose configs agree but for `over`; its labels are name and dataset.
    With keys it is all runs that agree in these. Rows that would read the same get what tells them apart.
    """
    told = tuple(keys) or ("name", "dataset.name")
    over = [key for key in over if key not in told]
    leaves = {run.identity: _leaves(run.config, over) for run in runs}
    groups: dict[str, list[Result]] = {}
    for run in runs:
        same = [value(run, key) for key in told] + ([] if keys else [leaves[run.identity]])
        groups.setdefault(json.dumps(same, sort_keys=True, default=repr), []).append(run)
    rows = [Row(tuple(called(members[0], key) for key in told), members) for members in groups.values()]
    rows = sorted(_told_apart(rows, leaves, keys), key=lambda row: [_natural(text) for text in row.labels])
    notes = []
    for row in rows:
        mixed = [
            key for key in _differing([leaves[run.identity] for run in row.runs]) if not _within(key, told)
        ]
        if mixed:
            seen = sorted(
                {label(leaves[run.identity].get(mixed[0], MISSING)) for run in row.runs}, key=_natural
            )
            more = f" and {len(mixed) - 1} more keys" if len(mixed) > 1 else ""
            notes.append(
                f"{' '.join(row.labels)} averages runs that differ in {mixed[0]} ({', '.join(seen)}){more}"
            )
    return rows, notes


class Grid(NamedTuple):
    """Which runs stand where.

    keys    what the rows' labels are
    over    what the columns' labels are; () where all runs stand in one column, without a label
    places  the runs of each column, row by row, labelled by both
    """

    keys: tuple[str, ...]
    over: tuple[str, ...]
    rows: list[Row]
    above: list[Row]
    places: list[list[Row]]


def arranged(
    runs: Sequence[Result], keys: Sequence[str], columns: Sequence[str], over: Sequence[str]
) -> tuple[Grid, list[str]]:
    """Runs -> rows and columns, and the sentences of `group` about their places."""
    shown = tuple(keys) or ("name", "dataset.name")
    rows, notes = group(runs, keys, over)
    if not columns:
        return Grid(shown, (), rows, [Row((), list(runs))], [rows]), notes
    above, places = group(runs, columns, over)[0], []
    for column in above:
        there = {run.identity for run in column.runs}
        both = [
            Row((*row.labels, *column.labels), [run for run in row.runs if run.identity in there])
            for row in rows
        ]
        places.append(both)
    return Grid(shown, tuple(columns), rows, above, places), group(runs, [*keys, *columns], over)[1]


def _told_apart(rows: list[Row], leaves: Mapping[str, dict[str, Any]], keys: Sequence[str]) -> list[Row]:
    """Rows with equal labels get the few config keys that tell them apart, behind their first label."""
    alike: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        alike.setdefault(row.labels, []).append(row)
    told = []
    for same in alike.values():
        configs = [leaves[row.runs[0].identity] for row in same]
        tails = [""] * len(same)
        for key in _differing(configs):
            if keys and not _within(key, keys):
                continue
            more = [
                f"{tail} {key}={label(config.get(key, MISSING))}"
                for tail, config in zip(tails, configs, strict=True)
            ]
            if len(set(more)) > len(set(tails)):
                tails = more
        told += [
            Row((row.labels[0] + tail, *row.labels[1:]), row.runs)
            for row, tail in zip(same, tails, strict=True)
        ]
    return told


def _differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys on which flat configs disagree, the shortest first."""
    keys = {key for config in configs for key in config}
    differ = [
        key for key in keys if any(c.get(key, MISSING) != configs[0].get(key, MISSING) for c in configs)
    ]
    return sorted(differ, key=lambda key: (key.count("."), key))


def _leaves(config: Mapping[str, Any], over: Sequence[str] = (), prefix: str = "") -> dict[str, Any]:
    """A config flat: {"model.dim": 8}, without what is averaged over and what stands aside."""
    flat: dict[str, Any] = {}
    for name, found in config.items():
        key = f"{prefix}{name}"
        if key in over or key == "experiment" or execution(key):  # how it was run, not what was
            continue
        if isinstance(found, Mapping) and found:
            flat |= _leaves(found, over, f"{key}.")
        else:
            flat[key] = found
    return flat


def _keys(config: Mapping[str, Any], prefix: str = "") -> set[str]:
    below = (_keys(found, f"{prefix}{name}.") for name, found in config.items() if isinstance(found, Mapping))
    return {f"{prefix}{name}" for name in config}.union(*below)


def _within(key: str, keys: Iterable[str]) -> bool:
    return any(key == other or key.startswith(f"{other}.") for other in keys)


def _natural(text: str) -> tuple[int, float, str]:
    """Sorts 2 before 10, and numbers before words."""
    try:
        return 0, float(text), ""
    except ValueError:
        return 1, 0.0, text
