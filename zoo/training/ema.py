"""An exponential moving average of the weights: a_t = d a_{t-1} + (1 - d) w_t, after each optimizer step t.

Of weights, not of buffers: what a buffer counts or measures is the model's own business. Validation and what
comes after training see the average; training never does. In a checkpoint, `state_dict` has the average (so
whoever reads a model gets it without knowing) and `raw` the weights that training goes on with, by name.

Lightning's EMAWeightAveraging is not used: it swaps buffers too, saves the two swapped when stopped in
validation, leaves a finished run that is resumed with its raw weights, and waits for the GPU twice at each
step.
"""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.nn import Parameter

from zoo.training.sharding import parted, whole


class EMA(Callback):
    """Averages the trained weights.

    decay    d, in [0, 1)
    warm_up  use min(d, (1 + t) / (10 + t)) at step t, which forgets the initial weights (Abadi et al. 2016,
             tf.train.ExponentialMovingAverage)

    a_0 = w_0. Frozen parameters are not averaged. Raises ValueError if decay is outside [0, 1).
    """

    def __init__(self, decay: float = 0.999, *, warm_up: bool = False) -> None:
        if not 0 <= decay < 1:
            raise ValueError(
                f"ema={decay} is outside [0, 1): an average forgets a little at each step; try 0.999"
            )
        self.decay = decay
        self.warm_up = warm_up
        self.updates = 0
        self.swapped = False  # the module holds the average, and self.average the raw weights
        self.average: dict[str, Tensor] = {}

    def weights(self, module: LightningModule) -> dict[str, Parameter]:
        """What is averaged, by name: what could be trained when training began."""
        named = module.named_parameters()
        return {name: w for name, w in named if (name in self.average if self.average else w.requires_grad)}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start from the module's weights, or go on with what a checkpoint brought."""
        self.swapped = False
        start = self.average or {name: weight.detach() for name, weight in self.weights(pl_module).items()}
        self.average = {
            name: start[name].to(weight.device, copy=True) for name, weight in self.weights(pl_module).items()
        }

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Take in the weights of each optimizer step, once."""
        if trainer.global_step == self.updates:
            return
        self.updates = trainer.global_step
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warm_up else self.decay
        weights = [weight.detach() for weight in self.weights(pl_module).values()]
        torch._foreach_lerp_(list(self.average.values()), weights, 1 - decay)

    def swap(self, module: LightningModule) -> None:
        """Exchange the module's weights with the average, in place."""
        for name, weight in self.weights(module).items():
            held = weight.detach().clone()
            weight.data.copy_(self.average[name])
            self.average[name].copy_(held)
        self.swapped = not self.swapped

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate with the average; after training the module has it anyway."""
        if trainer.state.fn == "fit":
            self.swap(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Train on with the raw weights."""
        if trainer.state.fn == "fit":
            self.swap(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give back the raw weights if validation was left in its middle."""
        if self.swapped:
            self.swap(pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average in the module; this hook also ends a finished run that was resumed."""
        self.swap(pl_module)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the average into `state_dict` and the raw weights beside it, also from within validation."""
        weights = {name: weight.detach() for name, weight in self.weights(pl_module).items()}
        average, raw = (weights, self.average) if self.swapped else (self.average, weights)
        checkpoint["raw"] = {name: whole(weight) for name, weight in raw.items()}
        stored = {name: whole(weight) for name, weight in average.items()}
        names = {weight: name for name, weight in self.weights(pl_module).items()}
        # one weight may have several names (tied embeddings): all of them get the average
        for name, weight in pl_module.named_parameters(remove_duplicate=False):
            if weight in names:
                checkpoint["state_dict"][name] = stored[names[weight]]

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take both back; a checkpoint without averages starts them from its weights."""
        weights = self.weights(pl_module)
        self.average = {name: parted(checkpoint["state_dict"][name], weights[name]) for name in weights}
        for name, raw in checkpoint.get("raw", {}).items():
            weights[name].data.copy_(parted(raw, weights[name]))

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.updates = state_dict["updates"]
