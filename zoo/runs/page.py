"""A comparison as one page that needs nothing else: a table that sorts, figures, samples, and the protocols in words.

No request leaves the page: pictures, style and the few lines of script stand in it. It follows the reader's choice
of light or dark.
"""

import base64
import math
from collections.abc import Sequence
from html import escape

from zoo.runs.figure import Figure
from zoo.runs.layout import Style, measure, notes, words
from zoo.runs.plot import COLOURS
from zoo.runs.protocol import words as in_words
from zoo.runs.samples import PICTURE, Sample
from zoo.runs.svg import caption, svg
from zoo.runs.table import Table

DARK = ("#5AB4E8", "#FF9257", "#41CFA0", "#E9A3CB", "#F2BE4A", "#A6DBF8", "#E6E6E6")
LONGEST = 1200  # letters of a text sample
CELL = '<td data-v="{v}"{c}>{told}</td>'


def page(
    table: Table, *, title: str, command: str, figures: Sequence[Figure] = (), samples: Sequence[Sample] = ()
) -> str:
    """The whole page.

    command  what made it, as it was typed; it stands below the title
    """
    parts = [f"<header><h1>{escape(title)}</h1><p><code>{escape(command)}</code></p></header>", _table(table)]
    under = [
        f"<li><sup>{escape(letter)}</sup> {escape(told)}</li>" for letter, told in table.footnotes.items()
    ]
    under += [f"<li>{escape(told)}</li>" for told in notes(table)]
    parts.append(f'<ul class="notes">{"".join(under)}</ul>')
    for figure in figures:
        told = "<br>".join(map(escape, caption(figure)))
        parts.append(
            f"<section><h2>{escape(figure.title)}</h2><figure>{svg(figure)}<figcaption>{told}</figcaption></figure></section>"
        )
    if samples:
        shown = "".join(map(_sample, samples))
        parts.append(f'<section><h2>Samples</h2><div class="samples">{shown}</div></section>')
    parts.append(_protocols(table))
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">"
    )
    body = "".join(parts)
    return (
        f'<!doctype html><html lang="en"><head>{head}<title>{escape(title)}</title><style>{_style()}</style></head>'
        f"<body><main>{body}</main><script>{SCRIPT}</script></body></html>\n"
    )


def _table(table: Table) -> str:
    """The table; each cell carries its value, by which a click on its column's head sorts."""
    heads, rows = words(table, Style(escape, "<b>{}</b>".format, "<sup>{}</sup>".format), above=True)
    labels = len(table.keys)
    values = _values(table)
    told = "".join(
        f'<th scope="col"{"" if i < labels else " class=n"} tabindex="0" role="button">{head}</th>'
        for i, head in enumerate(heads)
    )
    lines = []
    for row, known in zip(rows, values, strict=True):
        cells = [
            CELL.format(v=escape(v), c="" if i < labels else ' class="n"', told=word)
            for i, (word, v) in enumerate(zip(row, known, strict=True))
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    above = ""
    if table.over:
        spans: dict[str, int] = {}
        for column in table.numbers:
            width = 1 + any(column.deltas) + any(known is not None for known in column.published)
            spans[measure(column)] = spans.get(measure(column), 0) + width
        tops = "".join(
            f'<th colspan="{width}" class="over">{escape(name)}</th>' for name, width in spans.items()
        )
        last = f'<th colspan="{len(table.facts)}"></th>' if table.facts else ""
        above = f'<tr><th colspan="{labels}"></th>{tops}{last}</tr>'
    return (
        f'<div class="wide"><table><thead>{above}<tr class="sort">{told}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _values(table: Table) -> list[list[str]]:
    """What cells are sorted by, column by column as zoo.runs.layout.words writes them; "" comes last."""
    rows = [list(row.labels) for row in table.rows]
    for column in table.numbers:
        for i, line in enumerate(rows):
            cell, known = column.cells[i], column.published[i]
            line.append(repr(cell.mean) if cell and math.isfinite(cell.mean) else "")
            if any(column.deltas):
                found = column.deltas[i]
                line.append(repr(found.mean) if found else "")
            if any(one is not None for one in column.published):
                line.append(repr(known.value) if known else "")
    for told in table.facts.values():
        for line, values in zip(rows, told, strict=True):
            line.append(str(values[0]) if values else "")
    return rows


def _sample(sample: Sample) -> str:
    name, how = escape(sample.name), escape(sample.how)
    if sample.path.suffix == PICTURE:
        data = base64.b64encode(sample.path.read_bytes()).decode()
        shown = f'<img alt="samples of {name}" src="data:image/png;base64,{data}">'
    else:
        text = sample.path.read_text(errors="replace")
        shown = f"<pre>{escape(text[:LONGEST])}{' …' if len(text) > LONGEST else ''}</pre>"
    return f"<figure><h3>{name}</h3>{shown}<figcaption>{how}</figcaption></figure>"


def _protocols(table: Table) -> str:
    """How the numbers were found: each protocol in a sentence, with the rows that were measured so."""
    told: dict[str, dict[str, None]] = {}
    for column in table.numbers:
        for row, cell in zip(table.rows, column.cells, strict=True):
            if cell:
                key = f"{column.name.replace('_', ' ')}: {in_words(cell.protocol)}"
                told.setdefault(key, {})[" ".join(row.labels)] = None
    lines = "".join(
        f"<dt>{escape(how)}</dt><dd>{escape(', '.join(who) if len(who) < len(table.rows) else 'all rows')}</dd>"
        for how, who in told.items()
    )
    return f"<section><h2>Protocols</h2><dl>{lines}</dl></section>"


def _style() -> str:
    light = "".join(f"--c{i}:{colour};" for i, colour in enumerate(COLOURS))
    dark = "".join(f"--c{i}:{colour};" for i, colour in enumerate(DARK))
    return STYLE.replace("LIGHT", light).replace("DARK", dark)


STYLE = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1d1f23;--grey:#63676f;--line:#e3e5e8;--soft:#f5f6f8;
--best:#0a6b45;LIGHT}
@media (prefers-color-scheme:dark){
:root{--paper:#15171a;--ink:#e6e6e6;--grey:#9da3ab;--line:#2e3238;--soft:#1d2024;--best:#5fd6a2;DARK}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1060px;margin:0 auto;padding:40px 24px 64px}
h1{font-size:26px;line-height:1.2;margin:0 0 8px;letter-spacing:-.01em}
h2{font-size:18px;margin:44px 0 12px}
h3{font-size:14px;margin:0 0 6px}
header p{margin:0 0 26px}
code,pre{font:12.5px/1.5 ui-monospace,SFMono-Regular,Menlo,"DejaVu Sans Mono",monospace}
header code{color:var(--grey);overflow-wrap:anywhere}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;border-top:2px solid var(--ink);
border-bottom:2px solid var(--ink)}
th,td{padding:7px 14px 7px 0;text-align:left;white-space:nowrap;vertical-align:baseline}
th{font-weight:600;font-size:13px}
thead tr:last-child th{border-bottom:1px solid var(--grey)}
.over{text-align:center;border-bottom:1px solid var(--line)}
.n{text-align:right;padding:7px 0 7px 22px}
.sort th{cursor:pointer;user-select:none}
.sort th:hover,.sort th:focus-visible{color:var(--c0)}
.sort th[aria-sort]::after{content:" ▲";font-size:9px}
.sort th[aria-sort=descending]::after{content:" ▼"}
tbody tr:nth-child(even){background:var(--soft)}
td b{color:var(--best)}
sup{color:var(--grey);font-size:10px;padding-left:1px}
.notes{list-style:none;padding:0;margin:14px 0 0;color:var(--grey);font-size:13px}
figure{margin:0}
svg{display:block;width:100%;height:auto;font:13px system-ui,-apple-system,"Segoe UI",sans-serif}
svg text{fill:var(--ink)}svg .tick{fill:var(--grey)}
svg .grid{stroke:var(--line)}svg .axis{stroke:var(--grey)}svg circle{stroke:var(--paper);stroke-width:1}
figcaption{color:var(--grey);font-size:12.5px;margin-top:6px;overflow-wrap:anywhere}
.samples{display:grid;grid-template-columns:repeat(auto-fill,minmax(220px,1fr));gap:24px}
.samples img{width:100%;border-radius:4px;display:block}
.samples pre{margin:0;padding:12px;background:var(--soft);border-radius:4px;white-space:pre-wrap;max-height:300px;
overflow:auto}
dl{margin:0;font-size:14px}dt{margin-top:10px}dd{margin:0;color:var(--grey);font-size:13px}
@media print{.sort th{cursor:auto}main{padding:0}}
"""

SCRIPT = """
const heads=[...document.querySelectorAll('.sort th')],body=document.querySelector('tbody');
function sort(i){
 const up=heads[i].getAttribute('aria-sort')!=='ascending';
 heads.forEach(h=>h.removeAttribute('aria-sort'));
 heads[i].setAttribute('aria-sort',up?'ascending':'descending');
 const key=r=>{const v=r.cells[i].dataset.v;return v===''?null:isNaN(v)?v:+v};
 const order=(a,b)=>{
  const x=key(a),y=key(b);
  if(x===null||y===null)return (x===null)-(y===null);
  const d=typeof x==='number'&&typeof y==='number'?x-y:String(x).localeCompare(String(y));
  return up?d:-d};
 [...body.rows].sort(order).forEach(r=>body.append(r))}
heads.forEach((h,i)=>{
 h.addEventListener('click',()=>sort(i));
 h.addEventListener('keydown',e=>{if(e.key==='Enter'||e.key===' '){e.preventDefault();sort(i)}})});
"""
