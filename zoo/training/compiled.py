"""The loss as one program: torch.compile, which sees calls of modules only and so is given a method by name."""

from collections.abc import Callable
from typing import Any

import torch
import torch._inductor
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch._dynamo.exc import TorchDynamoException

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
BACKENDS = ("inductor", "aot_eager", "eager")


class Compiled(Callback):
    """Compiles a model's loss for the time of a training; afterwards the model is as it was.

    mode     torch.compile's: how long it searches, and whether a GPU records its kernels and plays them again
    backend  who makes the program: inductor, with fused kernels; aot_eager and eager, to look for faults

    Chance is drawn by torch's own functions, so that numbers differ by rounding only. sample and log_prob are not
    compiled: of their loops over tokens, steps or draws each round would become a part of one program.

    Raises ValueError for another mode or backend, and where inductor cannot compile, as without a compiler.
    """

    def __init__(self, *, mode: str = "default", backend: str = "inductor") -> None:
        for key, value, known in (("mode", mode, MODES), ("backend", backend, BACKENDS)):
            if value not in known:
                raise ValueError(f"callbacks.compile.{key}={value}: torch.compile takes {', '.join(known)}")
        self.mode, self.backend = mode, backend

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compile; before shards are made, for these gather the weights and then call what is here."""
        model, device = pl_module.model, trainer.strategy.root_device
        model.loss = compiled(model.loss, device, mode=self.mode, backend=self.backend)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the model its own loss again: a copy of the model would call that of the original."""
        del pl_module.model.loss


def compiled(
    method: Callable[..., Any], device: torch.device, *, mode: str, backend: str
) -> Callable[..., Any]:
    """A method that is compiled when it is called; that a compiler is there is tried out at once, by a sum."""
    torch._dynamo.config.allow_unspec_int_on_nn_module = (
        True  # else each step's number has a program of its own
    )
    options = None
    if backend == "inductor":  # which by default draws other numbers than torch
        options = {**torch._inductor.list_mode_options(mode), "fallback_random": True}
    try:
        torch.compile(torch.add, backend=backend, options=options)(torch.ones(2, device=device), 1)
    except TorchDynamoException as error:
        told = str(error).splitlines()[0]
        raise ValueError(
            f"torch.compile does not work on this machine: {told}; install a C++ compiler (g++), or leave "
            "callbacks=compile away"
        ) from error
    return torch.compile(method, backend=backend, options=options)
