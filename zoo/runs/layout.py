"""A table of comparison as text, Markdown, LaTeX or CSV.

≤ stands before what a lower bound of log p(x) gives, = before what an exact one gives, ≈ before an estimate.
A number of several runs is mean ± standard deviation (n).
"""

import csv
import io
import json
import math
import re
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from zoo.runs.protocol import Cell
from zoo.runs.table import Column, Table, higher

NONE = "–"
SIGNS = {"exact": "=", "lower bound": "≤", "estimate": "≈"}
LIKELIHOODS = ("nats", "bits", "perplexity", "log_prob")  # a kind is that of a likelihood


class Style(NamedTuple):
    """How a format writes plain text, the best number, and a footnote's letter."""

    plain: Callable[[str], str]
    bold: Callable[[str], str]
    letter: Callable[[str], str]


def text(table: Table, *, terminal: bool = False) -> str:
    """Aligned columns; the best is bold on a terminal and has a star elsewhere."""
    bold = "\033[1m{}\033[0m".format if terminal else "{}*".format
    heads, rows = _words(table, Style(str, bold, "[{}]".format))
    lines = [heads, *rows]
    widths = [max(len(_bare(line[i])) for line in lines) for i in range(len(heads))]
    labels = len(table.keys)

    def aligned(words: Sequence[str]) -> str:
        pads = [" " * (width - len(_bare(word))) for word, width in zip(words, widths, strict=True)]
        joined = [
            w + pad if i < labels else pad + w for i, (w, pad) in enumerate(zip(words, pads, strict=True))
        ]
        return "  ".join(joined).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    under = [f"[{letter}] {told}" for letter, told in table.footnotes.items()] + table.notes
    return "\n".join([aligned(heads), rule, *map(aligned, rows), *([""] if under else []), *under]) + "\n"


def markdown(table: Table) -> str:
    """GitHub's tables."""
    heads, rows = _words(table, Style(_for_markdown, "**{}**".format, "<sup>{}</sup>".format))
    aligns = ["---"] * len(table.keys) + ["---:"] * (len(heads) - len(table.keys))
    lines = [f"| {' | '.join(words)} |" for words in (heads, aligns, *rows)]
    under = [f"<sup>{letter}</sup> {_for_markdown(told)}" for letter, told in table.footnotes.items()]
    under += map(_for_markdown, table.notes)
    return "\n".join(lines) + "\n" + "".join(f"\n{line}\n" for line in under)


def latex(table: Table) -> str:
    r"""A tabular with booktabs' rules; footnotes stand below it, notes are comments."""
    heads, rows = _words(table, Style(_for_latex, r"\textbf{{{}}}".format, "$^{{{}}}$".format))
    aligns = "l" * len(table.keys) + "r" * (len(heads) - len(table.keys))
    lines = [
        r"% \usepackage{booktabs}",
        *(f"% {note}" for note in table.notes),
        rf"\begin{{tabular}}{{{aligns}}}",
    ]
    lines += [r"\toprule", " & ".join(heads) + r" \\", r"\midrule"]
    lines += [" & ".join(words) + r" \\" for words in rows]
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [
        rf"\par{{\footnotesize $^{{{letter}}}$ {_for_latex(told)}\par}}"
        for letter, told in table.footnotes.items()
    ]
    return "\n".join(lines) + "\n"


def raw(table: Table) -> str:
    """CSV, one line per row and number, nothing rounded; the protocol is JSON."""
    out = io.StringIO()
    write = csv.writer(out, lineterminator="\n")
    facts = list(table.facts)
    write.writerow(
        [*table.keys, "number", "unit", "mean", "sd", "n", "best", "mark", "published", "protocol", *facts]
    )
    for i, row in enumerate(table.rows):
        known = [_mean(table.facts[name][i]) for name in facts]
        for column in table.numbers:
            if (cell := column.cells[i]) is None:
                numbers: list[Any] = ["", "", 0, "", "", column.published[i], ""]
            else:
                told = json.dumps(cell.protocol, default=str)
                numbers = [
                    cell.mean,
                    cell.deviation,
                    cell.n,
                    cell.best,
                    cell.mark,
                    column.published[i],
                    told,
                ]
            write.writerow([*row.labels, column.name, column.unit, *numbers, *known])
    return out.getvalue()


def _words(table: Table, style: Style) -> tuple[list[str], list[list[str]]]:
    """The headings and, row by row, what stands in each column."""
    heads = [style.plain(key) for key in table.keys]
    rows = [[style.plain(told) for told in row.labels] for row in table.rows]
    several = any(cell and cell.n > 1 for column in table.numbers for cell in column.cells)
    for column in table.numbers:
        what = column.unit if "/" in column.unit else column.name.replace("_", " ")
        heads.append(style.plain(f"{column.split} {what} {'↑' if higher(column.name) else '↓'}"))
        digits = _digits([cell.mean for cell in column.cells if cell])
        for words, cell in zip(rows, column.cells, strict=True):
            words.append(_number(cell, column, digits, several, style))
        if any(known is not None for known in column.published):
            heads.append("published")
            for words, known in zip(rows, column.published, strict=True):
                words.append(style.plain(NONE if known is None else f"{known:g}"))
    for name, told in table.facts.items():
        heads.append(style.plain(name))
        for words, values in zip(rows, told, strict=True):
            words.append(style.plain(_fact(name, values)))
    return heads, rows


def _number(cell: Cell | None, column: Column, digits: int, several: bool, style: Style) -> str:
    if cell is None:
        return style.plain(NONE)
    told = f"{cell.mean:.{digits}f}"
    if cell.deviation is not None:
        told += f" ± {cell.deviation:.{digits}f}"
    if several:
        told += f" ({cell.n})"
    told = style.bold(style.plain(told)) if cell.best else style.plain(told)
    likelihood = any(word in column.name for word in LIKELIHOODS)
    sign = SIGNS.get(str(cell.protocol["kind"]), "") if likelihood else ""
    sign = "≥" if sign == "≤" and higher(column.name) else sign
    return (f"{style.plain(sign)} " if sign else "") + told + (style.letter(cell.mark) if cell.mark else "")


def _digits(means: Sequence[float]) -> int:
    """Decimals for a column: 3.281, 88.12, 1980.4."""
    largest = max((abs(mean) for mean in means if math.isfinite(mean)), default=0.0)
    return 3 if largest < 10 else 2 if largest < 1000 else 1


def _fact(name: str, values: Sequence[Any]) -> str:
    if not values:
        return NONE
    if name == "time":
        seconds = statistics.fmean(values)
        return (
            f"{seconds:.0f} s"
            if seconds < 100
            else f"{seconds / 60:.0f} min"
            if seconds < 6000
            else f"{seconds / 3600:.1f} h"
        )
    if name == "parameters":
        return ", ".join(f"{n / 1e6:.2f} M" if n >= 1e6 else f"{n / 1e3:.1f} k" for n in values)
    return ", ".join(map(str, values))


def _mean(values: Sequence[Any]) -> Any:
    return (
        statistics.fmean(values)
        if values and all(isinstance(v, int | float) for v in values)
        else ", ".join(map(str, values))
    )


def _bare(word: str) -> str:
    """Without the terminal's codes, which have no width."""
    return re.sub("\033\\[\\d*m", "", word)


def _for_markdown(word: str) -> str:
    return re.sub(r"([\\`*_|<>])", r"\\\1", word)


def _for_latex(word: str) -> str:
    symbols = {
        "±": r"$\pm$",
        "≤": r"$\leq$",
        "≥": r"$\geq$",
        "≈": r"$\approx$",
        "–": "--",
        "↓": r"$\downarrow$",
    }
    symbols |= {
        "↑": r"$\uparrow$",
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
    }
    symbols |= {"<": r"\textless{}", ">": r"\textgreater{}", "=": "$=$"} | {
        mark: f"\\{mark}" for mark in "&%$#_{}"
    }
    return "".join(symbols.get(mark, mark) for mark in word)
