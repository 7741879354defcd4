"""What became of the jobs of a sweep: a small file for each, in runs/.sweep/<when>, and their summary.

A job's outcome is what stands there, whatever a scheduler says of it:

    running    it has begun; where the sweep is over, it was killed
    done       trained, or measured anew, now
    skipped    its run was finished before
    busy       another process trains its run
    stopped    by a signal; the same command goes on with it
    failed     with its sentence as the reason
"""

import csv
import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.runs.folder import Run, write_json

GOOD = ("done", "skipped")
TOLD = ("failed", "stopped", "busy", "running")  # with a line each
WIDTH = 300  # of a reason, in the summary


class Record:
    """The file of one job: <place>/<number>.json, and beside it <number>.log with all that is known of a fault."""

    def __init__(self, place: Path, number: int) -> None:
        self.path = place / f"{number:04}.json"
        self.log = place / f"{number:04}.log"

    def read(self) -> dict[str, Any]:
        """What stands there; {} where there is nothing."""
        return dict(json.loads(self.path.read_text())) if self.path.is_file() else {}

    def write(self, **told: Any) -> None:
        """Add to it, the file being there whole at any moment."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        number = int(self.path.stem)
        write_json(self.path, {"job": number, "log": str(self.log), **self.read(), **told})

    def begin(self, overrides: Sequence[str]) -> None:
        """A job begins: by its words it is known."""
        told = {"overrides": list(overrides), "outcome": "running", "reason": None}
        self.write(**told, began=time.time(), process=os.getpid())

    def end(self, outcome: str, reason: str | None = None, **told: Any) -> None:
        """A job has ended."""
        seconds = round(time.time() - self.read().get("began", time.time()), 2)
        self.write(outcome=outcome, reason=reason, seconds=seconds, **told)


def records(place: Path) -> list[dict[str, Any]]:
    """What all jobs of a sweep wrote, by number."""
    return [json.loads(path.read_text()) for path in sorted(place.glob("*.json"))]


def ended(run: Run) -> dict[str, Any]:
    """A job that came to its end: what it is, and whether anything was done."""
    return {
        "outcome": "done" if run.worked else "skipped",
        "reason": None if run.worked else "finished before",
        "run": str(run.folder),
        "identity": run.identity,
    }


def objective(run: Run, metric: str) -> float | None:
    """The number of a run that a search compares: a metric of metrics.csv, at the step whose val/loss is the least.

    The last value up to there, where the two are not told at the same steps; without validation the very last.
    None, and a word on those that there are, for a metric that was not logged.
    """
    if not run.metrics_path.is_file():
        return None
    with open(run.metrics_path) as file:
        lines = [(int(step), name, float(value)) for step, name, value in list(csv.reader(file))[1:]]
    losses = [(value, step) for step, name, value in lines if name == "val/loss" and math.isfinite(value)]
    until = min(losses)[1] if losses else math.inf
    values = [value for step, name, value in lines if name == metric and step <= until]
    if not values and metric != "val/loss":
        names = ", ".join(sorted({name for _, name, _ in lines}))
        print(f"optimize={metric}: the run logged no such metric; there are {names}", file=sys.stderr)
    return values[-1] if values else None


def varying(jobs: Sequence[Sequence[str]]) -> list[str]:
    """Of each job the words that not all jobs have."""
    common = set.intersection(*map(set, jobs)) if len(jobs) > 1 else set()
    return [" ".join(word for word in job if word not in common) or "as the others" for job in jobs]


def summary(found: Sequence[Mapping[str, Any]], seconds: float) -> str:
    """How many jobs are done, skipped and not; of the latter a line each, with the reason and where more stands."""
    told = varying([record.get("overrides") or [] for record in found])
    counts = {outcome: sum(record["outcome"] == outcome for record in found) for outcome in (*GOOD, *TOLD)}
    named = {"skipped": "finished before", "busy": "trained elsewhere", "running": "ended without a word"}
    parts = [f"{count} {named.get(outcome, outcome)}" for outcome, count in counts.items() if count]
    lines = [f"sweep     {len(found)} jobs in {seconds:,.1f} s: {', '.join(parts)}"]
    for record, words in zip(found, told):
        if record["outcome"] in TOLD:
            lines.append(line(record, words))
    if any(counts[outcome] for outcome in TOLD):
        lines.append("the same command again does what is missing")
    return "\n".join(lines)


def line(record: Mapping[str, Any], words: str) -> str:
    """A job that is not done, in a line."""
    reason = str(record.get("reason") or "it was killed, or its machine stopped").removeprefix("error: ")
    where = record["log"] if Path(record["log"]).exists() else record.get("run")
    more = f"; see {near(Path(where))}" if where else ""
    return f"{record['outcome']:9} #{record['job']} {words}: {reason[:WIDTH]}{more}"


def near(path: Path) -> Path:
    """A path as seen from here, where it lies below."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
