"""What a command asks of a run: opened, checked before anything is measured, and written into its folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch import nn

from zoo.config import build
from zoo.config.build import fits
from zoo.evaluation import options_in_force
from zoo.evaluation.length import check as check_lengths
from zoo.evaluation.speed import check as check_speed
from zoo.evaluation.stride import check as check_stride
from zoo.jobs import data as jobs_data
from zoo.jobs import quality
from zoo.jobs.features import Places
from zoo.jobs.measure import SPLITS, found
from zoo.jobs.samples import show_steps
from zoo.loading import device_of, restored
from zoo.runs import Run
from zoo.runs.reproduction import numbers_of
from zoo.training.loaders import Loaders
from zoo.types import Density, Sampler, can


def opened(asked: Mapping[str, Any]) -> tuple[Run, dict[str, Any], nn.Module, Loaders, dict[str, Any]]:
    """The run that a command asks for: itself, its config, model and loaders, and which weights the model has.

    ValueError where what it asks for cannot be had, or is of other data than the run's.
    """
    if asked["threads"] is not None:
        if asked["threads"] < 1:
            raise ValueError(f"threads={asked['threads']}: it takes a whole number, 1 or more, or null")
        torch.set_num_threads(asked["threads"])
    run = Run.open(asked["run"])
    config = jobs_data.relocated(run.config, asked["data_dir"])
    model, weights = restored(run, asked["weights"], device_of(asked["device"]), asked["allow"])
    data = jobs_data.loaders(config, stored=True, allow=asked["allow"])
    known = run.results.get("data") or {}
    for split in found(data, asked.get("splits", ())):
        if known.get(split, data.fingerprints[split]) != data.fingerprints[split]:
            raise ValueError(
                f"{run.folder}: its {split} data have changed since it was trained, and numbers of both would stand "
                "side by side; data_dir= names a folder that has the old ones"
            )
    check(model, {"splits": (), "log_prob": {}, **asked}, data, places(asked, run))
    show_steps(model)
    return run, config, model, data, weights


def places(asked: Mapping[str, Any], run: Run) -> Places:
    """Where a command finds networks for features: its data, and the runs beside the one that it is about."""
    return Places(asked["data_dir"], run.folder.parent)


def loggers(
    nodes: Mapping[str, Any] | None, run: Run, config: dict[str, Any], job_type: str = "train", **stored: Any
) -> list[Any]:
    """The loggers that a config names, besides the run's own folder; whoever asked for them finishes them.

    stored is zoo.config.build's: whether the names come from a run's folder, and which packages they may name.
    """
    group = Path(config["runs"]).name
    about = {"name": run.folder.name, "config": config, "group": group, "job_type": job_type}
    return [
        build(node, f"logger.{name}", **stored)(run.folder, run.identity, **about)
        for name, node in (nodes or {}).items()
    ]


def check(model: nn.Module, asked: Mapping[str, Any], loaders: Loaders, places: Places | None = None) -> None:
    """Raise ValueError for what a config's `evaluate` asks for in vain: before a training, not after it."""
    for split in asked["splits"]:
        if split not in SPLITS:
            raise ValueError(f"splits={split}: there are {', '.join(SPLITS)}")
    if asked["weights"] not in ("best", "last"):
        raise ValueError(f"weights={asked['weights']}: best or last")
    if (some := asked.get("examples")) is not None and some < 1:
        raise ValueError(f"examples={some}: 1 or more of each split, or null for all of them")
    wanted = asked.get("lengths") or []
    if not isinstance(wanted, list) or not all(isinstance(m, int) and m >= 1 for m in wanted):
        raise ValueError(f"lengths={wanted}: multiples of the training length are whole numbers, at least 1")
    for split in found(loaders, asked["splits"]) if wanted else ():
        check_lengths(model, loaders.dataset(split), wanted, loaders.facts, split)
    if (stride := asked.get("stride")) is not None:
        for split in found(loaders, asked["splits"]):
            check_stride(model, loaders.dataset(split), stride, loaders.facts, split, **asked["log_prob"])
    if asked.get("speed"):
        check_speed(model, loaders.facts["shape"])
    if asked["n"] < 0:
        raise ValueError(f"n={asked['n']}: 0 or more samples can be drawn")
    quality.check(model, asked, loaders, places)
    for contract, name in ((Density, "log_prob"), (Sampler, "sample")):
        if can(model, contract):
            hints = get_type_hints(getattr(model, name))
            for option in options_in_force(getattr(model, name), asked[name], name):
                if option in asked[name] and not fits(value := asked[name][option], hints.get(option, Any)):
                    raise ValueError(
                        f"{name}.{option}={value!r}: the model's {name} takes {hints[option]} there"
                    )


def add(run: Run, numbers: Sequence[Mapping[str, Any]], curves: Sequence[Mapping[str, Any]] = ()) -> None:
    """Write numbers into results.json: one of the same name, split, protocol and weights is replaced in its
    place, for the first is the run's headline; so for curves.

    What a number was compared with, the one in its place is compared with too, unless it says something else.
    """

    def same(record: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(str(record.get(key)) for key in ("name", "split", "protocol", "weights"))

    results = run.results
    results["numbers"] = numbers_of(results)
    papers = {same(n): n["published"] for n in results["numbers"] if n.get("published")}
    numbers = [{"published": papers[same(n)], **n} if same(n) in papers else n for n in numbers]
    for key, records in (("numbers", numbers), ("curves", curves)):
        whole = {same(record): record for record in [*results.get(key, []), *records]}
        if whole or key == "numbers":
            results[key] = [*whole.values()]
    run.write_results(results)


def show(numbers: Sequence[Mapping[str, Any]], logs: Sequence[Any], step: int) -> None:
    """Numbers in the loggers, as test/nats."""
    for log in logs:
        shown = {f"{n['split']}/{n['name']}": n["value"] for n in numbers if n["value"] is not None}
        log.log_metrics(shown, step)
