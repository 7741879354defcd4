"""A run whose numbers are no longer finite stops, says where it began, and saves nothing of it."""

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.nn import Module
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

NEVER = torch.iinfo(torch.int64).max
WAITS_FOR_NOTHING = ("cpu",)  # devices whose numbers can be read at once


class Finite(Callback):
    """Stops at a loss or a gradient that is nan or infinite.

    On the CPU each one is looked at (5 us, and 60 us for the gradients of 20 tensors), so the weights stay
    good. On a GPU looking would wait for it: the first bad step is noted there, and read when metrics are
    logged and before each checkpoint. Under a gradient scaler (16-mixed) infinite gradients are its everyday
    business and not ours.

    Raises FloatingPointError with the step, the first bad tensor, the learning rate and the last good
    checkpoint.
    """

    def __init__(self) -> None:
        self.first: Tensor | None = None  # the first bad step, on the device

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._look(trainer, pl_module, loss.detach())

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            gradients = [
                w.grad for group in optimizer.param_groups for w in group["params"] if w.grad is not None
            ]
            norm = get_total_norm(gradients)
            # its square may overflow before it does
            if norm.device.type == "cpu" and not math.isfinite(norm):
                norm = get_total_norm(gradients, norm_type=math.inf)
            self._look(trainer, pl_module, norm)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.global_step % max(1, trainer.log_every_n_steps) == 0:
            self.check(trainer, pl_module)

    def check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read what was noted; whoever saves a checkpoint calls it first."""
        if self.first is not None and (step := int(self.first)) != NEVER:
            raise FloatingPointError(_sentence(trainer, pl_module, step))

    def _look(self, trainer: Trainer, module: LightningModule, value: Tensor) -> None:
        step = trainer.global_step + 1
        if value.device.type in WAITS_FOR_NOTHING:
            if not math.isfinite(value):
                raise FloatingPointError(_sentence(trainer, module, step))
            return
        if self.first is None or self.first.device != value.device:
            self.first = torch.full((), NEVER, device=value.device)
        self.first = torch.where(torch.isfinite(value), self.first, self.first.clamp(max=step))


def bad_weight(module: Module) -> str | None:
    """The name of the first parameter with a nan or infinite element, or buffer with a nan; None if all are
    good.

    An infinite buffer is no fault: masks are.
    """
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    tensors = {name: t.detach() for name, t in tensors.items() if t.is_floating_point() and t.numel()}
    named = [name for name, _ in module.named_parameters()]
    good = [t.isfinite().all() if name in set(named) else ~t.isnan().any() for name, t in tensors.items()]
    if not good or bool(torch.stack([g.cpu() for g in good]).all()):
        return None
    return next(name for name, g in zip(tensors, good, strict=True) if not g)


def _sentence(trainer: Trainer, module: LightningModule, step: int) -> str:
    """What is known about the fault, in one sentence with a cure."""
    rate = trainer.optimizers[0].param_groups[0]["lr"]
    epoch, batch = trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_progress.current.ready - 1
    saved = getattr(trainer.checkpoint_callback, "path", None)
    return (
        f"{_first_bad(module)} is not finite at step {step} (micro-batch {batch} of epoch {epoch}, "
        f"learning rate {rate:g}); {f'{saved} is the last good checkpoint' if saved else 'none was saved'}; "
        "try a lower learning rate, a longer warm-up or trainer.gradient_clip_val=1"
    )


def _first_bad(module: LightningModule) -> str:
    """The most telling of the tensors that are bad now: a weight spoils all else, then terms, gradients."""
    if name := bad_weight(module):
        return f"the weight {name}"
    # a mean that met a bad number stays bad
    sums = {
        name: total for means in module.train_means.sums.items() for name, total in zip(*means, strict=False)
    }
    if terms := [name for name, total in sums.items() if name != "loss" and not math.isfinite(total)]:
        return f"the loss term {', '.join(terms)}"
    for name, weight in module.named_parameters():
        if weight.grad is not None and not torch.isfinite(weight.grad).all():
            return f"the gradient of {name}"
    return "the loss"
