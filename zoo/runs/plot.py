"""A figure, drawn as PNG and as SVG: lines with the spread over seeds, labelled where they end."""

import math
from pathlib import Path
from typing import Any

from zoo.runs.figure import Figure, Line

# Okabe & Ito 2008, which the colour-blind can tell apart, without the yellow that white paper swallows
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
INK, GREY, GRID = "#222222", "#666666", "#E4E4E4"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "zoo",
}
WIDTH, HEIGHT = 7.6, 4.6  # inches
SOFT, FAINT, FEW = 0.18, 0.09, 4  # how much of a band is seen, and of how many lines that is too much
DENSE = 25  # lines of more points have no markers
LOG = 6.0  # an axis is logarithmic from this ratio of its ends on


def draw(figure: Figure, out: Path) -> list[Path]:
    """Write <out>.png and <out>.svg, whatever the ending of `out`; returns both.

    Colours and markers are dealt out to the lines by name, both at once, so that either tells them apart.

    Raises ImportError, in a sentence, without matplotlib.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure as Canvas
    except ImportError:
        raise ImportError(
            "plots need matplotlib, which is not installed; uv sync --extra plot brings it"
        ) from None
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(WIDTH, HEIGHT))
        labels = [line.name for line in figure.lines if line.name]
        right = 0.97 - min(0.36, 0.012 * max(map(len, labels)) + 0.06) if labels else 0.97
        notes = [*stops(figure), figure.source]
        bottom = 0.15 + 0.033 * len(notes)
        axes = canvas.add_axes((0.1, bottom, right - 0.1, 0.88 - bottom))
        _frame(axes, figure)
        for i, line in enumerate(figure.lines):
            _line(axes, line, figure, i)
        _make_room(canvas, axes)
        _labels(canvas, axes, figure)
        canvas.text(0.02, 0.94, figure.title, fontsize=12, fontweight="bold")
        for i, note in enumerate(reversed(notes)):
            canvas.text(0.02, 0.022 + 0.033 * i, note, fontsize=7.5, color=GREY)
        out.parent.mkdir(parents=True, exist_ok=True)
        paths = [out.with_suffix(".png"), out.with_suffix(".svg")]
        canvas.savefig(paths[0], dpi=200)
        canvas.savefig(paths[1], metadata={"Date": None})
    return paths


def _frame(axes: Any, figure: Figure) -> None:
    """Axes, scales, ticks and what they are called."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    xs = places(figure)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=3)
    axes.set_xlabel(figure.x, labelpad=6)
    axes.set_ylabel(figure.y, labelpad=6)
    ys = [p.y for line in figure.lines for p in line.points]
    if figure.y.startswith("accuracy"):
        axes.set_ylim(0, 103)
        axes.set_yticks(range(0, 101, 20))
    elif min(ys) > 0 and max(ys) / min(ys) > LOG:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.10g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif max(ys) >= 10_000:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}"))
    if figure.x_kind == "word":
        axes.set_xticks(list(xs.values()), list(xs))
        axes.set_xlim(-0.6, len(xs) - 0.4)
    elif figure.x_kind in ("multiple", "bytes"):
        axes.set_xscale("log", base=2)
        ends = sorted(xs.values())
        axes.set_xlim(ends[0] / 2**0.3, ends[-1] * 2**0.3)
        ticks = ends if figure.x_kind == "multiple" else powers(ends[0], ends[-1])
        axes.set_xticks(ticks, [f"{x:g}×" if figure.x_kind == "multiple" else in_bytes(x) for x in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
    elif figure.x_kind == "number" and min(xs.values()) > 0 and max(xs.values()) / min(xs.values()) > LOG:
        axes.set_xscale("log")
        ticks = sorted(xs.values())
        if len(ticks) <= 8:
            axes.set_xticks(ticks, [short(x) for x in ticks])
            axes.xaxis.set_minor_locator(NullLocator())
    if figure.x_kind in ("number", "linear") and max(xs.values()) >= 10_000:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short(x)))


def _line(axes: Any, line: Line, figure: Figure, i: int) -> None:
    """One row's means, and the spread around them."""
    colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
    at = places(figure)
    dodge = (i - (len(figure.lines) - 1) / 2) * 0.5 / len(figure.lines) if figure.x_kind == "word" else 0.0
    scale = 100 if figure.y.startswith("accuracy") else 1
    x = [at[p.x] + dodge for p in line.points]
    y = [p.y * scale for p in line.points]
    spread = [(p.deviation or 0.0) * scale for p in line.points]
    look = {"color": colour, "marker": marker, "markersize": 6, "markeredgecolor": "white"}
    look["markeredgewidth"] = 0.7
    if len(line.points) > DENSE:
        look["marker"] = ""
    if not figure.connected:
        spread_or_none = spread if any(spread) else None
        look["markersize"] = 8
        axes.errorbar(
            x, y, yerr=spread_or_none, linestyle="none", elinewidth=1.4, capsize=3, zorder=3, **look
        )
        return
    axes.plot(x, y, linestyle=dashes(i), linewidth=1.8, zorder=3, **look)
    if any(spread) and len(x) == 1:  # which have no band
        axes.errorbar(x, y, yerr=spread, color=colour, elinewidth=1.4, capsize=3, zorder=2)
    elif any(spread):
        low, high = [a - s for a, s in zip(y, spread)], [a + s for a, s in zip(y, spread)]
        if axes.get_yscale() == "log":
            low = [max(a, b / 100) for a, b in zip(low, y)]
        axes.fill_between(
            x, low, high, color=colour, alpha=FAINT if len(figure.lines) > FEW else SOFT, linewidth=0
        )
    if line.stop:
        axes.annotate(
            "✕", (x[-1], y[-1]), (11, 0), textcoords="offset points", color=colour, ha="center", va="center"
        )


def _make_room(canvas: Any, axes: Any) -> None:
    """Move the left end of the axes to where its labels begin at the title's edge."""
    canvas.draw_without_rendering()
    box, wide = axes.get_position(), canvas.bbox.width
    left = 0.02 + box.x0 - axes.get_tightbbox().x0 / wide
    axes.set_position((left, box.y0, box.x1 - left, box.height))


def _labels(canvas: Any, axes: Any, figure: Figure) -> None:
    """The lines' names beside the axes, at the height of their ends, pushed apart where they would touch."""
    named = [(i, line) for i, line in enumerate(figure.lines) if line.name]
    if not named:
        return
    scale = 100 if figure.y.startswith("accuracy") else 1
    pixel = axes.transAxes.inverted().transform
    heights = {
        i: float(pixel(axes.transData.transform((1, line.points[-1].y * scale)))[1]) for i, line in named
    }
    step = 0.2 / (canvas.get_figheight() * axes.get_position().height)
    order = sorted(named, key=lambda pair: heights[pair[0]])
    for (i, line), height in zip(order, spread_out([heights[i] for i, _ in order], step)):
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        look = {"color": colour, "linewidth": 1.8, "linestyle": dashes(i) if figure.connected else "none"}
        for x, sign in (([1.022, 1.062], ""), ([1.042], marker)):
            axes.plot(
                x, [height] * len(x), marker=sign, markersize=6, markeredgecolor="white",
                markeredgewidth=0.7, transform=axes.transAxes, clip_on=False, **look,
            )  # fmt: skip
        name = f"{line.name} ✕" if line.stop else line.name
        axes.text(1.074, height, name, transform=axes.transAxes, va="center", fontsize=9)


def dashes(i: int) -> str:
    """Line i's style: whole while colours are new, broken where they come again."""
    return ("-", "--", ":")[i // len(COLOURS) % 3]


def spread_out(heights: list[float], step: float) -> list[float]:
    """Sorted heights in [0, 1], moved as little as it takes to lie at least `step` apart."""
    n = len(heights)
    step = min(step, 1 / max(n - 1, 1))
    low = [max(h, 0.0) for h in heights]
    for i in range(1, n):
        low[i] = max(low[i], low[i - 1] + step)
    top = 1.0
    for i in reversed(range(n)):
        low[i] = top = min(low[i], top)
        top -= step
    return low


def places(figure: Figure) -> dict[Any, float]:
    """Where each x lies: numbers where they are, words side by side."""
    xs = dict.fromkeys(p.x for line in figure.lines for p in line.points)
    xs |= dict.fromkeys(line.stop[0] for line in figure.lines if line.stop and figure.x_kind == "multiple")
    if figure.x_kind == "word":
        return {x: float(i) for i, x in enumerate(sorted(xs))}
    return {x: float(x) for x in xs}


def stops(figure: Figure) -> list[str]:
    """Why lines end early, a sentence each."""
    return [
        f"✕ {line.name} has no value at {line.stop[0]:g}×: {line.stop[1].partition(';')[0]}"
        for line in figure.lines
        if line.stop
    ]


def powers(low: float, high: float) -> list[float]:
    """Powers of 2 over a range, at most 8 of them, one beyond each end."""
    first, last = math.floor(math.log2(low)), math.ceil(math.log2(high))
    return [2.0**e for e in range(first, last + 1, max(1, math.ceil((last - first) / 7)))]


def in_bytes(size: float) -> str:
    """512 -> "512 B", 4096 -> "4 KiB"."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:g} {unit}"
        size /= 1024
    return f"{size:g} GiB"


def short(x: float) -> str:
    """123456 -> "123 k", 1e13 -> "10 T"."""
    for size, letter in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(x) >= max(size, 1e4):
            return f"{x / size:.3g}{letter}"
    return f"{x:g}"
