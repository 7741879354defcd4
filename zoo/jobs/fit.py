"""One training from its first step, or from a checkpoint, to its last: the parts of the house put together."""

import copy
import logging
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from zoo import chance
from zoo.config import build
from zoo.jobs.tell import banner
from zoo.loading import load_weights
from zoo.nn.checkpointing import checkpoint_blocks
from zoo.runs import Run
from zoo.training import devices
from zoo.training.batches import pieces
from zoo.training.checkpoints import Checkpoints, SafeIO
from zoo.training.ema import EMA
from zoo.training.finite import Finite
from zoo.training.learner import Learner, Untimed
from zoo.training.loaders import Loaders
from zoo.training.metrics_log import MetricsLog
from zoo.training.progress import Progress
from zoo.training.stopping import Stopping
from zoo.types import Prepared, can

# of Lightning's trainer: what a training here does not leave to a config, and what has a key of its own
FIXED: dict[str, Any] = {
    "check_val_every_n_epoch": None,
    "num_sanity_val_steps": 0,
    "use_distributed_sampler": False,
    "enable_model_summary": False,
}
ELSEWHERE = ("callbacks", "logger", "plugins", "default_root_dir")


def refuse(config: Mapping[str, Any]) -> None:
    """Raise ValueError for what a look at the config shows to be impossible."""
    trainer = config["trainer"]
    for key in ("max_steps", "accumulate_grad_batches", "val_check_interval", "log_every_n_steps"):
        if not isinstance(trainer[key], int) or trainer[key] < 1:
            raise ValueError(f"trainer.{key}={trainer[key]}: it takes a whole number, 1 or more")
    if taken := [key for key in trainer if key in (*FIXED, *ELSEWHERE)]:
        raise ValueError(f"trainer.{taken[0]}: train.py sets it itself (callbacks= and logger= add your own)")
    for key in ("checkpoint_every", "keep", "threads"):
        if config[key] is not None and config[key] < 1:
            raise ValueError(f"{key}={config[key]}: it takes a whole number, 1 or more, or null")
    averages(config["ema"])
    devices.check(config)
    pieces(config["batch_size"], trainer["accumulate_grad_batches"], devices.count(config))
    if trainer["accelerator"] in ("gpu", "cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"trainer.accelerator={trainer['accelerator']}: there is no GPU here; try trainer=cpu"
        )
    if str(trainer["precision"]).startswith("16") and not torch.cuda.is_available():
        raise ValueError(f"trainer.precision={trainer['precision']} needs a GPU; try bf16-mixed or 32-true")
    if config["data_device"] != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"data_device={config['data_device']}: there is no GPU here; try data_device=cpu")
    optimizer = config["optimizer"]
    if sharded(config) and optimizer["_target_"].endswith(".SGD") and optimizer.get("fused"):
        raise ValueError("optimizer.fused=true: torch's fused SGD takes no shards; set optimizer.fused=false")


def sharded(config: Mapping[str, Any]) -> bool:
    """Whether a config trains in shards, trainer=fsdp."""
    strategy = config["trainer"]["strategy"]
    return isinstance(strategy, Mapping) and strategy["_target_"].endswith(".Shards")


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


def room(model: nn.Module, run: Run, keep: int | None) -> None:
    """Raise OSError where the disk has no room for the checkpoints: weights and moments, `keep` and two more."""
    needed = 3 * sum(v.numel() * v.element_size() for v in model.state_dict().values()) * ((keep or 1) + 2)
    free = shutil.disk_usage(run.folder).free
    if free < needed:
        raise OSError(
            f"{run.folder}: its checkpoints need {needed / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free; "
            "make room, lower keep, or name another place by runs=..."
        )


def fit(
    config: Mapping[str, Any],
    model: nn.Module,
    data: Loaders,
    run: Run,
    latest: Path | None,
    loggers: Sequence[Any],
    stored: Mapping[str, Any],
) -> tuple[int, torch.device]:
    """Train to the last step, from the beginning or from a checkpoint; returns the steps done, and the device."""
    quiet()
    node = dict(config["trainer"])
    if sharded(config):
        model = copy.deepcopy(model)  # whole it remains, for what is measured after the training
    elif node["strategy"] == "auto" and devices.started():
        node["strategy"] = DDPStrategy(find_unused_parameters=True)
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
        *averages(config["ema"]),
        stopping,
        Finite(),
        *([Progress()] if node.pop("enable_progress_bar") else []),
        *(
            build(callback, f"callbacks.{name}", **stored)
            for name, callback in (config["callbacks"] or {}).items()
        ),
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
    profiler = node.pop("profiler", None) or Untimed()
    node.pop("timeout", None)
    plugins = [SafeIO(), *([TorchElasticEnvironment()] if devices.started() else [])]
    trainer = build({**node, "_partial_": True}, "trainer", **stored)(
        callbacks=callbacks,
        logger=[MetricsLog(run.metrics_path), *loggers],
        plugins=plugins,
        profiler=profiler,
        default_root_dir=run.folder,
        enable_progress_bar=False,
        **FIXED,
    )
    banner(config, model, data, run, latest, trainer)
    with stopping:
        try:
            trainer.fit(learner, datamodule=data, ckpt_path=latest)
        except RuntimeError as error:
            if not devices.lost(error):
                raise
            raise ConnectionError(
                "another rank is gone, or does not answer; its own error says more"
            ) from error
    devices.leave()
    return trainer.global_step, trainer.strategy.root_device


def averages(ema: Any) -> list[EMA]:
    """The average of weights that a config asks for: a decay, or {decay, warm_up}; ValueError for anything else."""
    if ema is None:
        return []
    asked = dict(ema) if isinstance(ema, Mapping) else {"decay": ema}
    number = isinstance(asked.get("decay"), int | float) and not isinstance(asked["decay"], bool)
    if (
        not number
        or not {"decay", "warm_up"} >= set(asked)
        or not isinstance(asked.get("warm_up", False), bool)
    ):
        raise ValueError(f"ema={ema}: it takes a decay, as 0.999, or {{decay: 0.9999, warm_up: true}}")
    return [EMA(**asked)]


def quiet() -> None:
    """Silence what Lightning says of its own, which the banner says or which does not hold here."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*LeafSpec.*",
        ".*anonymous setting.*",
        ".*logging interval.*",
        ".*in eval mode at the start of training.*",
        ".*`srun` command is available.*",
        ".*functools.lru_cache.*",  # which a compiled loss looks through
    ):
        warnings.filterwarnings("ignore", message=message)
