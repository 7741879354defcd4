"""What an experiment's file says that a paper found: which number of a run it stands beside, and whether it comes out.

A row is a config's `experiment`: published and tolerance by name, the paper, and the protocol, which names the split.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from zoo.runs.identity import defining

FREE = ("seed",)  # what a row may differ in and still be compared
SIGNS = {"lower bound": "≤ ", "estimate": "≈ "}
HOW = ("method", "split", "kind")  # of a protocol, told in words of its own


class Verdict(NamedTuple):
    """One published number, ours beside it, and what follows."""

    verdict: Literal["within", "not within", "not comparable"]
    name: str
    words: str


def compared(numbers: Sequence[Mapping[str, Any]], row: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Numbers that were measured for a row, with its values: `published`: {value, paper, protocol, tolerance}.

    Each stands beside the one number of its name and split; of several nobody knows which is meant. Words of the
    command line that made the row another than the paper's (`changed`) leave it without values.
    """
    row = row or {}
    told = [dict(number) for number in numbers]
    for name, value in _values(row).items():
        about = [number for number in told if number["name"] == name and number["split"] == split_of(row)]
        if len(about) == 1:
            about[0]["published"] = {
                "value": float(value),
                "paper": row.get("paper") or "",
                "protocol": row.get("protocol") or "",
                "tolerance": (row.get("tolerance") or {}).get(name),
            }
    return told


def numbers_of(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A run's numbers; in older results what they were measured for stands in the config alone."""
    numbers = list(results.get("numbers") or [])
    if any(number.get("published") for number in numbers):
        return numbers
    return compared(numbers, (results.get("config") or {}).get("experiment"))


def split_of(row: Mapping[str, Any]) -> str:
    """The split that a row's protocol names; test, where it names none."""
    named = re.search(r"\b(test|val|train)(ing)?\b", row.get("protocol") or "")
    return named[1] if named else "test"


def _values(row: Mapping[str, Any]) -> dict[str, float]:
    return {} if row.get("changed") else dict(row.get("published") or {})


def verdicts(row: Mapping[str, Any], numbers: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    """One for each published number of a row, about the number of the run that was measured for it."""
    split = split_of(row)
    return [
        _verdict(
            name, float(value), float(row["tolerance"][name]), split, _about(name, value, split, numbers)
        )
        for name, value in _values(row).items()
    ]


def _about(
    name: str, value: float, split: str, numbers: Sequence[Mapping[str, Any]]
) -> Mapping[str, Any] | None:
    """The last number that was added beside a value; else beside any, as before a correction; else of that name."""
    newest = [number for number in reversed(numbers) if number["name"] == name and number["split"] == split]
    beside = [number for number in newest if number.get("published")]
    exact = [number for number in beside if number["published"]["value"] == value]
    return next(iter([*exact, *beside, *newest]), None)


def _verdict(
    name: str, published: float, tolerance: float, split: str, number: Mapping[str, Any] | None
) -> Verdict:
    theirs = f"published {published:g} ± {tolerance:g}"
    if number is None or number["value"] is None:
        why = number.get("reason") if number else None
        return Verdict(
            "not comparable", name, f"{theirs}; the run has none on {split}{f': {why}' if why else ''}"
        )
    ours = float(number["value"])
    error = f" ± {number['stderr']:.2g}" if number.get("stderr") is not None else ""
    how = "; ".join(
        [f"{number['kind']}, {number.get('count')} examples of {split}"]
        + [
            f"{key} {value}"
            for key, value in number["protocol"].items()
            if key not in HOW and value is not None
        ]
    )
    sign = SIGNS.get(str(number["kind"]), "") if name != "accuracy" else ""
    told = f"{sign}{ours:.4g}{error} ({how}), {theirs}"
    if not math.isfinite(ours):
        return Verdict("not within", name, told)
    off = ours - published
    if abs(off) <= tolerance:
        return Verdict("within", name, f"{told}: {off:+.3g}")
    return Verdict("not within", name, f"{told}: {off:+.3g}, {abs(off) / tolerance:.1f} tolerances away")


def changes(row: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """Dotted keys in which a config differs from its experiment's own, of those that decide about its numbers."""
    flat = [_flat({**defining(node), "evaluate": node.get("evaluate") or {}}) for node in (row, config)]
    keys = sorted(flat[0].keys() | flat[1].keys())
    return [key for key in keys if key not in FREE and flat[0].get(key) != flat[1].get(key)]


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, Mapping):
        return {prefix: node}
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found
