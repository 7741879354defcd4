"""Where a training stands, told a few times a second at most, so that telling costs nothing."""

import sys
import time
from typing import Any, TextIO

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor


class Progress(Callback):
    """One line that is redrawn on a terminal, and plain lines anywhere else: step, loss, examples (of
    sequences: tokens) per second, time left.

    interval   seconds between two drawings on a terminal
    plain      seconds between two lines elsewhere
    The loss is read from the device only when it is drawn. Rank 0 alone speaks, to `stream` (standard error).
    """

    def __init__(self, interval: float = 0.2, plain: float = 10.0, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.terminal = self.stream.isatty()
        self.interval = interval if self.terminal else plain
        self.examples, self.step, self.since = 0, 0, time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.examples, self.step, self.since = 0, trainer.global_step, time.monotonic()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Tensor],
        batch_idx: int,
    ) -> None:
        self.examples += len(batch["x"])
        now = time.monotonic()
        if now - self.since >= self.interval and trainer.is_global_zero:
            self.draw(trainer, pl_module, now)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loss = trainer.callback_metrics.get("val/loss")
        if loss is not None and trainer.is_global_zero and not trainer.sanity_checking:
            self.say(f"step {trainer.global_step:,}  val/loss {float(loss):.4f}\n")
        self.examples, self.step, self.since = 0, trainer.global_step, time.monotonic()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self.draw(trainer, pl_module, time.monotonic())
            if self.terminal:
                self.stream.write("\n")
                self.stream.flush()

    def draw(self, trainer: Trainer, learner: LightningModule, now: float) -> None:
        """Write the line: this reads the loss, which waits for the device."""
        seconds = max(now - self.since, 1e-9)
        rate = self.examples * trainer.world_size / seconds
        left = (trainer.max_steps - trainer.global_step) * seconds / max(1, trainer.global_step - self.step)
        text = f"step {trainer.global_step:,}/{trainer.max_steps:,}"
        if getattr(learner, "last", None) is not None:
            text += f"  loss {float(learner.last):.4f}"
        if self.examples:
            tokens = getattr(learner, "tokens", 0)
            text += f"  {rate * tokens:,.0f} tokens/s" if tokens else f"  {rate:,.0f} examples/s"
            text += f"  {duration(left)} left"
        self.say(text + ("" if self.terminal else "\n"))
        self.examples, self.step, self.since = 0, trainer.global_step, now

    def say(self, text: str) -> None:
        """Write over the line on a terminal, under it elsewhere."""
        self.stream.write(f"\r\x1b[2K{text}" if self.terminal else text)
        self.stream.flush()


def duration(seconds: float) -> str:
    """1:02:03, or 2:03 under an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
