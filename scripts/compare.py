"""The table of a paper from run directories: uv run scripts/compare.py runs --rows position --over seed

Or a figure of it: ... --plot extrapolation --out figures/extrapolation

Reads results.json only: no network, no torch. Rows are averaged over seeds; numbers of different protocols
are marked and not ranked against each other.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from zoo.runs import layout, plot
from zoo.runs.figure import figure
from zoo.runs.gather import read
from zoo.runs.table import FACTS, compare, read_published


def _names(told: str) -> list[str]:
    return [name.strip() for name in told.split(",") if name.strip()]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 and one sentence where there is none to print."""
    parser = argparse.ArgumentParser(
        prog="compare.py", description="The table of a paper, from run directories.", allow_abbrev=False
    )
    add = parser.add_argument
    add("folders", nargs="+", type=Path, help="run directories, or folders of them at any depth: runs")
    add(
        "--rows",
        type=_names,
        default=[],
        metavar="KEYS",
        help="config keys, as position,optimizer.lr; default: a row per config",
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
        "--columns",
        type=_names,
        default=list(FACTS),
        metavar="NAMES",
        help=f"facts ({', '.join(FACTS)}) or config keys",
    )
    add("--published", type=Path, metavar="CSV", help="values of papers: a CSV with columns row,metric,value")
    add("--format", choices=["text", "markdown", "latex", "csv"], default="text")
    add(
        "--plot",
        metavar="WHAT",
        help="a figure instead: extrapolation, recall or <metric>:<config key>, with a line for each row",
    )
    add("--out", type=Path, default=Path("figure"), metavar="FILE", help="where --plot writes .png and .svg")
    told = parser.parse_args(arguments)
    over = ["seed"] if told.over is None else told.over
    try:
        results, notes = read(told.folders)
        if told.plot:
            shown = figure(told.plot, results, told.rows, over=over, split=told.split)
            print("\n".join(map(str, plot.draw(shown, told.out))))
            return 0
        table = compare(
            results,
            told.rows,
            over=over,
            metrics=told.metric,
            split=told.split,
            columns=told.columns,
            published=read_published(told.published) if told.published else None,
        )
    except (ValueError, FileNotFoundError, ImportError) as error:
        print(error, file=sys.stderr)
        return 1
    table.notes.extend(notes)
    if told.format == "csv":
        print("".join(f"{note}\n" for note in table.notes), end="", file=sys.stderr)
    formats = {"markdown": layout.markdown, "latex": layout.latex, "csv": layout.raw}
    write = formats.get(told.format, lambda table: layout.text(table, terminal=sys.stdout.isatty()))
    print(write(table), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
