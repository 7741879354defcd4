"""What papers report, as it stands in a table: from the numbers that were measured for it, or from a CSV."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from zoo.runs.protocol import Cell
from zoo.runs.rows import Row


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
    row: Row,
    cell: Cell | None,
    name: str,
    given: Mapping[tuple[str, str], Published],
    footnotes: dict[str, str],
) -> Published | None:
    """What stands beside a row's number: as given, else what all numbers of its mean are compared with, else None.

    footnotes  text -> figure; what the number's protocol is gets the next one
    """
    found = next((given[who, name] for who in names(row) if (who, name) in given), None)
    told = {_told(number.get("published")) for _, number in cell.found} if cell else set()
    if found is None and len(told) == 1:
        found = told.pop()
    if found is None or not found.how:
        return found
    return found._replace(mark=footnotes.setdefault(found.how, str(len(footnotes) + 1)))


def _told(said: Mapping[str, Any] | None) -> Published | None:
    """What a number is compared with (zoo.runs.reproduction.compared)."""
    if not said:
        return None
    source = f"published: {said['paper']}" if said["paper"] else ""
    return Published(said["value"], "; ".join(part for part in (source, said["protocol"]) if part))


def names(row: Row) -> tuple[str, str]:
    """How a CSV may call a row: by its first label, or by all of them."""
    return row.labels[0], " ".join(row.labels)


def unused(
    rows: Sequence[Row], shown: Sequence[str], given: Mapping[tuple[str, str], Published]
) -> list[tuple[str, str]]:
    """The given values that no row and number of a table takes."""
    taken = {(who, name) for row in rows for who in names(row) for name in shown}
    return [key for key in given if key not in taken]
