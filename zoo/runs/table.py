"""Runs -> the table of a paper: a row per experiment, mean ± standard deviation over seeds, the best marked.

Numbers are ranked only against numbers of the same protocol: kind, split, count, data, weights and every
option of the measurement. Others stand in the same column with a letter that says how they differ from most.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any, NamedTuple

from zoo.runs.baseline import Delta, delta, find
from zoo.runs.gather import Result
from zoo.runs.numbers import asked, cells, check_numbers, reasons
from zoo.runs.options import PREFIX, left_out, parted
from zoo.runs.protocol import Cell, marked, ranked
from zoo.runs.published import Published, published, unused
from zoo.runs.rows import Grid, Row, arranged, called, check

FACTS = {"steps": "steps", "parameters": "parameters", "seconds": "time", "flops": "operations"}
HIGHER = (
    "accuracy", "psnr", "ssim", "inception", "precision", "recall", "density", "coverage", "log_prob", "per_second",
    "active", "codebook",
)  # fmt: skip


class Column(NamedTuple):
    """One number for all rows, None where a row has none.

    labels     what a column of a grid is called, one for each key of Table.over; () where a number has one column
    published  the papers' values
    deltas     differences to the baseline; None where there are none
    """

    name: str
    unit: str
    split: str
    cells: list[Cell | None]
    published: list[Published | None]
    labels: tuple[str, ...] = ()
    deltas: Sequence[Delta | None] = ()


class Table(NamedTuple):
    """keys and rows stand left, then the numbers, then facts: per row the values that its runs have."""

    keys: tuple[str, ...]
    rows: list[Row]
    numbers: list[Column]
    facts: dict[str, list[list[Any]]]
    footnotes: dict[str, str]  # letter -> how these numbers differ; figure -> how a published one was found
    notes: list[str]
    over: tuple[str, ...] = ()  # keys whose values have a column each
    baseline: str = ""


def compare(
    results: Sequence[Result],
    keys: Sequence[str] = (),
    *,
    columns: Sequence[str] = (),
    over: Sequence[str] = ("seed",),
    metrics: Sequence[str] = (),
    split: str | None = None,
    facts: Sequence[str] | None = None,
    baseline: str | None = None,
    given: Mapping[tuple[str, str], Published] | None = None,
) -> Table:
    """The table of finished runs.

    keys       config keys, a row for each combination of their values; none: a row for each config
    columns    config keys, a column for each combination of their values; none: a column for each number;
               of both a key may be protocol.<option>, of which a run has a value for each way it was measured
    over       config keys that are averaged over
    metrics    names of numbers; none: each run's headline, its first number on the test split
    split      test, val ...; None: test, and val for runs that have no test
    facts      behind the numbers: steps, parameters, seconds, flops, or config keys; none: FACTS' first three,
               and nothing where there are columns
    baseline   the label of a row or a column, or key=label: what the others' differences are to
    given      {(row, metric): Published}; those in a config's `experiment.published` are added
    Raises ValueError for an unknown key, metric, split or baseline, with what there is, for columns without
    rows, and where no run is finished.
    """
    finished = [run for run in results if run.status == "finished"]
    absent = [_unfinished(run) for run in results if run.status != "finished"]
    if not finished:
        raise ValueError(f"none of {len(results)} runs is finished: {'; '.join(absent)}")
    if columns and not keys:
        raise ValueError(f"columns={','.join(columns)}: what the rows are has to be said too, by --rows")
    splits = (split,) if split else ("test", "val")
    check_numbers(finished, metrics, splits)
    finished, without = parted(finished, [*keys, *columns], metrics, splits)
    behind = [*FACTS][:3] if facts is None and not columns else list(facts or ())
    named = [key for key in (*keys, *columns, *behind) if key not in FACTS]
    check(finished, named + [key for key in over if key != "seed"])
    grid, mixed = arranged(finished, keys, columns, over)
    base = find(baseline, grid.rows, grid.above, grid.keys, columns) if baseline is not None else None
    letters: dict[str, str] = {}
    figures: dict[str, str] = {}
    numbers: list[Column] = []
    said: list[str] = []
    for name, unit in dict.fromkeys(
        told for row in grid.rows for run in row.runs for told in asked(run, metrics, splits)
    ):
        made, notes = _columns(grid, name, unit, splits, over, letters)
        made = _with_papers(made, grid, given or {}, figures)
        made, untold = _with_deltas(made, grid, base)
        numbers += made
        said += notes + [f"{who}: no difference to {baseline}: {why}" for who, why in untold]
    spare = unused(grid.rows, [column.name for column in numbers], given or {})
    said += [f"no row and number for the published {name} of {row}" for row, name in spare]
    return Table(
        grid.keys,
        grid.rows,
        numbers,
        {FACTS.get(key, key): [_facts(row, key) for row in grid.rows] for key in behind},
        {mark: text for text, mark in (letters | figures).items()},
        [
            *_legend(numbers, over, baseline, letters),
            *absent,
            *without,
            *mixed,
            *said,
            *_versions(numbers, grid),
        ],
        grid.over,
        baseline or "",
    )


def _columns(
    grid: Grid,
    name: str,
    unit: str,
    splits: Sequence[str],
    over: Sequence[str],
    letters: dict[str, str],
) -> tuple[list[Column], list[str]]:
    """One number's columns, marked and ranked, and sentences about what is not in them.

    letters  text -> letter; how a protocol differs gets the next one
    """
    rows = [row for column in grid.places for row in column]
    flat, others, notes = cells(rows, name, unit, splits, over)
    keys = (*grid.keys, *grid.over)
    hidden = ["dataset"] if {"dataset", "dataset.name"} & {*keys} else []
    flat = marked(flat, hidden, [key.removeprefix(PREFIX) for key in keys], letters)
    notes += left_out(name, grid.keys, flat, others)
    notes += [
        f"{' '.join(row.labels)} has no {name}: {why}" for row in rows for why in reasons(row, name, splits)
    ]
    usual = Counter(cell.protocol["split"] for cell in flat if cell).most_common(1)[0][0]
    n = len(grid.rows)
    made = []
    for i, head in enumerate(grid.above):
        best = ranked(flat[i * n : (i + 1) * n], higher(name))
        made.append(Column(name, unit, usual, best, [None] * n, head.labels))
    return made, notes


def _with_papers(
    columns: Sequence[Column],
    grid: Grid,
    given: Mapping[tuple[str, str], Published],
    figures: dict[str, str],
) -> list[Column]:
    """A number's columns with what papers found.  figures: text -> figure; how it was found gets the next one"""
    made = []
    for column, rows in zip(columns, grid.places, strict=True):
        pairs = zip(rows, column.cells, strict=True)
        papers = [published(row, cell, column.name, given, figures) for row, cell in pairs]
        made.append(column._replace(published=papers))
    return made


def _with_deltas(
    columns: Sequence[Column], grid: Grid, base: Row | None
) -> tuple[list[Column], list[tuple[str, str]]]:
    """A number's columns with the differences to the baseline, a row or a column; who has none, and why."""
    if base is None:
        return list(columns), []
    made, untold = [], []
    at = next((i for i, row in enumerate(grid.rows) if row is base), None)
    for head, column, rows in zip(grid.above, columns, grid.places, strict=True):
        if head is base:
            made.append(column)
            continue
        theirs = (
            [column.cells[at]] * len(rows)
            if at is not None
            else next(other.cells for one, other in zip(grid.above, columns, strict=True) if one is base)
        )
        deltas: list[Delta | None] = []
        for i, (row, cell, other) in enumerate(zip(rows, column.cells, theirs, strict=True)):
            found = delta(cell, other) if i != at else None
            if isinstance(found, str) and cell is not None:
                untold.append((" ".join(row.labels), found))
            deltas.append(found if isinstance(found, Delta) else None)
        made.append(column._replace(deltas=deltas))
    return made, untold


def _legend(
    numbers: Sequence[Column], over: Sequence[str], baseline: str | None, letters: Mapping[str, str]
) -> list[str]:
    """How the table is read."""
    told = []
    if letters:
        told.append("the best is marked among numbers of one protocol only")
    found = [cell for column in numbers for cell in column.cells if cell]
    if any(cell.n > 1 for cell in found):
        told.append(f"mean ± unbiased standard deviation (runs) over {', '.join(over)}")
    elif any(cell.error is not None for cell in found):
        told.append("± standard error over the examples of one run")
    if baseline is not None:
        told.append(
            f"Δ is the mean of the differences to {baseline}, paired by {', '.join(over)}; "
            "p of a two-sided paired t-test over n pairs"
        )
    return told


def _versions(numbers: Sequence[Column], grid: Grid) -> list[str]:
    """Which rows were measured by which version of the code, where there are several."""
    who: dict[str, dict[str, None]] = {}
    for column, rows in zip(numbers, cycle(grid.places)):
        for row, cell in zip(rows, column.cells, strict=True):
            for run, number in cell.found if cell else ():
                told = str(number.get("version") or run.version) or "unknown"
                who.setdefault(told, {})[" ".join(row.labels)] = None
    if len(who) < 2:
        return []
    by = "; ".join(f"{told}: {', '.join(rows)}" for told, rows in sorted(who.items()))
    return [f"numbers of different versions of the code: {by}"]


def higher(name: str) -> bool:
    """Whether more of a number is better: not of nats, bits, perplexity or distances."""
    return any(word in name for word in HIGHER)


def _unfinished(run: Result) -> str:
    why = f"{run.status}: {run.reason}" if run.reason else run.status
    return f"not in the table: {run.name} ({run.folder}), {why}"


def _facts(row: Row, key: str) -> list[Any]:
    """The different values that a row's runs have for a fact, or for a config key as a reader calls it."""
    if key in FACTS:
        told = [getattr(run, key) for run in row.runs if getattr(run, key) is not None]
    else:
        told = [called(run, key) for run in row.runs]
    return list(dict.fromkeys(told)) if key != "seconds" else told
