"""Runs -> the table of a paper: a row per experiment, mean ± standard deviation over seeds, the best marked.

Numbers are ranked only against numbers of the same protocol: kind, split, count, data, weights and every
option of the measurement. Others stand in the same column with a letter that says how they differ from most.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from zoo.runs.baseline import Delta, delta, find
from zoo.runs.gather import Result
from zoo.runs.numbers import asked, cells, check_numbers, reasons
from zoo.runs.protocol import Cell, marked, ranked
from zoo.runs.published import Published, published, unused
from zoo.runs.rows import Row, check, group, label, value

FACTS = {"steps": "steps", "parameters": "parameters", "seconds": "time", "flops": "operations"}
HIGHER = (
    "accuracy",
    "psnr",
    "ssim",
    "inception",
    "precision",
    "recall",
    "log_prob",
    "per_second",
    "active",
    "usage",
)


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
    columns    config keys, a column for each combination of their values; none: a column for each number
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
    notes = [_unfinished(run) for run in results if run.status != "finished"]
    if not finished:
        raise ValueError(f"none of {len(results)} runs is finished: {'; '.join(notes)}")
    if columns and not keys:
        raise ValueError(f"columns={','.join(columns)}: what the rows are has to be said too, by --rows")
    behind = [*FACTS][:3] if facts is None and not columns else list(facts or ())
    check(
        finished,
        [key for key in (*keys, *columns, *behind) if key not in FACTS]
        + [key for key in over if key != "seed"],
    )
    splits = (split,) if split else ("test", "val")
    check_numbers(finished, metrics, splits)
    rows, mixed = group(finished, keys, over)
    above = group(finished, columns, over)[0] if columns else [Row((), list(finished))]
    notes += group(finished, [*keys, *columns], over)[1] if columns else mixed
    grid = [[_both(row, column) for row in rows] for column in above]
    shown = tuple(keys or ("name", "dataset.name"))
    hidden = {"dataset"} if {"dataset", "dataset.name"} & {*shown, *columns} else set()
    base = find(baseline, rows, above, shown, columns) if baseline is not None else None
    footnotes: dict[str, str] = {}
    papers: dict[str, str] = {}
    versions: dict[str, list[str]] = {}
    numbers = []
    wanted = [found for row in rows for run in row.runs for found in asked(run, metrics, splits)]
    for name, unit in dict.fromkeys(wanted):
        flat, left_out = cells([row for part in grid for row in part], name, unit, splits, versions, over)
        flat = marked(flat, hidden, footnotes)
        notes += left_out
        notes += [
            f"{' '.join(row.labels)} has no {name}: {why}"
            for part in grid
            for row in part
            for why in reasons(row, name, splits)
        ]
        tested = Counter(cell.protocol["split"] for cell in flat if cell)
        usual = max(tested, key=lambda told: tested[told])
        parts = [ranked(flat[i * len(rows) : (i + 1) * len(rows)], higher(name)) for i in range(len(above))]
        for column, part, members in zip(above, parts, grid, strict=True):
            known = [published(row, name, given or {}, papers) for row in members]
            deltas, told = _deltas(base, column, part, rows, above, parts)
            notes += [f"{who}: no difference to {baseline}: {why}" for who, why in told]
            numbers.append(Column(name, unit, usual, part, known, column.labels, deltas))
    if base:
        notes.insert(
            0,
            f"Δ is the mean of the differences to {baseline}, paired by {', '.join(over)}; "
            "p of a two-sided paired t-test over n pairs",
        )
    if any(cell and cell.n > 1 for column in numbers for cell in column.cells):
        notes.insert(0, f"mean ± unbiased standard deviation (runs) over {', '.join(over)}")
    if footnotes:
        notes.insert(0, "the best is marked among numbers of one protocol only")
    spare = unused(rows, [column.name for column in numbers], given or {})
    notes += [f"no row and number for the published {name} of {row}" for row, name in spare]
    if len(versions) > 1:
        by = [
            f"{told or 'unknown'}: {', '.join(dict.fromkeys(who))}" for told, who in sorted(versions.items())
        ]
        notes.append(f"numbers of different versions of the code: {'; '.join(by)}")
    last = {FACTS.get(key, key): [_facts(row, key) for row in rows] for key in behind}
    letters = {letter: text for text, letter in (footnotes | papers).items()}
    return Table(shown, rows, numbers, last, letters, notes, tuple(columns), baseline or "")


def _both(row: Row, column: Row) -> Row:
    """The runs of a grid's cell."""
    if not column.labels:
        return row
    there = {run.identity for run in column.runs}
    return Row((*row.labels, *column.labels), [run for run in row.runs if run.identity in there])


def _deltas(
    base: Row | None,
    column: Row,
    part: Sequence[Cell | None],
    rows: Sequence[Row],
    above: Sequence[Row],
    parts: Sequence[Sequence[Cell | None]],
) -> tuple[list[Delta | None], list[tuple[str, str]]]:
    """One column's differences to the baseline, a row or a column, and who has none, and why."""
    if base is None or base is column:
        return [], []
    if any(base is row for row in rows):
        at = next(i for i, row in enumerate(rows) if row is base)
        others = [part[at]] * len(rows)
    else:
        others = list(parts[next(i for i, one in enumerate(above) if one is base)])
    deltas: list[Delta | None] = []
    told = []
    for row, cell, other in zip(rows, part, others, strict=True):
        found = delta(cell, other) if row is not base else None
        if isinstance(found, str) and cell is not None:
            told.append((" ".join((*row.labels, *column.labels)), found))
        deltas.append(found if isinstance(found, Delta) else None)
    return deltas, told


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
        told = [label(value(run, key)) for run in row.runs]
    return list(dict.fromkeys(told)) if key != "seconds" else told
