"""What papers report: from the `experiment` of a run's config, or from a CSV, with the protocol it was measured by."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from zoo.runs.rows import MISSING, Row, value


class Published(NamedTuple):
    """A paper's number; `how` says who found it and how, `mark` is the figure of that footnote."""

    value: float
    how: str = ""
    mark: str = ""


def read_published(path: Path) -> dict[tuple[str, str], Published]:
    """A CSV with columns row, metric, value and, if wanted, protocol -> {(row, metric): Published}.

    Rows are named as in the table. Raises FileNotFoundError, and ValueError for a file without these columns.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file {path}; --published takes a CSV with columns row,metric,value"
        )
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    try:
        return {
            (line["row"], line["metric"]): Published(float(line["value"]), line.get("protocol") or "")
            for line in lines
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no CSV with columns row,metric,value (a number): {error!r}") from None


def published(
    row: Row, name: str, given: Mapping[tuple[str, str], Published], footnotes: dict[str, str]
) -> Published | None:
    """A row's published number: as given, else the one that all experiments of its runs agree on, else None.

    footnotes  text -> figure; what the number's protocol is gets the next one
    """
    found = next((given[who, name] for who in names(row) if (who, name) in given), None)
    told = {_told(row, i, name) for i in range(len(row.runs))}
    if found is None and len(told) == 1:
        found = told.pop()
    if found is None or not found.how:
        return found
    return found._replace(mark=footnotes.setdefault(found.how, str(len(footnotes) + 1)))


def _told(row: Row, i: int, name: str) -> Published | None:
    """What one run's experiment says; None where a word of the command line made it another than the paper's."""
    if value(row.runs[i], "experiment.changed") not in (MISSING, None, []):
        return None
    found = value(row.runs[i], f"experiment.published.{name}")
    if not isinstance(found, int | float):
        return None
    said = {key: value(row.runs[i], f"experiment.{key}") for key in ("paper", "protocol")}
    paper, how = (said[key] if isinstance(said[key], str) else "" for key in ("paper", "protocol"))
    source = f"published: {paper}" if paper else ""
    return Published(float(found), "; ".join(part for part in (source, how) if part))


def names(row: Row) -> tuple[str, str]:
    """How a CSV may call a row: by its first label, or by all of them."""
    return row.labels[0], " ".join(row.labels)


def unused(
    rows: Sequence[Row], shown: Sequence[str], given: Mapping[tuple[str, str], Published]
) -> list[tuple[str, str]]:
    """The given values that no row and number of a table takes."""
    taken = {(who, name) for row in rows for who in names(row) for name in shown}
    return [key for key in given if key not in taken]
