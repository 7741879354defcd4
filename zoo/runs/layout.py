"""A table of comparison as text, Markdown or LaTeX; zoo.runs.raw has it as CSV and JSON, zoo.runs.page as HTML.

≤ stands before what a lower bound of log p(x) gives, = before what an exact one gives, ≈ before an estimate.
A number of several runs is mean ± standard deviation (n); where all are of one run they are ± the standard error over
its examples. Of a grid, each column is called by its keys' values, and what it holds is told once.
"""

import math
import re
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from zoo.runs.baseline import Delta
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
    heads, rows = words(table, Style(str, bold, "[{}]".format))
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
    under = [f"[{letter}] {told}" for letter, told in table.footnotes.items()] + notes(table)
    return "\n".join([aligned(heads), rule, *map(aligned, rows), *([""] if under else []), *under]) + "\n"


def markdown(table: Table) -> str:
    """GitHub's tables."""
    heads, rows = words(table, Style(_for_markdown, "**{}**".format, "<sup>{}</sup>".format))
    aligns = ["---"] * len(table.keys) + ["---:"] * (len(heads) - len(table.keys))
    lines = [f"| {' | '.join(words)} |" for words in (heads, aligns, *rows)]
    under = [f"<sup>{letter}</sup> {_for_markdown(told)}" for letter, told in table.footnotes.items()]
    under += map(_for_markdown, notes(table))
    return "\n".join(lines) + "\n" + "".join(f"\n{line}\n" for line in under)


def latex(table: Table) -> str:
    r"""A tabular with booktabs' rules; footnotes stand below it, notes are comments."""
    heads, rows = words(table, Style(_for_latex, r"\textbf{{{}}}".format, "$^{{{}}}$".format), above=True)
    aligns = "l" * len(table.keys) + "r" * (len(heads) - len(table.keys))
    lines = [
        r"% \usepackage{booktabs}",
        *(f"% {note}" for note in notes(table)),
        rf"\begin{{tabular}}{{{aligns}}}",
    ]
    lines += [r"\toprule", *_above(table), " & ".join(heads) + r" \\", r"\midrule"]
    lines += [" & ".join(words) + r" \\" for words in rows]
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [
        rf"\par{{\footnotesize $^{{{letter}}}$ {_for_latex(told)}\par}}"
        for letter, told in table.footnotes.items()
    ]
    return "\n".join(lines) + "\n"


def words(table: Table, style: Style, *, above: bool = False) -> tuple[list[str], list[list[str]]]:
    """The headings and, row by row, what stands in each column.

    above  a line over the headings tells what a grid's columns hold
    """
    heads = [style.plain(key) for key in table.keys]
    rows = [[style.plain(told) for told in row.labels] for row in table.rows]
    several = any(cell and cell.n > 1 for column in table.numbers for cell in column.cells)
    metrics = list(dict.fromkeys((column.name, column.unit) for column in table.numbers))
    for column in table.numbers:
        name = ", ".join(column.labels)
        what = measure(column) if not name or (len(metrics) > 1 and not above) else ""
        heads.append(style.plain(f"{what} {name}".strip()))
        means = [cell.mean for other in table.numbers if (other.name, other.unit) == (column.name, column.unit)
                 for cell in other.cells if cell]  # fmt: skip
        digits = _digits(means)
        for line, cell in zip(rows, column.cells, strict=True):
            line.append(_number(cell, column, digits, several, style))
        if any(column.deltas):
            heads.append(style.plain(f"Δ {name}".strip()))
            for line, found in zip(rows, column.deltas, strict=True):
                line.append(style.plain(difference(found, digits)))
        if any(known is not None for known in column.published):
            heads.append(style.plain(f"published {name}".strip()))
            for line, known in zip(rows, column.published, strict=True):
                told = style.plain(NONE if known is None else f"{known.value:g}")
                line.append(told + (style.letter(known.mark) if known and known.mark else ""))
    for name, known_of in table.facts.items():
        heads.append(style.plain(name))
        for line, values in zip(rows, known_of, strict=True):
            line.append(style.plain(fact(name, values)))
    return heads, rows


def notes(table: Table) -> list[str]:
    """The sentences below a table; the first says what a grid holds."""
    if not table.over:
        return table.notes
    told = dict.fromkeys(measure(column) for column in table.numbers)
    return [f"{' and '.join(told)}, a column for each {', '.join(table.over)}", *table.notes]


def measure(column: Column) -> str:
    """What a column holds, and which way is better: "test nats/example ↓"."""
    what, unit = column.name.replace("_", " "), column.unit
    if unit.startswith(column.name.replace("_per_", "/")):  # nats/example says nats
        what = unit
    elif "/" in unit:
        what = f"{what} ({unit})"
    return f"{column.split} {what} {'↑' if higher(column.name) else '↓'}"


def difference(found: Delta | None, digits: int) -> str:
    """A difference to the baseline: "−0.12 (p = 0.031, n = 3)"."""
    if found is None:
        return NONE
    told = f"{found.mean:+.{digits}f}".replace("-", "−")
    if found.p is None:
        return f"{told} (n = {found.n})"
    p = "p < 0.001" if found.p < 0.001 else f"p = {found.p:.2g}"
    return f"{told} ({p}, n = {found.n})"


def _above(table: Table) -> list[str]:
    """A grid's upper line of headings: what its columns hold, over all of them."""
    if not table.over:
        return []
    lines, at, spans = [], len(table.keys), []
    for told in dict.fromkeys(measure(column) for column in table.numbers):
        columns = [column for column in table.numbers if measure(column) == told]
        width = sum(
            1 + any(column.deltas) + any(known is not None for known in column.published)
            for column in columns
        )
        spans.append((told, at + 1, at + width))
        at += width
    ends = [""] * (len(table.keys) - 1)
    cells = [rf"\multicolumn{{{last - first + 1}}}{{c}}{{{_for_latex(told)}}}" for told, first, last in spans]
    lines.append(" & ".join([*ends, "", *cells, *[""] * len(table.facts)]) + r" \\")
    lines.append(" ".join(rf"\cmidrule(lr){{{first}-{last}}}" for _, first, last in spans))
    return lines


def _number(cell: Cell | None, column: Column, digits: int, several: bool, style: Style) -> str:
    if cell is None:
        return style.plain(NONE)
    told = f"{cell.mean:.{digits}f}"
    if cell.deviation is not None:
        told += f" ± {cell.deviation:.{digits}f}"
    elif not several and cell.error is not None:
        told += f" ± {cell.error:.{digits}f}"
    if several:
        told += f" ({cell.n})"
    told = style.bold(style.plain(told)) if cell.best else style.plain(told)
    likelihood = any(word in column.name for word in LIKELIHOODS) and "codebook" not in column.name
    sign = SIGNS.get(str(cell.protocol["kind"]), "") if likelihood else ""
    sign = "≥" if sign == "≤" and higher(column.name) else sign
    return (f"{style.plain(sign)} " if sign else "") + told + (style.letter(cell.mark) if cell.mark else "")


def _digits(means: Sequence[float]) -> int:
    """Decimals for a column: 3.281, 88.12, 1980.4."""
    largest = max((abs(mean) for mean in means if math.isfinite(mean)), default=0.0)
    return 3 if largest < 10 else 2 if largest < 1000 else 1


def fact(name: str, values: Sequence[Any]) -> str:
    """What stands behind the numbers, in few letters: "3.3 min", "676.9 k"."""
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
    if name == "operations":
        return ", ".join(f"{n:.2g}" for n in values)
    return ", ".join(map(str, values))


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
        "−": "$-$",
        "Δ": r"$\Delta$",
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
