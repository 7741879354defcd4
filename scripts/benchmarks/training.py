"""Three loops around one and the same model: plain PyTorch, an empty Lightning, and ours with all of its parts.

All read their batches from the same tensors. A step is the time between two calls of the model's loss, so that
each loop has all of its work in it, and none of its beginning and its end.
"""

import contextlib
import io
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from zoo.data.arrays import Arrays
from zoo.training.checkpoints import Checkpoints, SafeIO
from zoo.training.finite import Finite
from zoo.training.learner import Learner, Untimed
from zoo.training.loaders import Loaders
from zoo.training.metrics_log import MetricsLog
from zoo.training.progress import Progress
from zoo.training.stopping import Stopping

BATCH = 128
WARM = 50  # steps before the clock runs
ADAMW = partial(torch.optim.AdamW, lr=1e-3, fused=True)


class Terminal(io.StringIO):
    """Where the progress bar draws as if somebody looked; it counts."""

    drawn = 0

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.drawn += 1
        return len(text)


class Timed(nn.Module):
    """A model whose loss looks at the clock, at its first step that counts and at the last call."""

    def __init__(self, model: nn.Module, steps: int, batch_size: int = BATCH) -> None:
        super().__init__()
        self.model, self.steps, self.calls = model, steps, 0
        self.began = self.ended = 0.0

    def loss(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        if self.calls == WARM:
            self.began = time.process_time()
        if self.calls == WARM + self.steps:
            self.ended = time.process_time()
        self.calls += 1
        return self.model.loss(x)

    @property
    def per_step(self) -> float:
        """CPU seconds of a step."""
        return (self.ended - self.began) / self.steps


def plain(model: Callable[[], nn.Module], x: Tensor, steps: int) -> float:
    """CPU seconds of a step of a loop without anything."""
    timed = Timed(model(), steps)
    optimizer = ADAMW(timed.parameters())
    batches = gathered(x)
    for _ in range(WARM + steps + 1):
        loss = timed.loss(**next(batches))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return timed.per_step


class Empty(lightning.LightningModule):
    """The least that Lightning trains."""

    def __init__(self, timed: Timed) -> None:
        super().__init__()
        self.timed = timed

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.timed.loss(**batch)["loss"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return ADAMW(self.parameters())


def empty(model: Callable[[], nn.Module], x: Tensor, steps: int) -> float:
    """The same under Lightning, with all switched off."""
    timed = Timed(model(), steps)
    with silent():
        lightning.Trainer(
            accelerator="cpu",
            max_steps=WARM + steps + 1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(Empty(timed), Feed(x))
    return timed.per_step


def ours(
    model: Callable[[], nn.Module],
    x: Tensor,
    steps: int,
    *,
    drawn: list[int] | None = None,
    every: int = 1000,
) -> float:
    """The same in the learner, with everything that train.py has on."""
    timed = Timed(model(), steps)
    terminal = Terminal()
    train(timed, x, WARM + steps + 1, terminal, every=every)
    if drawn is not None:
        drawn.append(terminal.drawn)
    return timed.per_step


def train(model: nn.Module, x: Tensor, steps: int, terminal: Terminal, *, every: int = 1000) -> None:
    """Train as train.py does: with checkpoints, a CSV, a bar on a terminal, keyed chance, a look for nan."""
    levels = None if x.is_floating_point() else 256
    facts: dict[str, Any] = {"name": "benchmark", "shape": list(x.shape[1:]), "levels": levels}
    loaders = Loaders(partial(only_train, x), facts, batch_size=BATCH, seed=0)
    with tempfile.TemporaryDirectory() as folder, silent():
        stopping = Stopping("")
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_steps=steps,
            log_every_n_steps=50,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            callbacks=[
                stopping,
                Finite(),
                Progress(stream=terminal),
                Checkpoints(Path(folder) / "checkpoints", every=every, monitor=None),
            ],
            logger=[MetricsLog(Path(folder) / "metrics.csv")],
            plugins=[SafeIO()],
            profiler=Untimed(),
            default_root_dir=folder,
            use_distributed_sampler=False,
            enable_model_summary=False,
            enable_progress_bar=False,
        )
        with stopping:
            trainer.fit(Learner(model, optimizer=ADAMW, steps=steps), datamodule=loaders)


def only_train(x: Tensor, split: str) -> Arrays:
    """A source of one split."""
    if split != "train":
        raise LookupError(f"no {split} split")
    return Arrays(x)


class Feed:
    """Endless shuffled batches, one gather each."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        while True:
            for indices in torch.randperm(len(self.x)).split(BATCH):
                if len(indices) == BATCH:
                    yield {"x": self.x.index_select(0, indices)}


def gathered(x: Tensor) -> Iterator[dict[str, Tensor]]:
    return iter(Feed(x))


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Without what Lightning says of its own."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
