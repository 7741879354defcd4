"""The only LightningModule: it calls a model's loss, logs it at intervals and builds the optimizer.

A step is an optimizer step; a batch is what one device sees at once (accumulation makes several a step).
"""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.profilers import PassThroughProfiler
from torch import Tensor, nn

from zoo import chance
from zoo.training.batches import Once, Place
from zoo.training.means import Means
from zoo.training.optimizers import build
from zoo.training.sharding import shard
from zoo.types import Measured, Scheduled, Trainable, can


class Learner(LightningModule):
    """Trains whatever has a loss.

    optimizer   parameters -> torch optimizer, e.g. functools.partial(torch.optim.AdamW, lr=1e-3)
    schedule    (step, steps=...) -> factor of the learning rate, or None for a constant one
    groups      parameter groups by pattern, see optimizers.grouped
    steps       optimizer steps of the whole training, the schedule's horizon
    config      a plain dict, stored in checkpoints under "config"
    log_every   steps between two lines of train/..., which are means over the examples of those steps
    Chance is keyed to (seed, epoch, batch) before each batch, and on several devices dealt out as the batch is.
    Raises ValueError where the model has no loss, or its loss is not a dict of scalars with "loss".
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        optimizer: Callable[..., torch.optim.Optimizer],
        schedule: Callable[..., float] | None = None,
        groups: Sequence[Mapping[str, Any]] = (),
        seed: int = 0,
        steps: int | None = None,
        config: dict[str, Any] | None = None,
        log_every: int = 50,
    ) -> None:
        super().__init__()
        if not can(model, Trainable):
            raise ValueError(
                f"{type(model).__name__} has no method loss(x, y=None), which is what a model is trained by"
            )
        if log_every < 1:
            raise ValueError(f"log_every={log_every} must be at least 1")
        self.model = model
        self.optimizer, self.schedule, self.groups = optimizer, schedule, groups
        self.seed, self.steps, self.config, self.log_every = seed, steps, config or {}, log_every
        self.train_means, self.val_means = Means(), Means()
        self.last: Tensor | None = None  # the latest training loss, on the device
        self.scheduled, self.measured = can(model, Scheduled), can(model, Measured)
        self.tokens = 0  # per example, where x is a sequence of symbols
        self.chance: Any = chance.ALONE  # the context of the present batch
        self._sharded = False
        self._known: set[tuple[str, ...]] = set()
        self._since = time.monotonic()

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning notes the name of each hook, some 40 times a step, and torch would look for parameters in it
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def configure_model(self) -> None:
        """Shard the model, once, where the trainer's strategy has a mesh of devices to shard over."""
        mesh = getattr(self, "_device_mesh", None)
        if mesh is not None and not self._sharded:
            shard(self.model, mesh["data_parallel"])
            self._sharded = True

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = build(self.model, self.optimizer, self.groups)
        if self.schedule is None:
            return {"optimizer": optimizer}
        schedule, steps = self.schedule, self.steps or self.trainer.max_steps
        if steps < 1:
            raise ValueError(
                f"a schedule needs its horizon, trainer.max_steps={steps} has none; set trainer.max_steps"
            )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step, steps=steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        self._since = time.monotonic()

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        trainer = self.trainer
        place = [("train", self.seed, trainer.current_epoch, batch_idx)]
        rows = [len(batch["x"]) * trainer.world_size]
        self.chance = Place(place, rows, trainer.global_rank, trainer.world_size).chance()
        if self.scheduled:  # the first step, after a resume too
            self.model.at(trainer.global_step)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        with self.chance:
            terms = self._terms(batch)
        x = batch["x"]
        self.train_means.add(terms, len(x))
        self.tokens = x.shape[1] if x.dim() == 2 and not x.is_floating_point() else 0
        self.last = terms["loss"].detach()
        return terms["loss"]

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        with self.chance:  # what is computed again must not draw other numbers unnoticed
            super().backward(loss, *args, **kwargs)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
    ) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        # here, not at the end of the batch: callbacks save there, and a saved step must be whole and logged
        done = self.trainer.global_step + 1
        if self.scheduled:
            self.model.at(done)
        if done % self.log_every == 0 or done == self.trainer.max_steps:
            self._log_train(done, optimizer)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: Any = None
    ) -> None:
        precision = self.trainer.precision_plugin
        bf16 = type(precision) is MixedPrecision and precision.scaler is None
        if bf16 and gradient_clip_val and gradient_clip_algorithm != "value":
            # Lightning refuses to clip for fused optimizers here, though only fp16's scaler stands against it
            nn.utils.clip_grad_norm_(precision.main_params(optimizer), gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_validation_start(self) -> None:
        self._paused = time.monotonic()
        self.val_means.clear()
        self._statistics: dict[str, Tensor] = {}

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        n, trainer = len(batch["x"]), self.trainer
        sampler = getattr(trainer.val_dataloaders, "sampler", None)
        rows = sampler.rows(batch_idx) if isinstance(sampler, Once) else [n * trainer.world_size]
        places = [("val", self.seed, batch_idx + i) for i in range(len(rows))]
        with Place(places, rows, trainer.global_rank, trainer.world_size).chance():
            self.val_means.add(self._terms(batch), n)
            if self.measured:
                for name, value in self.model.statistics(**batch).items():
                    before = self._statistics.get(name)
                    self._statistics[name] = value if before is None else before + value

    def on_validation_epoch_end(self) -> None:
        means, _ = self.val_means.read(self._reduce)
        if self.measured:
            means |= self.model.summarize({name: self._reduce(s) for name, s in self._statistics.items()})
        metrics = {f"val/{name}": float(value) for name, value in means.items()}
        self.trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
        if not self.trainer.sanity_checking:
            self._write(metrics, self.trainer.global_step)

    def on_validation_end(self) -> None:
        self._since += time.monotonic() - self._paused  # training's throughput is not validation's

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"] = self.config
        checkpoint["train_means"] = self.train_means.state_dict(self._reduce)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.train_means.load_state_dict(checkpoint.get("train_means", {}), self.global_rank)

    def _terms(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        terms = self.model.loss(**batch)
        names = tuple(terms) if isinstance(terms, dict) else ()
        if names not in self._known:
            check_terms(terms, f"{type(self.model).__name__}.loss")
            self._known.add(names)
        return terms

    def _log_train(self, step: int, optimizer: Any) -> None:
        means, examples = self.train_means.read(self._reduce)
        now = time.monotonic()
        rate = examples / max(now - self._since, 1e-9)
        metrics = {f"train/{name}": value for name, value in means.items()}
        metrics["train/lr"] = optimizer.param_groups[0]["lr"]
        metrics["train/examples_per_second"] = rate
        if self.tokens:
            metrics["train/tokens_per_second"] = rate * self.tokens
        self._write(metrics, step)
        self.train_means.clear()
        self._since = now

    def _write(self, metrics: dict[str, float], step: int) -> None:
        for logger in self.trainer.loggers:
            logger.log_metrics(metrics, step=step)

    def _reduce(self, value: Tensor) -> Tensor:
        return self.trainer.strategy.reduce(value, reduce_op="sum")


class Untimed(PassThroughProfiler):
    """No profiler, for Trainer(profiler=...): Lightning's own enters a generator some 40 times a step for it."""

    nothing = contextlib.nullcontext()

    def profile(self, action_name: str) -> Any:
        return self.nothing


def check_terms(terms: Any, who: str) -> None:
    """Raise ValueError unless a model's loss gave a dict of scalars, "loss" among them."""
    if not isinstance(terms, dict):
        raise ValueError(f'{who} gave {type(terms).__name__}; give a dict of scalars, {{"loss": ...}}')
    if "loss" not in terms:
        raise ValueError(
            f"{who} gave {', '.join(terms) or 'nothing'}, without 'loss', the term that is minimised"
        )
    for name, value in terms.items():
        if not isinstance(value, Tensor) or value.dim():
            is_tensor = isinstance(value, Tensor)
            what = f"a tensor of shape {tuple(value.shape)}" if is_tensor else type(value).__name__
            raise ValueError(f"{who} gave {name!r} as {what}; give a scalar, the mean over examples")
