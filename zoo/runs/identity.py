"""What makes two runs the same experiment: a hash of what defines it, and of nothing else.

Paths, devices, workers, loggers and what is only printed or kept do not count. Data count by their content, another
run (a first stage, initial weights) by its own identity.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.runs.folder import Run

# Keys that change where and how fast a run goes, and what is told of it, but not what it is.
EXECUTION = frozenset({
    "name", "runs", "data_dir", "num_workers", "data_device", "checkpoint_every", "keep", "threads", "resume", "rerun",
    "train_flops", "match",  # steps and widths follow from these, and count
    "dry_run", "optimize",
    "logger", "evaluate", "debug", "experiment",
    "trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.timeout",
    "trainer.log_every_n_steps", "trainer.enable_progress_bar", "trainer.detect_anomaly",
})  # fmt: skip
RUNS = ("run", "init")  # keys whose value is another run's folder
SCHEMA = 1  # raised when the meaning of a config changes, so that old results are not taken for new ones


def identity(config: Mapping[str, Any], data: Mapping[str, str]) -> str:
    """The sha256, in 64 hex digits, of a resolved config and of its data's fingerprints by split."""
    told = {"schema": SCHEMA, "config": defining(config), "data": dict(data)}
    return hashlib.sha256(json.dumps(told, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def defining(node: Any, path: str = "") -> Any:
    """A config without what does not define the experiment; folders of other runs become their identities."""
    if isinstance(node, Mapping):
        kept = {}
        for key, value in node.items():
            name = f"{path}.{key}" if path else str(key)
            if name in EXECUTION or key == "root":
                continue
            if key in RUNS and isinstance(value, str):
                value = identity_of(Path(value).expanduser())
            kept[str(key)] = defining(value, name)
        return kept
    if isinstance(node, list | tuple):
        return [defining(value, path) for value in node]
    return node


def execution(key: str) -> bool:
    """Whether a dotted key may change when a run is resumed."""
    parts = key.split(".")
    return any(".".join(parts[: i + 1]) in EXECUTION for i in range(len(parts))) or parts[-1] == "root"


def identity_of(folder: Path) -> str:
    """The identity of the run in a folder. FileNotFoundError where there is none."""
    if (found := Run(folder).identity) is None:
        raise FileNotFoundError(f"{folder} is no run's folder: it has no identity.json")
    return found
