"""A sweep's place, runs/.sweep/<when>: fixed once, when it starts, for all of its jobs wherever they run."""

import os
import time
from pathlib import Path
from typing import Any

JOB = "ZOO_JOB"  # set for a job that is a process of its own: where its record goes


class Place:
    """Hydra's callback that gives a multirun its folder; `Place.now` is the one of this process, None before it."""

    now: Path | None = None
    began = 0.0

    def on_multirun_start(self, config: Any, **kwargs: Any) -> None:
        """Write the place into the config, and among the words that the jobs' configs are composed from."""
        Place.began = time.time()
        stamp = time.strftime("%Y-%m-%d_%H-%M-%S", time.localtime(Place.began))
        if "runs" in config and not config.get("dry_run"):
            Path(config.runs).expanduser().mkdir(
                parents=True, exist_ok=True
            )  # a search has its storage there
        Place.now = (Path(config.hydra.sweep.dir) / f"{stamp}-{os.getpid()}").expanduser().absolute()
        quoted = str(Place.now).replace("\\", "\\\\").replace("'", "\\'")
        config.hydra.sweep.dir = str(Place.now)
        config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{quoted}'")

    def __getattr__(self, name: str) -> Any:
        """At the other moments that Hydra tells of, nothing is done."""
        if not name.startswith("on_"):
            raise AttributeError(name)
        return lambda **kwargs: None


def job() -> tuple[Path, int] | None:
    """The place and the number of the job that this process does now; None where it is none of a sweep."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if told := os.environ.get(JOB):
        place, _, number = told.rpartition(":")
        return Path(place), int(number)
    config = HydraConfig.get()
    if config.mode != RunMode.MULTIRUN:
        return None
    return Path(config.runtime.output_dir), int(config.job.num)


def told() -> bool:
    """Print the summary of this process's sweep, if there was one; False where a job is not done."""
    from zoo.runs.sweep import GOOD, records, summary

    found = records(Place.now) if Place.now is not None else []
    if found:
        print(summary(found, time.time() - Place.began), flush=True)
    return all(record["outcome"] in GOOD for record in found)
