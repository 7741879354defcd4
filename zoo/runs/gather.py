"""What the run directories below some folders found. A folder that was moved or renamed is the same run."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from zoo.runs.reproduction import numbers_of


class Result(NamedTuple):
    """What a run directory's results.json tells, and where it was found."""

    folder: Path
    name: str
    identity: str
    version: str
    status: str
    reason: str
    config: dict[str, Any]
    numbers: list[dict[str, Any]]
    data: dict[str, str]  # fingerprints by split
    steps: int | None
    seconds: float | None
    parameters: int | None
    flops: float | None = None  # of the whole training, where they were counted
    choices: Mapping[str, str] = {}  # the words that chose the config's blocks


Found = tuple[Result, dict[str, Any]]  # a run and a number of it


def read(folders: Iterable[Path]) -> tuple[list[Result], list[str]]:
    """All runs below the folders, each identity once, and sentences about the folders that are left out.

    Of several folders with one identity a finished one is kept, then the one with the most numbers.
    Raises FileNotFoundError for a folder that isn't there, or one without any run below it.
    """
    runs: dict[str, Result] = {}
    notes = []
    for top in map(Path, folders):
        if not top.is_dir():
            raise FileNotFoundError(
                f"there is no folder {top}; give a run directory or a folder of them, such as runs"
            )
        found = sorted(_run_folders(top))
        if not found:
            raise FileNotFoundError(
                f"no run below {top}: no folder there has a results.json; give another folder"
            )
        for folder in found:
            try:
                run = _read(folder)
            except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
                notes.append(
                    f"left out {folder}: its results cannot be read ({type(error).__name__}: {error})"
                )
                continue
            known = runs.get(run.identity)
            if known is None:
                runs[run.identity] = run
            elif known.folder.resolve() != run.folder.resolve():
                runs[run.identity], other = sorted((known, run), key=_worth, reverse=True)
                notes.append(f"left out {other.folder}: the same run as {runs[run.identity].folder}")
    return list(runs.values()), notes


def _worth(run: Result) -> tuple[bool, int]:
    return run.status == "finished", len(run.numbers)


def _run_folders(top: Path) -> Iterable[Path]:
    """Folders with a results.json or an identity.json; what lies inside of one, a first stage, is no run."""
    seen = set()
    for folder, below, files in os.walk(top, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link in a circle
            below.clear()
        elif "results.json" in files or "identity.json" in files:
            below.clear()
            yield Path(folder)
        seen.add(real)


def _read(folder: Path) -> Result:
    path = folder / "results.json"
    if not path.exists():
        about = json.loads((folder / "identity.json").read_text())
        return Result(
            folder,
            folder.name,
            about["identity"],
            "",
            "unfinished",
            "no results yet",
            {},
            [],
            {},
            None,
            None,
            None,
        )
    found = json.loads(path.read_text())
    config, numbers = found.get("config") or {}, numbers_of(found)
    for number in numbers:
        number["value"] = None if number["value"] is None else float(number["value"])
        number["name"] = str(number["name"])
        for part in ("protocol", "weights"):
            number[part] = dict(number.get(part) or {})
    return Result(
        folder=folder,
        name=str(found.get("name") or config.get("name") or folder.name),
        identity=str(found.get("identity") or folder.resolve()),
        version=str(found.get("version") or ""),
        status=str(found["status"]),
        reason=str(found.get("reason") or ""),
        config=dict(config),
        numbers=numbers,
        data=dict(found.get("data") or {}),
        steps=found.get("steps"),
        seconds=found.get("seconds"),
        parameters=found.get("parameters"),
        flops=_number(found.get("train_flops", config.get("train_flops"))),
        choices=dict(found.get("choices") or {}),
    )


def _number(found: Any) -> float | None:
    """A number, also one that YAML left as the text 1e13."""
    return None if found is None else float(found)
