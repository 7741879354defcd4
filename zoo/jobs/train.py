"""Train what a config describes: find out whether it was done already, do it or go on with it, measure it."""

import logging
import resource
import shutil
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo import chance
from zoo.config import build
from zoo.jobs import evaluate
from zoo.jobs.data import loaders as make_loaders
from zoo.loading import device_of, load_weights
from zoo.nn.checkpointing import checkpoint_blocks
from zoo.runs import DIGITS, Run, environment, find, identity, version
from zoo.training import checkpoint_files as files
from zoo.training.checkpoints import Checkpoints, SafeIO
from zoo.training.ema import EMA
from zoo.training.finite import Finite
from zoo.training.learner import Learner
from zoo.training.loaders import Loaders
from zoo.training.metrics_log import MetricsLog
from zoo.training.progress import Progress
from zoo.training.stopping import Stopping
from zoo.types import Prepared, can


def train(
    config: dict[str, Any], name: str, *, folder: Path | None = None, allow: Sequence[str] | None = None
) -> Run:
    """Train, evaluate and write down one run; returns it.

    config   whole, resolved and plain
    name     of the run's folder, before the identity's digits
    folder   of the run, where it is known (resume); else it follows from the identity
    allow    packages that the config may name where it was stored by a run; None: the user's own config
    A finished run is told and not repeated, an unfinished one goes on. Raises ValueError for what cannot be trained.
    """
    refuse(config)
    if config["threads"]:
        torch.set_num_threads(config["threads"])
    stored: dict[str, Any] = {"stored": allow is not None, "allow": allow or ()}
    data = make_loaders(config, **stored)
    data.setup("fit")
    for split in ("val", "test"):
        data.has(split)
    whole = identity(config, data.fingerprints)
    run = (
        Run(folder)
        if folder
        else find(config["runs"], whole) or Run(Path(config["runs"]) / f"{name}-{whole[:DIGITS]}")
    )
    if folder and run.identity != whole:
        raise ValueError(
            f"{folder}: its data or another run that it builds on have changed; init={folder} starts a new run"
        )
    if run.finished and config["rerun"]:
        shutil.rmtree(run.checkpoints)
        shutil.rmtree(run.samples)
        run.metrics_path.unlink(missing_ok=True)
        run.results_path.unlink()
    if run.finished:
        return finished(run, config, data, stored)
    threads = run.environment.get("threads", torch.get_num_threads())
    run.create(config, whole, environment(threads=torch.get_num_threads(), device=device_name(config)))
    latest, skipped = files.newest(run.checkpoints)
    for path, reason in skipped:
        print(f"skipped {path}: {reason}", file=sys.stderr)
    if latest and threads != torch.get_num_threads():
        print(
            f"it began with {threads} threads: its last bits may differ from the unbroken run's",
            file=sys.stderr,
        )
    model = made(config, data, fresh=latest is None, **stored)
    room(model, run, config["keep"])
    evaluate.check(model, config["evaluate"])
    before = run.results.get("seconds", 0.0)
    results = {
        "status": "running",
        "identity": whole,
        "name": name,
        "version": version(),
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "data": dict(data.fingerprints),
        "config": config,
        "numbers": [],
        "seconds": before,
    }
    run.write_results(results)
    started = time.monotonic()
    loggers = evaluate.loggers(config["logger"], run, config, **stored)
    failed = True
    try:
        device = fit(config, model, data, run, latest, loggers, stored)
        results |= {"steps": config["trainer"]["max_steps"], "peak_memory_mb": peak_memory(device)}
        results["seconds"] = round(before + time.monotonic() - started, 1)
        run.write_results(results)
        measured(config, model.to(device), data, run, loggers)
        run.write_results(run.results | {"status": "finished"})
        failed = False
    except BaseException as error:
        stop = isinstance(error, SystemExit | KeyboardInterrupt)
        reason = {} if stop else {"reason": f"{type(error).__name__}: {error}"}
        seconds = round(before + time.monotonic() - started, 1)
        run.write_results(
            run.results | {"status": "stopped" if stop else "failed", "seconds": seconds, **reason}
        )
        raise
    finally:
        for logger in loggers:
            logger.finish(failed=failed)
    tell(run)
    return run


def refuse(config: Mapping[str, Any]) -> None:
    """Raise ValueError for what a look at the config shows to be impossible."""
    trainer = config["trainer"]
    for key in ("max_steps", "accumulate_grad_batches", "val_check_interval", "log_every_n_steps"):
        if not isinstance(trainer[key], int) or trainer[key] < 1:
            raise ValueError(f"trainer.{key}={trainer[key]}: it takes a whole number, 1 or more")
    if trainer["accelerator"] in ("gpu", "cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"trainer.accelerator={trainer['accelerator']}: there is no GPU here; try trainer=cpu"
        )
    if str(trainer["precision"]).startswith("16") and not torch.cuda.is_available():
        raise ValueError(f"trainer.precision={trainer['precision']} needs a GPU; try bf16-mixed or 32-true")
    if config["data_device"] != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"data_device={config['data_device']}: there is no GPU here; try data_device=cpu")


def room(model: nn.Module, run: Run, keep: int | None) -> None:
    """Raise OSError where the disk has no room for the checkpoints: weights and moments, `keep` and two more."""
    needed = 3 * sum(v.numel() * v.element_size() for v in model.state_dict().values()) * ((keep or 1) + 2)
    free = shutil.disk_usage(run.folder).free
    if free < needed:
        raise OSError(
            f"{run.folder}: its checkpoints need {needed / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free; "
            "make room, lower keep, or name another place by runs=..."
        )


def made(config: Mapping[str, Any], data: Loaders, *, fresh: bool, **stored: Any) -> nn.Module:
    """The model, with its first weights (or those of the run `init`), measured parts and recomputed blocks."""
    chance.at("init", config["seed"])
    model = build(config["model"], "model", **stored)
    if fresh and config["init"]:
        load_weights(model, Run.open(config["init"]))
    elif fresh and can(model, Prepared):
        model.prepare(data.measuring())
    checkpoint_blocks(model, config["gradient_checkpointing"])
    return model


def fit(
    config: Mapping[str, Any],
    model: nn.Module,
    data: Loaders,
    run: Run,
    latest: Path | None,
    loggers: Sequence[Any],
    stored: Mapping[str, Any],
) -> torch.device:
    """Train to the last step, from the beginning or from a checkpoint; returns the device that did it."""
    quiet()
    node = dict(config["trainer"])
    optimizer = dict(config["optimizer"])
    groups = optimizer.pop("groups", [])
    validated = data.has("val")
    learner = Learner(
        model,
        optimizer=build(optimizer, "optimizer", **stored),
        schedule=build(config["schedule"], "schedule", **stored),
        groups=groups,
        seed=config["seed"],
        steps=node["max_steps"],
        config=dict(config),
        log_every=node["log_every_n_steps"],
    )
    stopping = Stopping(f"stopped; to go on: train.py resume={run.folder}")
    callbacks = [
        *([EMA(config["ema"])] if config["ema"] is not None else []),
        stopping,
        Finite(),
        *([Progress()] if node.pop("enable_progress_bar") else []),
        *(build(callback, **stored) for callback in (config["callbacks"] or {}).values()),
        Checkpoints(
            run.checkpoints,
            every=config["checkpoint_every"],
            keep=config["keep"],
            monitor="val/loss" if validated else None,
        ),
    ]
    # Lightning counts micro-batches
    node["val_check_interval"] = (
        min(node["val_check_interval"], node["max_steps"]) * node["accumulate_grad_batches"]
    )
    if isinstance(node.get("limit_val_batches"), int):
        node["limit_val_batches"] *= node["accumulate_grad_batches"]
    if not validated:
        node["limit_val_batches"] = 0
    trainer = build({**node, "_partial_": True}, "trainer", **stored)(
        callbacks=callbacks,
        logger=[MetricsLog(run.metrics_path), *loggers],
        plugins=[SafeIO()],
        default_root_dir=run.folder,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    banner(config, model, data, run, latest, trainer)
    with stopping:
        trainer.fit(learner, datamodule=data, ckpt_path=latest)
    return trainer.strategy.root_device


def measured(
    config: Mapping[str, Any], model: nn.Module, data: Loaders, run: Run, loggers: Sequence[Any] = ()
) -> None:
    """What the config's `evaluate` asks for, of the trained weights on disk."""
    asked = config["evaluate"]
    weights = load_weights(model, run, asked["weights"])
    model.eval()
    numbers = evaluate.measure(
        model,
        data,
        splits=asked["splits"],
        log_prob=asked["log_prob"],
        weights=weights,
        seed=config["seed"],
        examples=asked["examples"],
    )
    evaluate.add(run, numbers)
    evaluate.show(numbers, loggers, weights["step"])
    evaluate.sample(
        model,
        data,
        run,
        "final",
        n=asked["n"],
        options=asked["sample"],
        seed=config["seed"],
        loggers=loggers,
        step=weights["step"],
    )


def finished(run: Run, config: dict[str, Any], data: Loaders, stored: Mapping[str, Any]) -> Run:
    """Tell what a finished run found; what is asked of it anew is measured, with nothing trained."""
    print(f"{run.folder} is finished already (rerun=true repeats it)")
    if run.results["config"]["evaluate"] != config["evaluate"]:
        device = device_of("cpu" if config["trainer"]["accelerator"] == "cpu" else "auto")
        measured(config, build(config["model"], "model", **stored).to(device), data, run)
        run.write_results(run.results | {"config": config})
    tell(run)
    return run


def banner(
    config: Mapping[str, Any], model: nn.Module, data: Loaders, run: Run, latest: Path | None, trainer: Any
) -> None:
    """What is trained, on what, for how long, and where it goes."""
    if not trainer.is_global_zero:
        return
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    accumulate, world = trainer.accumulate_grad_batches, trainer.world_size
    each = config["batch_size"] // (accumulate * world)
    position = getattr(getattr(model, "backbone", None), "position_name", None)
    facts = data.facts
    print(
        f"model     {type(model).__name__}, {count:,} parameters"
        + (f", position {position}" if position else "")
    )
    print(
        f"data      {facts['name']}: {len(data.dataset('train')):,} x {tuple(facts['shape'])}, {facts['levels']} levels"
    )
    print(
        f"batch     {config['batch_size']} = {each} per device x {world} devices x {accumulate} accumulated"
    )
    print(
        f"steps     {trainer.max_steps:,} on {trainer.strategy.root_device}, {torch.get_num_threads()} threads"
    )
    print(f"run       {run.folder}" + (f", goes on from {latest.name}" if latest else ""), flush=True)


def tell(run: Run) -> None:
    """The end of a run: its numbers, its samples, what it cost."""
    results = run.results
    print(evaluate.told(results["numbers"]))
    seconds, memory = results.get("seconds", 0.0), results.get("peak_memory_mb")
    print(f"{results.get('steps', 0):,} steps in {seconds:,.0f} s, peak memory {memory} MB")
    print(f"samples and results: {run.folder}", flush=True)


def device_name(config: Mapping[str, Any]) -> str:
    """The name of what a config trains on."""
    cpu = config["trainer"]["accelerator"] == "cpu" or not torch.cuda.is_available()
    return "cpu" if cpu else torch.cuda.get_device_name()


def peak_memory(device: torch.device) -> int:
    """The most memory that was in use, in MB: of the GPU, or of this process."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e6)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(most / 1e6 if sys.platform == "darwin" else most / 1e3)


def quiet() -> None:
    """Silence what Lightning says of its own, which the banner says or which does not hold here."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*LeafSpec.*",
        ".*anonymous setting.*",
        ".*logging interval.*",
    ):
        warnings.filterwarnings("ignore", message=message)
