"""What has to agree before two numbers are ranked, and how a table tells where it doesn't."""

import json
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from zoo.runs.gather import Found, Result
from zoo.runs.rows import MISSING, label, value

OUTCOMES = ("nfe",)  # what a measurement took: told, and no more alike of two models than their numbers
FACTORS = ("order",)  # how a model writes p(x), which an exact likelihood does not depend on
ALL = {"since": 0}  # options that leave nothing out, as good as unsaid
SAID = ("kind", "split", "count", "dataset", "weights", "averaged", "method", "data")  # in words of their own


class Cell(NamedTuple):
    """A row's number: mean and unbiased standard deviation (None for one run) of `n` runs."""

    mean: float
    deviation: float | None
    n: int
    protocol: dict[str, Any]
    values: tuple[tuple[str, float], ...] = ()  # each run's, by its seed or what else is averaged over
    found: tuple[Found, ...] = ()  # what it is the mean of
    best: bool = False
    mark: str = ""  # the letter of its footnote

    @property
    def error(self) -> float | None:
        """Of one run's number the standard error over its examples, where it has one."""
        return self.found[0][1].get("stderr") if len(self.found) == 1 else None


def protocol(run: Result, number: Mapping[str, Any]) -> dict[str, Any]:
    """All that has to agree before two numbers are ranked."""
    told = {
        "kind": number.get("kind"),
        "split": number["split"],
        "dataset": label(value(run, "dataset.name")),
        "data": run.data.get(number["split"], "")[:12],
        "count": number.get("count"),
        "weights": number["weights"].get("which"),
        "averaged": number["weights"].get("averaged"),
    }
    return told | number["protocol"]


def same(told: Mapping[str, Any]) -> str:
    """Equal for equal protocols."""
    return json.dumps(_agreeing(told), sort_keys=True, default=str)


def _agreeing(told: Mapping[str, Any]) -> dict[str, Any]:
    """What of a protocol has to agree."""
    exact = told.get("kind") == "exact" and told.get("method") == "log_prob"
    aside = {*OUTCOMES, *(FACTORS if exact else ())}
    return {key: found for key, found in told.items() if key not in aside and (key, found) not in ALL.items()}


def ranked(cells: Sequence[Cell | None], higher: bool) -> list[Cell | None]:
    """Marks the best of each protocol that at least two rows have."""
    peers: dict[str, list[float]] = {}
    for cell in cells:
        if cell and math.isfinite(cell.mean):
            peers.setdefault(same(cell.protocol), []).append(cell.mean)
    best = {how: (max if higher else min)(means) for how, means in peers.items() if len(means) > 1}
    return [cell and cell._replace(best=cell.mean == best.get(same(cell.protocol))) for cell in cells]


def marked(
    cells: Sequence[Cell | None], hidden: Collection[str], options: Collection[str], footnotes: dict[str, str]
) -> list[Cell | None]:
    """Letters for numbers whose protocol is not that of most rows, but for what the rows' labels tell.

    hidden   fields in the labels from which others follow, as the count from the dataset
    options  fields in the labels that stand for themselves
    """
    told = [
        cell and {key: cell.protocol[key] for key in cell.protocol if key not in options} for cell in cells
    ]
    often = Counter(same(how) for how in told if how is not None)
    usual: dict[str, dict[str, Any]] = {}
    for one in filter(None, told):
        place = same({key: one[key] for key in hidden})
        if place not in usual or often[same(one)] > often[same(usual[place])]:
            usual[place] = one
    letters = []
    for cell, how in zip(cells, told, strict=True):
        text = how and _difference(how, usual[same({key: how[key] for key in hidden})])
        if cell and text:
            cell = cell._replace(mark=footnotes.setdefault(text, _letter(len(footnotes))))
        letters.append(cell)
    return letters


def words(told: Mapping[str, Any]) -> str:
    """A protocol in words: "exact; test split, 10,000 examples of digits; best weights; log_prob, samples 100"."""
    rest = {key: found for key, found in told.items() if key not in SAID and found is not None}
    count = f"{told['count']:,}" if isinstance(told.get("count"), int) else told.get("count") or "some"
    weights = f"{told.get('weights') or 'unknown'} weights" + (", averaged" if told.get("averaged") else "")
    method = [str(told["method"])] if told.get("method") else []
    options = [*method, *(f"{key} {found}" for key, found in rest.items())]
    head = f"{told.get('kind') or 'a number'}; {told['split']} split, {count} examples of {told['dataset']}"
    return "; ".join([head, weights, *([", ".join(options)] if options else [])])


def _difference(told: Mapping[str, Any], usual: Mapping[str, Any]) -> str:
    """How a protocol differs from the usual one, in words: "samples 100, not 5000"."""
    parts = []
    told, usual = _agreeing(told), _agreeing(usual)
    for key in dict.fromkeys((*told, *usual)):
        mine, other = told.get(key, MISSING), usual.get(key, MISSING)
        if mine != other:
            here = f"no {key}" if mine is MISSING else f"{key} {mine}"
            parts.append(here if other is MISSING else f"{here}, not {other}")
    return "; ".join(parts)


def _letter(n: int) -> str:
    """a, b, ... z, aa, ab ..."""
    return (_letter(n // 26 - 1) if n >= 26 else "") + chr(ord("a") + n % 26)
