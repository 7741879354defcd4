"""What a config is, told without data or model where that is known: a finished run is found in milliseconds.

An identity needs the fingerprints of the data. They are kept in the cache's folder under the name of what they
follow from: the dataset's part of the config, its files' sizes and times, the code that reads them, the versions of
Python and torch. Only the house's own datasets are kept so; whatever else there is may read what it likes.
"""

import functools
import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from zoo.config.build import targets
from zoo.data import cache
from zoo.runs import DIGITS, Run, find, identity

DATA = Path(cache.__file__).parent


def look(config: Mapping[str, Any], name: str) -> tuple[Run, str] | None:
    """The run of a whole resolved config, there already or not, and its identity; None where it is not known yet.

    Where steps or widths still follow from a cost that has to be counted, it is not.
    """
    counted = config["train_flops"] is not None or config["match"]
    data = None if counted or config["resume"] else fingerprints(config)
    if data is None:
        return None
    whole = identity(config, data)
    return placed(config["runs"], name, whole), whole


def placed(runs: str, name: str, whole: str) -> Run:
    """The run of an identity, wherever it lies below a folder; where there is none, the one to be made."""
    expected = Run(Path(runs) / f"{name}-{whole[:DIGITS]}")
    return expected if expected.identity == whole else find(runs, whole) or expected


def answered(config: Mapping[str, Any], run: Run) -> bool:
    """Whether nothing is left to do: the run is finished, and was measured as the config asks."""
    results = run.results
    done = results.get("status") == "finished" and not config["rerun"]
    return bool(done and results["config"]["evaluate"] == config["evaluate"])


def fingerprints(config: Mapping[str, Any]) -> dict[str, str] | None:
    """The fingerprints of a config's data by split, as remembered; None where they are not."""
    path = memory(config)
    return dict(json.loads(path.read_text())) if path is not None and path.is_file() else None


def remember(config: Mapping[str, Any], found: Mapping[str, str]) -> None:
    """Keep the fingerprints of all splits of a config's data."""
    seen.cache_clear()
    path = memory(config)
    if path is not None and not path.is_file():
        cache.keep(path, lambda file: file.write(json.dumps(dict(found)).encode()))


def memory(config: Mapping[str, Any]) -> Path | None:
    """The file that remembers a config's data; None for data of a stranger's code."""
    dataset = config["dataset"]
    parts = [str(node["_target_"]) for _, node in targets(dataset["source"])]
    if not parts or not all(part.startswith("zoo.data.") for part in parts):
        return None
    told = {
        "dataset": dataset,
        "files": [*seen(DATA), *(line for path in paths(dataset["source"]) for line in seen(path))],
        "versions": [platform.python_version(), metadata.version("torch")],
    }
    text = json.dumps(told, sort_keys=True, default=str).encode()
    return cache.home() / "fingerprints" / f"{hashlib.sha256(text).hexdigest()}.json"


def paths(node: Any) -> Iterator[Path]:
    """What a dataset's config calls `root`, as all paths are called, where it is there."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key == "root" and isinstance(value, str):
                if (path := Path(value).expanduser()).exists():
                    yield path
            else:
                yield from paths(value)
    elif isinstance(node, list):
        for value in node:
            yield from paths(value)


@functools.cache
def seen(path: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of a file, or of each file below a folder; Python's own caches do not count.

    Looked up once for all jobs of a sweep. Links to nowhere are no files.
    """
    if path.is_file():
        return [stamp(path)]
    found = []
    for folder, inner, names in os.walk(path):
        inner[:] = sorted(name for name in inner if name != "__pycache__")
        there = (Path(folder, name) for name in sorted(names))
        found += [stamp(file) for file in there if file.exists()]
    return found


def stamp(path: Path) -> tuple[str, int, int]:
    """A file's path, size and time of its last change."""
    state = os.stat(path)
    return str(path), state.st_size, state.st_mtime_ns
