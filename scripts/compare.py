"""The table of a paper from run directories: uv run scripts/compare.py runs --rows mixer --columns position

Or a figure: ... --plot extrapolation, ... --plot val/nats --x steps; or one page with all of it: ... --format html
Reads results.json only (and metrics.csv for curves): no network, no torch. Rows are averaged over seeds; numbers of
different protocols are marked and not ranked against each other.
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from zoo.runs import layout, plot, raw, samples
from zoo.runs.figure import Figure, points
from zoo.runs.figures import AXES, figure
from zoo.runs.gather import Result, read
from zoo.runs.options import PREFIX
from zoo.runs.page import page
from zoo.runs.published import read_published
from zoo.runs.rows import check, group, only
from zoo.runs.table import FACTS, Table, compare

FORMATS: dict[str, Callable[[Table], str]] = {
    "markdown": layout.markdown,
    "latex": layout.latex,
    "csv": raw.as_csv,
    "json": raw.as_json,
}


def _names(told: str) -> list[str]:
    return [name.strip() for name in told.split(",") if name.strip()]


def parser() -> argparse.ArgumentParser:
    """What can be said on the command line."""
    made = argparse.ArgumentParser(
        prog="compare.py", description="The table of a paper, from run directories.", allow_abbrev=False
    )
    add = made.add_argument
    add("folders", nargs="+", type=Path, help="run directories, or folders of them at any depth: runs")
    keys = {"type": _names, "default": [], "metavar": "KEYS"}
    add(
        "--rows",
        **keys,
        help="config keys, as position,optimizer.lr, or protocol.<option>; default: a row per config",
    )
    add("--columns", **keys, help="such keys: a column for each of their values")
    add(
        "--where",
        action="append",
        default=[],
        metavar="KEY=LABEL",
        help="only runs of this label, or of several, position=alibi,rope; as often as wanted",
    )
    add("--over", type=_names, metavar="KEYS", help="config keys that are averaged over; default: seed")
    add(
        "--metric",
        type=_names,
        default=[],
        metavar="NAMES",
        help="numbers, as bits_per_dim; default: each run's first",
    )
    add("--split", help="default: test, and val for runs that have no test")
    add(
        "--baseline",
        metavar="LABEL",
        help="a row or a column, by its label or as key=label: differences to it, paired by what is averaged over",
    )
    add(
        "--facts",
        type=_names,
        metavar="NAMES",
        help=f"behind the numbers: {', '.join(FACTS)} or config keys; default: the first three, none with --columns",
    )
    add("--published", type=Path, metavar="CSV", help="values of papers: columns row,metric,value[,protocol]")
    add("--format", choices=["text", *FORMATS, "html"], default="text")
    add(
        "--plot",
        action="append",
        default=[],
        metavar="WHAT",
        help="a figure instead, with a line for each row: extrapolation, recall, samples, <metric>:<x>, where x is one "
        f"of {', '.join(AXES)}, a config key or protocol.<option>, or val/<metric>:steps, what was logged in training; "
        "with --format html as often as wanted",
    )
    add("--x", metavar="X", help="the x of --plot, where it doesn't name one itself")
    add("--out", type=Path, metavar="FILE", help="where to write; of a figure .png and .svg, default figure")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 and one sentence where there is none to print."""
    told = parser().parse_args(arguments)
    told.over = ["seed"] if told.over is None else told.over
    told.plot = [what if told.x is None or ":" in what else f"{what}:{told.x}" for what in told.plot]
    try:
        results, notes = read(told.folders)
        results = only(results, told.where)
        if told.plot and told.format != "html":
            return _draw(told, results)
        table = compare(
            results,
            told.rows,
            columns=told.columns,
            over=told.over,
            metrics=told.metric,
            split=told.split,
            facts=told.facts,
            baseline=told.baseline,
            given=read_published(told.published) if told.published else None,
        )
        table.notes.extend(notes)
        if told.format == "csv":
            print("".join(f"{note}\n" for note in table.notes), end="", file=sys.stderr)
        text = _text(told, table, results, arguments)
        if told.out:
            told.out.parent.mkdir(parents=True, exist_ok=True)
            told.out.write_text(text)
    except (ValueError, OSError, ImportError) as error:
        print(error, file=sys.stderr)
        return 1
    print(told.out if told.out else text, end="\n" if told.out else "")
    return 0


def _draw(told: argparse.Namespace, results: Sequence[Result]) -> int:
    """Write one figure's files and print their paths."""
    if len(told.plot) > 1:
        raise ValueError(f"{len(told.plot)} figures: one at a time, or all in a page by --format html")
    (what,), out = told.plot, told.out or Path("figure")
    if what == "samples":
        print(*samples.draw(_rows(told, results), out), sep="\n")
        return 0
    shown = _figure(told, what, results)
    if f":{PREFIX}" in what:
        print(points(shown))
    print(*plot.draw(shown, out), sep="\n")
    return 0


def _figure(told: argparse.Namespace, what: str, results: Sequence[Result]) -> Figure:
    return figure(what, results, _keys(told), over=told.over, split=told.split)


def _rows(told: argparse.Namespace, results: Sequence[Result]) -> list:
    """The rows of finished runs."""
    finished = [run for run in results if run.status == "finished"]
    keys = _keys(told)
    check(finished, keys)
    return group(finished, keys, told.over)[0]


def _keys(told: argparse.Namespace) -> list[str]:
    """The config keys of rows and columns; ways to measure have lines of their own where they are what x is."""
    return [key for key in (*told.rows, *told.columns) if not key.startswith(PREFIX)]


def _text(
    told: argparse.Namespace, table: Table, results: Sequence[Result], arguments: Sequence[str] | None
) -> str:
    """The table in the format that was asked for."""
    if told.format == "text":
        return layout.text(table, terminal=sys.stdout.isatty() and told.out is None)
    if told.format != "html":
        return FORMATS[told.format](table)
    typed = shlex.join(sys.argv[1:] if arguments is None else arguments)
    return page(
        table,
        title=" and ".join(told.metric or [table.numbers[0].name]).replace("_", " ").capitalize()
        + f" of {len({run.folder for row in table.rows for run in row.runs})} runs",
        command=f"scripts/compare.py {typed}",
        figures=[_figure(told, what, results) for what in told.plot if what != "samples"],
        samples=samples.samples(_rows(told, results)),
    )


if __name__ == "__main__":
    sys.exit(main())
