"""A run is a folder: config, identity, metrics, checkpoints, samples, environment and results, all that it needs.

It may be moved or renamed: nothing in it says where it is.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

DIGITS = 12  # of the identity, in the folder's name


class Run:
    """One run's folder and its parts.

    ValueError where the folder belongs to another experiment: twelve digits may agree by chance, the whole is compared.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder).expanduser()
        self.worked = False  # whether this process, or one that it started, added to its results

    config_path = property(lambda self: self.folder / "config.yaml")
    results_path = property(lambda self: self.folder / "results.json")
    metrics_path = property(lambda self: self.folder / "metrics.csv")
    checkpoints = property(lambda self: self.folder / "checkpoints")
    samples = property(lambda self: self.folder / "samples")

    @classmethod
    def open(cls, folder: Path | str) -> "Run":
        """The run in an existing folder. FileNotFoundError names the runs that are near."""
        run = cls(folder)
        if not run.config_path.is_file():
            here = sorted(str(path.parent) for path in run.folder.parent.glob("*/config.yaml"))[:8]
            told = f"; runs here: {', '.join(here)}" if here else ""
            raise FileNotFoundError(f"{run.folder} is no run's folder: it has no config.yaml{told}")
        return run

    def create(self, config: Mapping[str, Any], identity: str, environment: Mapping[str, Any]) -> None:
        """Make the folder, prove it writable, and write down what the run is. OSError where it cannot be."""
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self.samples.mkdir(exist_ok=True)
            probe = self.folder / f".probe-{os.getpid()}"
            probe.write_bytes(b"\0" * 65536)
            probe.unlink()
        except OSError as error:
            free = free_bytes(self.folder)
            raise OSError(f"cannot write to {self.folder}: {error.strerror or error} ({free} free)") from None
        known = self.identity
        if known is not None and known != identity:
            raise ValueError(
                f"{self.folder} belongs to another experiment ({known[:DIGITS]}), not {identity[:DIGITS]}"
            )
        write_json(self.folder / "identity.json", {"identity": identity})
        write_yaml(self.config_path, config)
        write_json(self.folder / "environment.json", environment)

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config, plain."""
        import yaml

        return read(self.config_path, yaml.safe_load, yaml.YAMLError)

    @property
    def identity(self) -> str | None:
        """The whole identity, 64 hex digits; None where the folder is empty."""
        path = self.folder / "identity.json"
        return str(read_json(path).get("identity")) if path.is_file() else None

    @property
    def environment(self) -> dict[str, Any]:
        """environment.json, {} where there is none yet."""
        path = self.folder / "environment.json"
        return read_json(path) if path.is_file() else {}

    @property
    def results(self) -> dict[str, Any]:
        """results.json, {} where there is none yet."""
        return read_json(self.results_path) if self.results_path.is_file() else {}

    def write_results(self, results: Mapping[str, Any]) -> None:
        self.worked = True
        write_json(self.results_path, results)

    @property
    def finished(self) -> bool:
        return bool(self.results.get("status") == "finished")


def find(root: Path | str, identity: str) -> Run | None:
    """The run of an identity anywhere below a folder, however its own folder is called."""
    return next((run for run in runs(root) if run.identity == identity), None)


def runs(root: Path | str) -> Iterator[Run]:
    """Every run below a folder; what lies inside of one, a first stage, is none, and hidden folders hold none."""
    for folder, inner, names in os.walk(Path(root).expanduser()):
        inner[:] = [] if "identity.json" in names else sorted(name for name in inner if name[0] != ".")
        if "identity.json" in names:
            yield Run(folder)


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file of a run says. ValueError names a damaged one."""
    return read(path, json.loads, json.JSONDecodeError)


def read(path: Path, parse: Callable[[str], Any], error: type[Exception]) -> dict[str, Any]:
    """A file's mapping, by a parser that raises `error`. ValueError names a damaged one."""
    try:
        found = parse(path.read_text(encoding="utf-8"))
    except (error, UnicodeDecodeError) as reason:
        found, why = None, " ".join(str(reason).split())
    else:
        why = f"it holds a {type(found).__name__}"
    if not isinstance(found, Mapping):
        raise ValueError(f"{path} is damaged ({why}); bring it back, or remove the run's folder")
    return dict(found)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file whole or not at all."""
    write(path, json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n")


def write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file whole or not at all."""
    import yaml

    write(path, yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True))


def write(path: Path, text: str) -> None:
    """Replace a file's content in one step: a crash leaves the old one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def free_bytes(folder: Path) -> str:
    """The free space where a folder is or would be, in words."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return f"{shutil.disk_usage(folder).free / 1e6:,.0f} MB"
