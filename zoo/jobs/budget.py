"""Training for so many floating-point operations, whatever a step of the model costs."""

from collections.abc import Mapping
from typing import Any

from zoo.config import build
from zoo.evaluation.cost import training_flops
from zoo.training.loaders import Loaders

EXAMPLES = 4  # that the operations are counted on


def within(config: dict[str, Any], data: Loaders, stored: Mapping[str, Any]) -> dict[str, Any]:
    """The config with trainer.max_steps as `train_flops` pays for; validations keep their places in the whole.

    Counted are the operations of zoo.evaluation.cost.training_flops, on the CPU, of the first training examples.
    ValueError where they do not pay for a step.
    """
    if config["train_flops"] is None:
        return config
    model = build(config["model"], "model", **stored)
    each = training_flops(model, next(iter(data.loader("train", EXAMPLES, EXAMPLES))))
    steps = int(float(config["train_flops"]) / (each * config["batch_size"]))
    if steps < 1:
        raise ValueError(
            f"train_flops={config['train_flops']}: a step of {config['batch_size']} examples takes "
            f"{each * config['batch_size']:.2g} operations; try more"
        )
    trainer = dict(config["trainer"])
    every = round(steps * trainer["val_check_interval"] / trainer["max_steps"])
    return config | {"trainer": trainer | {"max_steps": steps, "val_check_interval": max(1, every)}}
