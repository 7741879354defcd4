"""A table of comparison for other programs, nothing rounded: CSV, a line per row and number, and JSON."""

import csv
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from zoo.runs.table import Column, Table

FIELDS = (
    "number", "unit", "split", "mean", "sd", "se", "n", "best", "mark", "published",
    "delta", "delta_sd", "p", "pairs", "protocol",
)  # fmt: skip


def as_csv(table: Table) -> str:
    """One line per row and number; the protocol is JSON, and what is not there is empty."""
    out = io.StringIO()
    write = csv.writer(out, lineterminator="\n")
    facts = list(table.facts)
    write.writerow([*table.keys, *table.over, *FIELDS, *facts])
    for i, row in enumerate(table.rows):
        behind = [_mean(table.facts[name][i]) for name in facts]
        for column in table.numbers:
            told = _cell(column, i)
            told["protocol"] = json.dumps(told["protocol"], default=str) if told["protocol"] else ""
            write.writerow([*row.labels, *column.labels, *(told[field] for field in FIELDS), *behind])
    return out.getvalue()


def as_json(table: Table) -> str:
    """{"rows": [{<key>: label, "numbers": [...], "facts": {...}}], "footnotes": {...}, "notes": [...]}, indented."""
    rows = [
        {
            **dict(zip(table.keys, row.labels, strict=True)),
            "numbers": [
                {**dict(zip(table.over, column.labels, strict=True)), **_cell(column, i)}
                for column in table.numbers
            ],
            "facts": {name: _mean(told[i]) for name, told in table.facts.items()},
            "runs": [str(run.folder) for run in row.runs],
        }
        for i, row in enumerate(table.rows)
    ]
    told = {
        "rows": rows,
        "baseline": table.baseline or None,
        "footnotes": table.footnotes,
        "notes": table.notes,
    }
    return json.dumps(_strict(told), indent=1, ensure_ascii=False, default=str) + "\n"


def _cell(column: Column, i: int) -> dict[str, Any]:
    """Everything about one number of a row."""
    cell, known = column.cells[i], column.published[i]
    found = column.deltas[i] if column.deltas else None
    return {
        "number": column.name,
        "unit": column.unit,
        "split": column.split,
        "mean": cell.mean if cell else None,
        "sd": cell.deviation if cell else None,
        "se": cell.error if cell else None,
        "n": cell.n if cell else 0,
        "best": cell.best if cell else None,
        "mark": cell.mark if cell else None,
        "published": known.value if known else None,
        "delta": found.mean if found else None,
        "delta_sd": found.deviation if found else None,
        "p": found.p if found else None,
        "pairs": found.n if found else None,
        "protocol": cell.protocol if cell else None,
    }


def _strict(node: Any) -> Any:
    """JSON has no nan and no infinity: they become their names."""
    if isinstance(node, float) and not math.isfinite(node):
        return str(node)
    if isinstance(node, Mapping):
        return {key: _strict(found) for key, found in node.items()}
    return [_strict(found) for found in node] if isinstance(node, list | tuple) else node


def _mean(values: Sequence[Any]) -> Any:
    return (
        statistics.fmean(values)
        if values and all(isinstance(v, int | float) for v in values)
        else ", ".join(map(str, values))
    )
