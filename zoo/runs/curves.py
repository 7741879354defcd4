"""Learning curves: a metric of metrics.csv against steps, time or operations, with the spread over seeds.

val/nats is such a metric, and nats a number of results.json: what has a split before it was logged in training.
"""

import csv
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from zoo.runs.figure import Figure, Line, Point, distinct, name_of, words_of
from zoo.runs.gather import Result
from zoo.runs.rows import Row

# what a step costs is the whole run's divided by its steps
TIMES: dict[str, tuple[str, Callable[[Result], float | None]]] = {
    "steps": ("optimizer steps", lambda run: 1.0),
    "seconds": ("seconds, as if each step took as long", lambda run: _each(run, run.seconds)),
    "flops": ("operations of training", lambda run: _each(run, run.flops)),
}
MOST = 400  # points of a line; of more every second, third ... is kept


def _each(run: Result, whole: float | None) -> float | None:
    return None if whole is None or not run.steps else whole / run.steps


def curve(rows: Sequence[Row], metric: str, x: str, keys: Sequence[str], over: Sequence[str]) -> Figure:
    """A line per row: mean and deviation over its runs at the steps that all of them logged.

    Raises ValueError, with what there is, where no run logged the metric, and where x is unknown or not recorded.
    """
    if x not in TIMES:
        raise ValueError(f"--plot {metric} --x {x}: a curve is drawn over {', '.join(TIMES)}")
    lines, count, known = [], 0, set()
    for row in rows:
        logged = [read(run.folder / "metrics.csv") for run in row.runs]
        known |= {name for log in logged for name in log}
        found = [(run, log[metric]) for run, log in zip(row.runs, logged) if metric in log]
        costs = [cost for run, _ in found if (cost := TIMES[x][1](run)) is not None]
        if not found or len(costs) < len(found):
            continue
        cost = statistics.fmean(costs)
        steps = sorted(set.intersection(*(set(log) for _, log in found)))
        every = math.ceil(len(steps) / MOST)
        kept = [step for i, step in enumerate(reversed(steps)) if i % every == 0][::-1]
        points = [_mean(step * cost, [log[step] for _, log in found]) for step in kept]
        points = [point for point in points if math.isfinite(point.y)]
        if points:
            lines.append(Line(name_of(row, keys), points))
            count += len(found)
    if not known:
        raise ValueError(f"--plot {metric}: no run has a metrics.csv beside its results")
    if not lines:
        has = "a count of " + x if metric in known else f"the metric {metric}"
        raise ValueError(f"no run has {has}; logged were: {', '.join(sorted(known))}")
    ns = sorted({point.n for line in lines for point in line.points})
    spread = f"; mean ± standard deviation over {', '.join(over)}, n = {ns[0]}" if ns[-1] > 1 else ""
    spread += f" to {ns[-1]}" if spread and len(ns) > 1 else ""
    split, _, name = metric.partition("/")
    title = f"{words_of(name)} on {split} while training"
    return Figure(
        title[0].upper() + title[1:],
        TIMES[x][0],
        f"{split} {words_of(name)}",
        distinct(lines),
        "linear",
        f"Source: metrics.csv of {count} runs{spread}",
    )


def read(path: Path) -> dict[str, dict[int, float]]:
    """metrics.csv by name and step; {} where there is none. A line that was cut short is left out."""
    found: dict[str, dict[int, float]] = {}
    if not path.is_file():
        return found
    with path.open(newline="") as file:
        for line in csv.reader(file):
            if len(line) == 3 and line[0] != "step":
                found.setdefault(line[1], {})[int(line[0])] = float(line[2])
    return found


def _mean(x: float, values: Sequence[float]) -> Point:
    finite = len(values) > 1 and all(map(math.isfinite, values))
    return Point(x, statistics.fmean(values), statistics.stdev(values) if finite else None, len(values))
