"""A figure as SVG for a page: no library, colours that follow the page's theme, values under the pointer.

Colours are the page's variables --c0, --c1 ...; text, axes and grid are its --ink, --grey and --line.
"""

import math
from html import escape
from typing import NamedTuple

from zoo.runs.figure import Figure, Line
from zoo.runs.plot import (
    COLOURS,
    DENSE,
    FAINT,
    FEW,
    LOG,
    SOFT,
    dashes,
    in_bytes,
    places,
    powers,
    short,
    spread_out,
    stops,
)

WIDTH, HEIGHT = 980, 430
TOP, BOTTOM, LEFT, LETTER = 16, 52, 72, 7.0  # pixels; LETTER is the width of one in a label
Ticks = list[tuple[float, str]]  # where, and what stands there
DASHES = {"-": "", "--": "6 4", ":": "2 4"}


class Scale(NamedTuple):
    """From values to [0, 1]."""

    low: float
    high: float
    log: bool = False

    def at(self, x: float) -> float:
        """Where a value lies; 0.5 where there is but one."""
        low, high, x = (
            (math.log(v) for v in (self.low, self.high, x)) if self.log else (self.low, self.high, x)
        )
        return 0.5 if high == low else (x - low) / (high - low)


class Frame(NamedTuple):
    """The part of the picture in which lines are drawn, and how values get there."""

    x: Scale
    y: Scale
    across: float  # pixels, as `up`
    up: float
    times: float  # what a value is multiplied by: 100 for percents

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Pixels of a value; what lies below a logarithmic axis is drawn at its foot."""
        y = max(y * self.times, self.y.low) if self.y.log else y * self.times
        return LEFT + self.across * self.x.at(x), TOP + self.up * (1 - self.y.at(y))


def svg(figure: Figure) -> str:
    """The picture, an <svg> element with the lines' names beside their ends."""
    names = [f"{line.name} ✕" if line.stop else line.name for line in figure.lines]
    right = 24 + max((LETTER * len(name) + 34 for name in names if name), default=0)
    times = 100.0 if figure.y.startswith("accuracy") else 1.0
    points = [p for line in figure.lines for p in line.points]
    ends = [(p.y + sign * (p.deviation or 0.0)) * times for p in points for sign in (-1, 1)]
    x_scale, x_ticks = _x(figure, list(places(figure).values()))
    y_scale, y_ticks = _y(ends, [p.y * times for p in points], times > 1)
    frame = Frame(x_scale, y_scale, WIDTH - LEFT - right, HEIGHT - TOP - BOTTOM, times)
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(figure.title)}">'
    lines = [_line(line, i, figure, frame) for i, line in enumerate(figure.lines)]
    return "".join(
        [head, *_axes(figure, frame, x_ticks, y_ticks), *lines, *_names(figure, names, frame), "</svg>"]
    )


def _axes(figure: Figure, frame: Frame, x_ticks: Ticks, y_ticks: Ticks) -> list[str]:
    """Grid, ticks and what the axes are called."""
    parts = []
    across, foot = f"{frame.across:.1f}", TOP + frame.up
    for y, told in y_ticks:
        height = TOP + frame.up * (1 - frame.y.at(y))
        parts.append(f'<path class="grid" d="M{LEFT} {height:.1f}h{across}"/>')
        parts.append(_text(LEFT - 8, height + 4, told, 'class="tick" text-anchor="end"'))
    parts.append(f'<path class="axis" d="M{LEFT} {foot}h{across}"/>')
    for x, told in x_ticks:
        left = LEFT + frame.across * frame.x.at(x)
        parts.append(f'<path class="axis" d="M{left:.1f} {foot}v4"/>')
        parts.append(_text(left, foot + 18, told, 'class="tick" text-anchor="middle"'))
    turned = f'transform="translate(16 {TOP + frame.up / 2:.1f}) rotate(-90)" text-anchor="middle"'
    parts.append(_text(LEFT + frame.across / 2, HEIGHT - 10, figure.x, 'text-anchor="middle"'))
    parts.append(_text(0, 0, figure.y, turned))
    return parts


def _names(figure: Figure, names: list[str], frame: Frame) -> list[str]:
    """The lines' names beside the frame, at the height of their ends, pushed apart where they would touch."""
    parts = []
    heights = [frame.place(frame.x.low, line.points[-1].y)[1] for line in figure.lines]
    order = sorted(range(len(names)), key=lambda i: heights[i])
    spaced = spread_out([(heights[i] - TOP) / frame.up for i in order], 17 / frame.up)
    left = LEFT + frame.across
    for i, height in zip(order, spaced, strict=True):
        if names[i]:
            y = TOP + frame.up * height
            parts.append(f'<path {_stroke(i, figure)} d="M{left + 10:.1f} {y:.1f}h18"/>')
            if len(figure.lines[i].points) <= DENSE:
                parts.append(f'<circle cx="{left + 19:.1f}" cy="{y:.1f}" r="4" fill="{_colour(i)}"/>')
            parts.append(_text(left + 34, y + 4, names[i]))
    return parts


def caption(figure: Figure) -> list[str]:
    """The sentences below a picture: why lines end, and where the numbers come from."""
    return [*stops(figure), figure.source]


def _line(line: Line, i: int, figure: Figure, frame: Frame) -> str:
    """One row: the spread around its means, the means, and a mark with its value on each."""
    at = places(figure)
    shift = (i - (len(figure.lines) - 1) / 2) * 0.5 / len(figure.lines) if figure.x_kind == "word" else 0.0

    def place(x: object, y: float) -> tuple[float, float]:
        return frame.place(at[x] + shift, y)

    means = [place(p.x, p.y) for p in line.points]
    spread = [p.deviation or 0.0 for p in line.points]
    parts = []
    if figure.connected and len(means) > 1:
        if any(spread):
            over = [place(p.x, p.y + s) for p, s in zip(line.points, spread, strict=True)]
            under = [place(p.x, p.y - s) for p, s in zip(line.points, spread, strict=True)]
            seen = FAINT if len(figure.lines) > FEW else SOFT
            band = _path([*over, *under[::-1]])
            parts.append(f'<path fill="{_colour(i)}" fill-opacity="{seen}" d="{band}Z"/>')
        parts.append(f'<path {_stroke(i, figure)} d="{_path(means)}"/>')
    else:
        for p, s in zip(line.points, spread, strict=True):
            if s:
                bar = _path([place(p.x, p.y - s), place(p.x, p.y + s)])
                parts.append(f'<path {_stroke(i, figure)} d="{bar}"/>')
    if len(line.points) <= DENSE:
        for p, (x, y) in zip(line.points, means, strict=True):
            told = f"{line.name or figure.y}: {p.y:.4g}"
            told += f" ± {p.deviation:.3g}" if p.deviation is not None else ""
            told += f" (n = {p.n}) at {p.x if isinstance(p.x, str) else short(p.x)}"
            dot = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{_colour(i)}">'
            parts.append(f"{dot}<title>{escape(told)}</title></circle>")
    return "".join(parts)


def _x(figure: Figure, values: list[float]) -> tuple[Scale, Ticks]:
    """The x axis: its scale, and its ticks with their words."""
    low, high = min(values), max(values)
    if figure.x_kind == "word":
        return Scale(-0.6, len(values) - 0.4), [(x, str(told)) for told, x in places(figure).items()]
    if figure.x_kind in ("multiple", "bytes"):
        multiple = figure.x_kind == "multiple"
        ticks = sorted(values) if multiple else powers(low, high)
        scale = Scale(min(low, ticks[0]) / 2**0.2, max(high, ticks[-1]) * 2**0.2, True)
        return scale, [(x, f"{x:g}×" if multiple else in_bytes(x)) for x in ticks]
    if figure.x_kind == "number" and low > 0 and high / low > LOG:
        own = sorted(set(values))
        ticks = own if len(own) <= 6 else logarithmic(low, high)
        return Scale(low / 1.15, high * 1.15, True), [(x, short(x)) for x in ticks]
    room = 0.04 * ((high - low) or abs(high) or 1.0) if figure.x_kind == "number" else 0.0
    low, high = (low - room, high + room) if figure.x_kind == "number" else (min(low, 0.0), high)
    return Scale(low, high), [(x, short(x)) for x in linear(low, high)]


def _y(ends: list[float], middles: list[float], percent: bool) -> tuple[Scale, Ticks]:
    """The y axis; logarithmic where the means are far apart, 0 to 100 for an accuracy."""
    if percent:
        return Scale(0.0, 103.0), [(float(y), str(y)) for y in range(0, 101, 20)]
    if min(middles) > 0 and max(middles) / min(middles) > LOG:
        low, high = max(min(ends), min(middles) / 3) / 1.1, max(ends) * 1.1
        return Scale(low, high, True), [(y, short(y)) for y in logarithmic(low, high)]
    low, high = min(ends), max(ends)
    room = 0.06 * ((high - low) or abs(high) or 1.0)
    return Scale(low - room, high + room), [(y, short(y)) for y in linear(low - room, high + room)]


def linear(low: float, high: float) -> list[float]:
    """About five round numbers of a range."""
    rough = ((high - low) or 1.0) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
    return [
        round(k * step, 12) for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


def logarithmic(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten of a range, or the powers alone where that is enough."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [m * 10.0**e for e in decades for m in ((1, 2, 5) if len(decades) < 5 else (1,))]
    inside = [x for x in found if low <= x <= high]
    return inside if len(inside) > 1 else linear(low, high)


def _text(x: float, y: float, told: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}"{" " if more else ""}{more}>{escape(told)}</text>'


def _path(points: list[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _colour(i: int) -> str:
    return f"var(--c{i % len(COLOURS)})"


def _stroke(i: int, figure: Figure) -> str:
    dash = DASHES[dashes(i)] if figure.connected else ""
    return f'fill="none" stroke="{_colour(i)}" stroke-width="2"' + (
        f' stroke-dasharray="{dash}"' if dash else ""
    )
