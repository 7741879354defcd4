"""Train what a config describes: find out whether it was done already, do it or go on with it, measure it."""

import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.config import build
from zoo.config.build import admit
from zoo.jobs import budget, evaluate, known, ranks, reconstruct, samples
from zoo.jobs.data import loaders as make_loaders
from zoo.jobs.fit import fit, made, refuse, room
from zoo.jobs.latents import encode_once
from zoo.jobs.measure import answered
from zoo.jobs.tell import device_name, peak_memory, tell
from zoo.loading import adopt, at_home, device_of, load_weights
from zoo.runs import Run, environment, identity, lock, version
from zoo.runs.reproduction import compared
from zoo.training import checkpoint_files as files
from zoo.training import devices
from zoo.training.loaders import Loaders
from zoo.types import Sampler, can


def train(
    config: dict[str, Any],
    name: str,
    *,
    folder: Path | None = None,
    allow: Sequence[str] | None = None,
    choices: Mapping[str, str] | None = None,
    wait: bool = True,
) -> Run:
    """Train, evaluate and write down one run; returns it.

    config   whole, resolved and plain
    name     of the run's folder, before the identity's digits
    folder   of the run, where it is known (resume); else it follows from the identity
    allow    packages that the config may name where it was stored by a run; None: the user's own config
    choices  the words that chose the config's blocks, by which tables call them
    wait     for another process that trains the same run; else zoo.runs.lock.Busy is raised
    A finished run is told and not repeated, an unfinished one goes on. Raises ValueError for what cannot be trained.
    """
    if allow is not None:
        admit(config, allow=allow)
    refuse(config)
    if devices.started() and not wait:
        raise ValueError("a sweep starts the processes of its jobs itself: leave torchrun or srun away")
    if config["threads"]:
        torch.set_num_threads(config["threads"])
    stored: dict[str, Any] = {"stored": allow is not None, "allow": allow or ()}
    data = make_loaders(config, **stored)
    for split in ("train", "val", "test"):
        data.has(split)
    if folder is None:
        known.remember(config, data.fingerprints)
        config = budget.within(config, data, stored)
    run, whole = identified(config, name, folder, data)
    if devices.rank():
        return ranks.follow(config, run, data, stored)
    with lock.held(run.folder.parent, whole, wait=wait):
        run, _ = identified(config, name, folder, data)  # again: another process may have made it meanwhile
        return trained(config, name, run, whole, data, stored, choices)


def trained(
    config: dict[str, Any],
    name: str,
    run: Run,
    whole: str,
    data: Loaders,
    stored: Mapping[str, Any],
    choices: Mapping[str, str] | None = None,
) -> Run:
    """Do what is missing of a run that no other process trains now."""
    if run.finished and config["rerun"]:
        forget(run)
    if run.finished:
        return finished(run, config, data, stored)
    if devices.count(config) > 1 and not devices.started():
        return ranks.start(config, name, run, whole, stored, choices)
    latest = started(run, config, whole)
    devices.join(config)
    model = made(at_home(config, run), data, fresh=latest is None, **stored)
    room(model, run, config["keep"])
    evaluate.check(model, config["evaluate"], data, evaluate.places(config, run))
    encode_once(model, data, config["trainer"]["max_steps"] * config["batch_size"], device_for(config))
    before = run.results.get("seconds", 0.0)
    results = {
        "status": "running",
        "identity": whole,
        "name": name,
        "version": version(),
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "data": dict(data.fingerprints),
        "config": config,
        "choices": dict(choices or run.results.get("choices") or {}),
        "numbers": [],
        "seconds": before,
    }
    run.write_results(results)
    begun = time.monotonic()
    loggers = evaluate.loggers(config["logger"], run, config, **stored)
    failed = True
    try:
        steps, device = fit(config, model, data, run, latest, loggers, stored)
        results |= {"steps": steps, "peak_memory_mb": peak_memory(device)}
        results["seconds"] = round(before + time.monotonic() - begun, 1)
        run.write_results(results)
        measured(config, model.to(device), data, run, loggers)
        run.write_results(run.results | {"status": "finished"})
        failed = False
    except BaseException as error:
        stop = isinstance(error, SystemExit | KeyboardInterrupt)
        end = (
            {"status": "stopped"}
            if stop
            else {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
        )
        run.write_results(run.results | end | {"seconds": round(before + time.monotonic() - begun, 1)})
        raise
    finally:
        for logger in loggers:
            logger.finish(failed=failed)
    tell(run)
    return run


def identified(config: Mapping[str, Any], name: str, folder: Path | None, data: Loaders) -> tuple[Run, str]:
    """The run of a config, found by its whole identity or yet to be made, and that identity.

    ValueError where a resumed run's data, or a run that it builds on, are not what they were.
    """
    own = config if folder is None else at_home(config, Run(folder))
    whole = identity(own, data.fingerprints)
    if folder is None:
        return known.placed(config["runs"], name, whole), whole
    if Run(folder).identity != whole:
        raise ValueError(
            f"{folder}: its data or another run that it builds on have changed; init={folder} starts a new run"
        )
    return Run(folder), whole


def forget(run: Run) -> None:
    """Remove what a run made, for it to be made anew."""
    run.results_path.unlink()  # first: without it the run is not finished, whatever is left of the rest
    for folder in (run.checkpoints, run.samples):
        shutil.rmtree(folder, ignore_errors=True)
    run.metrics_path.unlink(missing_ok=True)


def started(run: Run, config: dict[str, Any], whole: str) -> Path | None:
    """Make a run's folder, or open it again: the checkpoint to go on from, None at the beginning."""
    now = torch.get_num_threads()
    threads = run.environment.get("threads", now)
    run.create(config, whole, environment(threads=now, device=device_name(config)))
    adopt(at_home(config, run), run)
    latest, skipped = files.newest(run.checkpoints)
    for path, reason in skipped:
        print(f"skipped {path}: {reason}", file=sys.stderr)
    if latest and threads != now:
        print(
            f"it began with {threads} threads: its last bits may differ from the unbroken run's",
            file=sys.stderr,
        )
    return latest


def measured(
    config: Mapping[str, Any], model: nn.Module, data: Loaders, run: Run, loggers: Sequence[Any] = ()
) -> None:
    """What the config's `evaluate` asks for, of the trained weights on disk, beside what its `experiment` names."""
    asked = config["evaluate"]
    weights = load_weights(model, run, asked["weights"])
    model.eval()
    samples.show_steps(model)
    numbers, curves = answered(
        model, data, asked, weights, seed=config["seed"], places=evaluate.places(config, run)
    )
    evaluate.add(run, compared(numbers, config.get("experiment")), curves)
    evaluate.show(numbers, loggers, weights["step"])
    many = {"n": asked["n"], "seed": config["seed"], "loggers": loggers, "step": weights["step"]}
    if can(model, Sampler):
        samples.sample(model, data, run, "final", options=asked["sample"], **many)
    elif asked["n"] and reconstruct.shows(model, data.facts):
        reconstruct.reconstruct(model, data, run, "final", **many)


def finished(run: Run, config: dict[str, Any], data: Loaders, stored: Mapping[str, Any]) -> Run:
    """Tell what a finished run found; what is asked of it anew is measured, with nothing trained."""
    print(f"{run.folder} is finished already (rerun=true repeats it)")
    if run.results["config"]["evaluate"] != config["evaluate"]:
        model = build(at_home(config, run)["model"], "model", **stored).to(device_for(config))
        evaluate.check(model, config["evaluate"], data, evaluate.places(config, run))
        measured(config, model, data, run)
        run.write_results(run.results | {"config": config})
    tell(run)
    return run


def device_for(config: Mapping[str, Any]) -> torch.device:
    """The device that a config trains on, for what is computed before and after."""
    return device_of("cpu" if config["trainer"]["accelerator"] == "cpu" else "auto")
