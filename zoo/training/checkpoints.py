"""When a run is saved, and how it goes on exactly where it was.

A place is {epoch, batch, step}: micro-batches done in this epoch, optimizer steps done in all. Chance is a
function of the place, so nothing of it is stored; what is stored are weights, averages, moments, schedules
and counters, between two optimizer steps and never inside an accumulation window, where half a gradient would
be lost.
"""

import math
import os
import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.utilities import rank_zero_only

from zoo.training import checkpoint_files as files
from zoo.training.finite import Finite, bad_weight
from zoo.training.metrics_log import MetricsLog


class SafeIO(CheckpointIO):
    """Lightning's reading and writing of checkpoints by `checkpoint_files`: `Trainer(plugins=[SafeIO()])`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        files.write(checkpoint, path)

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Plain values only, whatever is asked for, and to the CPU first."""
        return files.load(path)

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


class Checkpoints(Checkpoint):
    """Saves `step-<n>.ckpt` in a folder, and under the name `best.ckpt` the one with the lowest `monitor`.

    folder   where they go; one run at a time
    every    optimizer steps between two; None: only after validations
    keep     how many of the newest stay, beside the best; None: all
    monitor  the validation metric that decides what is best; None: nothing is

    One is also saved after each validation and at the end of training. All are saved before the first
    micro-batch of a step, when everything about the steps before is done: validation, end of epoch, metrics
    on disk.

    Raises ValueError if validation would fall inside an accumulation window, or `monitor` was not logged;
    FloatingPointError instead of saving weights that are not finite.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        every: int | None = None,
        keep: int | None = 2,
        monitor: str | None = "val/loss",
    ) -> None:
        if (every is not None and every < 1) or (keep is not None and keep < 1):
            raise ValueError(f"every={every} and keep={keep} must be at least 1, or null")
        self.folder = Path(folder)
        self.every, self.keep, self.monitor = every, keep, monitor
        self.best: float | None = None
        self.best_step: int | None = None
        self.path: Path | None = None  # the last one written, or the one resumed from
        self.step = 0  # of that one
        self.due = False  # a validation ended
        self.halted = False
        self.resumed = False
        self.validating = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            files.clean(self.folder)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.resumed and self.best_step == self.step:
            self._name_best(self.path)  # a kill may have come between its two names

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.resumed:
            for log in _logs(trainer):
                log.cut(0)
        self.on_fit_start(trainer, pl_module)  # again: a sharded model is restored only after the first time
        window, n = trainer.accumulate_grad_batches, trainer.num_training_batches
        often = trainer.val_check_batch
        if not trainer.enable_validation or not isinstance(often, int) or often % n == 0:
            return
        if often % window or (trainer.check_val_every_n_epoch is None and n % window):
            raise ValueError(
                f"trainer.val_check_interval comes to {often} micro-batches, in the midst of the {window} of "
                f"an optimizer step; try trainer.val_check_interval={-(-often // window) * window}"
            )

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.resumed:
            self.resumed = False
            # a validation that Lightning skips on restart is counted as a step for the loggers
            trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
        if batch_idx % trainer.accumulate_grad_batches:
            return
        step = trainer.global_step
        if self.due or (self.every and step % self.every == 0 and step != self.step):
            self.save(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Let no time limit end the training inside an accumulation window."""
        self.halted |= trainer.should_stop
        trainer.should_stop = self.halted and not trainer.fit_loop._should_accumulate()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self.due = True
        if self.monitor is None:
            return
        if self.monitor not in trainer.callback_metrics:
            logged = ", ".join(sorted(trainer.callback_metrics)) or "nothing"
            raise ValueError(f"best.ckpt is chosen by {self.monitor}, which was not logged ({logged} was)")
        value = float(trainer.callback_metrics[self.monitor])
        if math.isfinite(value) and (self.best is None or value < self.best):
            self.best, self.best_step = value, trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.due or trainer.global_step != self.step:
            self.save(trainer)

    def save(self, trainer: Trainer, *, validating: bool = False) -> None:
        """Save now; all processes call it. `validating`: a validation was begun that has to be done again."""
        module = trainer.lightning_module
        for callback in trainer.callbacks:
            if isinstance(callback, Finite):
                callback.check(trainer, module)
        step = trainer.global_step
        if name := bad_weight(module):
            raise FloatingPointError(
                f"{name} is not finite after step {step}; {self.path or 'nothing'} was saved last"
            )
        path = self.folder / f"step-{step:08d}.ckpt"
        self.validating = validating
        trainer.save_checkpoint(path, weights_only=False)
        self.path, self.step, self.due = path, step, False
        if trainer.is_global_zero:
            if self.best_step == step:
                self._name_best(path)
            # what lies beyond this step is damaged or about to be written anew, and counts for nothing
            numbered = [old for old in files.steps(self.folder) if old.name <= path.name]
            for old in numbered[self.keep :] if self.keep else []:
                old.unlink(missing_ok=True)

    @rank_zero_only
    def _name_best(self, path: Path) -> None:
        files.link(path, self.folder / "best.ckpt")

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the place and the length of the metrics; bring Lightning's counters to one clear state."""
        epochs, batches = trainer.fit_loop.epoch_progress, trainer.fit_loop.epoch_loop.batch_progress
        epoch, batch, step = epochs.current.started - 1, batches.current.processed, trainer.global_step
        whole = batch >= trainer.num_training_batches
        if not whole and batch % trainer.accumulate_grad_batches:
            raise RuntimeError(
                f"a checkpoint at micro-batch {batch} would lose half a gradient; save between steps"
            )
        if whole and not self.validating:
            epoch, batch = epoch + 1, 0
        checkpoint["place"] = {"epoch": epoch, "batch": batch, "step": step}
        checkpoint["metrics_size"] = max((log.size() for log in _logs(trainer)), default=0)
        # Lightning's counters differ with the moment of saving, and each moment has a restart of its own; in
        # this one the batches so far are done and the epoch is not, and a validation is done unless it was
        # begun
        loops = checkpoint["loops"]["fit_loop"]
        loops["epoch_progress"] = {"total": _count(epoch, 1), "current": _count(epoch, 1)}
        loops["epoch_loop.batch_progress"] = {
            "total": _count(batches.total.processed),
            "current": _count(batch),
            "is_last_batch": whole and self.validating,
        }
        loops["epoch_loop.val_loop.batch_progress"] = {
            "total": _count(0, int(self.validating)),
            "current": _count(0),
            "is_last_batch": False,
        }
        loops["epoch_loop.state_dict"]["_batches_that_stepped"] = step - self.validating

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Send the loaders to the place, and remember what the metrics are to be cut to."""
        place = checkpoint["place"]
        self.step, self.path = place["step"], Path(trainer.ckpt_path)
        self.resumed = True
        for log in _logs(trainer):
            log.cut(checkpoint["metrics_size"])
        if trainer.datamodule is not None:
            trainer.datamodule.start(place["epoch"], place["batch"])
        # Lightning cannot know that the loaders begin in the midst of an epoch
        warnings.filterwarnings("ignore", message=".*ended before the epoch ended.*")

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.best_step = state_dict["best"], state_dict["best_step"]


def _logs(trainer: Trainer) -> list[MetricsLog]:
    return [log for log in trainer.loggers if isinstance(log, MetricsLog)]


def _count(done: int, begun: int = 0) -> dict[str, int]:
    """A Lightning progress tracker: so many done, and so many more begun."""
    return {"ready": done + begun, "started": done + begun, "processed": done, "completed": done}
