"""A training in miniature, with everything that could break its repeatability: dropout, noise in the loss,
chance in the data, a buffer that counts, an average of the weights, clipping, a schedule, validations."""

import csv
import logging
import multiprocessing.util
import os
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn

from zoo.training.checkpoint_files import load, newest
from zoo.training.checkpoints import Checkpoints, SafeIO
from zoo.training.ema import EMA
from zoo.training.finite import Finite
from zoo.training.learner import Learner
from zoo.training.loaders import Loaders
from zoo.training.metrics_log import MetricsLog
from zoo.training.stopping import Stopping

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Noisy(nn.Module):
    """A denoising autoencoder of 6 numbers, with dropout, a buffer, and a mean of errors that moves once a step,
    as an EMA codebook; at batch `bad_at` its loss is nan."""

    def __init__(self, width: int = 16, bad_at: int | None = None) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Dropout(0.2), nn.Linear(width, 6))
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("moved", torch.zeros(()))
        self.gathered, self.done = None, 0
        self.bad_at = bad_at

    def at(self, step: int) -> None:
        if step != self.done and self.gathered is not None:
            self.moved.lerp_(self.gathered, 0.5)
            self.gathered = None
        self.done = step

    def loss(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        if self.training:
            self.calls += 1
        error = (self.net(x + 0.1 * torch.randn_like(x)) - x).square().mean()
        if self.training:
            self.gathered = error.detach() + (0 if self.gathered is None else self.gathered)
        decay = sum(w.square().sum() for w in self.parameters()) * 1e-3
        if self.bad_at is not None and self.calls == self.bad_at:
            decay = decay * float("nan")
        return {"loss": error + decay, "error": error, "decay": decay}


class Points:
    """45 or 20 points of 6 numbers, blurred anew each time they are seen."""

    def __init__(self, split: str) -> None:
        if split == "test":
            raise LookupError("no test split")
        size = {"train": 45, "val": 20}[split]
        self.x = torch.randn(size, 6, generator=torch.Generator().manual_seed(size))

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, indices: Tensor) -> dict[str, Tensor]:
        x = self.x[indices]
        return {"x": x + 0.01 * torch.randn_like(x)}


def train(
    folder: Path,
    *,
    steps: int = 20,
    every: int | None = 3,
    accumulate: int = 1,
    workers: int = 0,
    ema: bool = True,
    val_every: int | float = 4,
    epochs: int | None = None,
    keep: int | None = 2,
    process_seed: int = 0,
    width: int = 16,
    bad_at: int | None = None,
    log_every: int = 2,
    learning_rate: float = 1e-2,
    callbacks: tuple[pl.Callback, ...] = (),
    checkpoint: Path | None = None,
    trainer_options: dict[str, Any] | None = None,
) -> pl.Trainer:
    """Start, or go on from the newest good checkpoint; an epoch is 7 steps of 6 examples."""
    torch.manual_seed(0)
    model = Noisy(width, bad_at)
    for seed in (torch.manual_seed, np.random.seed, random.seed):  # which no run may depend on
        seed(process_seed)
    learner = Learner(
        model,
        optimizer=partial(torch.optim.AdamW, lr=learning_rate),
        schedule=lambda step, steps: 1 - 0.5 * step / steps,
        seed=1,
        steps=steps,
        log_every=log_every,
    )
    stopping = Stopping("go on with: again")
    own = [stopping, Finite(), *([EMA(0.9)] if ema else []), *callbacks]
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps if epochs is None else -1,
        max_epochs=epochs,
        accumulate_grad_batches=accumulate,
        val_check_interval=val_every,
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
        callbacks=[*own, Checkpoints(folder, every=every, keep=keep)],
        plugins=[SafeIO()],
        logger=[MetricsLog(folder.parent / "metrics.csv")],
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"log_every_n_steps": 1, **(trainer_options or {})},
    )
    loaders = Loaders(Points, {}, batch_size=6, seed=1, num_workers=workers, accumulate=accumulate)
    start = checkpoint or newest(folder)[0]
    with stopping:
        trainer.fit(learner, datamodule=loaders, ckpt_path=start)
    return trainer


def final(folder: Path) -> dict[str, Any]:
    """The last checkpoint of a run, and its metrics: all that a resumed run has to reproduce."""
    path, _ = newest(folder)
    return {**load(path), "metrics": metrics(folder), "best": load(folder / "best.ckpt")["state_dict"]}


def metrics(folder: Path) -> list[tuple[str, ...]]:
    """The lines of metrics.csv, but for those that measure time."""
    with open(folder.parent / "metrics.csv") as file:
        return [tuple(line) for line in csv.reader(file) if "per_second" not in line[1]]


def difference(a: Any, b: Any, where: str = "") -> str | None:
    """Where two checkpoints differ in a single bit, or None; the length of the metrics is left out."""
    if type(a) is not type(b):
        return f"{where}: {type(a)} {type(b)}"
    if isinstance(a, Tensor):
        return None if torch.equal(a, b) else where
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return f"{where}: {a.keys() ^ b.keys()}"
        return next(
            (d for k in a if k != "metrics_size" and (d := difference(a[k], b[k], f"{where}.{k}"))), None
        )
    if isinstance(a, list | tuple):
        if len(a) != len(b):
            return f"{where}: {len(a)} against {len(b)}: {[x for x in b if x not in a][:3]}"
        return next(
            (d for i, (x, y) in enumerate(zip(a, b)) if (d := difference(x, y, f"{where}[{i}]"))), None
        )
    return None if a == b else f"{where}: {a} {b}"


def forked(work: Callable[[], Any]) -> int:
    """Do it in a child of this warm process; its pid. Exit codes are those of a script."""
    pid = os.fork()
    if pid:
        return pid
    # os.fork leaves it out: tensors would be passed to workers through the parent
    multiprocessing.util._run_after_forkers()
    code = 1
    try:
        work()
        code = 0
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def ended(pid: int, seconds: float = 60) -> int:
    """Wait for a child; its exit code, or minus the signal that killed it."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    raise TimeoutError(f"the child did not end within {seconds} s")
