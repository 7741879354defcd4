"""Whether a run found what its experiment's file says that a paper found, within the tolerance that it names."""

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


def verdicts(said: Mapping[str, Any], numbers: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    """One for each published number.

    said     a config's `experiment`: published and tolerance by name, and the protocol, which names the split
    numbers  a run's
    """
    named = re.search(r"\b(test|val|train)(ing)?\b", said["protocol"])
    split = named[1] if named else "test"
    return [
        _verdict(name, float(value), float(said["tolerance"][name]), split, numbers)
        for name, value in said["published"].items()
    ]


def _verdict(
    name: str, published: float, tolerance: float, split: str, numbers: Sequence[Mapping[str, Any]]
) -> Verdict:
    theirs = f"published {published:g} ± {tolerance:g}"
    found = [n for n in numbers if n["name"] == name and n["split"] == split]
    if not found or found[-1]["value"] is None:
        why = found[-1].get("reason") if found else None
        return Verdict(
            "not comparable", name, f"{theirs}; the run has none on {split}{f': {why}' if why else ''}"
        )
    number = found[-1]
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
