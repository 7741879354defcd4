"""SIGTERM and SIGINT (Ctrl-C): finish the step, save, leave with 143 or 130, and say how to go on.

A signal only sets a flag. Nothing is saved from within a step, where weights, moments and counters disagree.
"""

import os
import re
import signal
import subprocess
import threading
from typing import Any, Self

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from zoo.training import devices
from zoo.training.checkpoints import Checkpoints

SIGNALS = (signal.SIGTERM, signal.SIGINT)
QUEUE = getattr(signal, "SIGUSR2", signal.SIGTERM)  # by submitit's handler, the job is queued again
HURRY = b"\nstopping after this step; once more (Ctrl-C) ends it at once, with what was saved before\n"


class Stopping(Callback):
    """A callback, and the context in which to train: `with stopping: trainer.fit(..., callbacks=[stopping,
    ...])`.

    advice  the last line printed when it stopped: how to go on

    The handlers of before come back when the context is left. A stop waits for the end of an accumulation
    window, but not for the end of a validation: that is done again, whole, after a resume. Only the
    validation after the very last step is waited for. A second SIGINT kills the process at once; files are
    written so that this harms none. With several processes any one's signal stops all, at the same step: the
    flags are reduced on the CPU. A scheduler's own handler of SIGUSR2, which queues the job again, is called when
    all is saved, also where Slurm preempts a job by SIGTERM.
    """

    def __init__(self, advice: str) -> None:
        self.advice = advice
        self.got = 0
        self.before: dict[int, Any] = {}
        self.group: Any = None

    def __enter__(self) -> Self:
        self.got = 0
        self.before = {number: signal.getsignal(number) for number in SIGNALS}
        if callable(signal.getsignal(QUEUE)):
            self.before[QUEUE] = signal.getsignal(QUEUE)
        self._install()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        """Raise SystemExit(128 + signal) if there was one and nothing else went wrong."""
        if threading.current_thread() is threading.main_thread():
            for number, handler in self.before.items():
                signal.signal(number, handler)
        left = isinstance(error, SystemExit) and self.got
        if left or (self.got and error is None):  # also when it came too late to be noticed in training
            if devices.rank() == 0:
                print(self.advice, flush=True)
            again = self.got == QUEUE or (self.got == signal.SIGTERM and preempted())
            if again and callable(self.before.get(QUEUE)):
                self.before[QUEUE](QUEUE, None)
            if error is None:
                raise SystemExit(128 + self.got)

    def _install(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in self.before:
                signal.signal(number, self._note)

    def _note(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            if devices.rank() == 0:
                os.write(2, HURRY)
        self.got = self.got or number

    def asked(self, trainer: Trainer) -> bool:
        """Whether any process was told to stop; with several, all must ask at the same moments."""
        if trainer.world_size > 1:
            if self.group is None:
                # NCCL would wait for the GPU at each step
                self.group = dist.new_group(backend="gloo", timeout=devices.patience)
            flag = torch.tensor(int(self.got))
            dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self.group)
            self.got = int(flag)
        return bool(self.got)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals back from Lightning, whose handler leaves with exit code 0 and no checkpoint."""
        trainer._signal_connector.received_sigterm = False
        self._install()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0 and self.asked(trainer):
            self._leave(trainer)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        last = 0 < trainer.max_steps <= trainer.global_step
        if trainer.state.fn == "fit" and not trainer.sanity_checking and not last and self.asked(trainer):
            self._leave(trainer, validating=True)

    def _leave(self, trainer: Trainer, *, validating: bool = False) -> None:
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, Checkpoints):
                callback.save(trainer, validating=validating)
        raise SystemExit(128 + self.got)


def preempted() -> bool:
    """Whether Slurm needs this job's place for another one; scancel, whose signal is the same, does not."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return False
    try:
        told = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return re.search(r"\bPreemptTime=\d", told.stdout) is not None


def patient(worker: int) -> None:
    """For DataLoader's worker_init_fn: a signal to the whole group must not take the workers from under the
    step.

    Whoever trains ends them when it leaves; a second signal of the same kind does it at once.
    """
    for number in SIGNALS:
        signal.signal(number, lambda got, frame: signal.signal(got, signal.SIG_DFL))
