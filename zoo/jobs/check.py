"""Check what a config's model promises, on a few examples of its data, in float64 on the CPU."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from hydra.utils import get_object
from torch import nn

from zoo import chance
from zoo.config import build
from zoo.evaluation import checks
from zoo.evaluation.checks import Finding
from zoo.jobs.data import loaders
from zoo.types import Prepared, can

EXAMPLES = 4


def check(config: Mapping[str, Any]) -> Iterator[tuple[str, Finding]]:
    """(what is checked, what was found), one after the other.

    config  whole, resolved and plain, as train.py has it
    An exception within a check is a finding too: the model fails it.
    """
    warnings.filterwarnings("ignore", category=UserWarning)
    data = loaders(config)
    batch = {
        name: value.clone() for name, value in next(iter(data.loader("train", EXAMPLES, EXAMPLES))).items()
    }
    batch = {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}
    node = in_use(config["model"])
    model = make(node, batch)
    every: dict[str, Callable[[], Finding]] = {
        "the loss is finite and trains every weight": lambda: checks.trains(model, batch),
        "samples look like the data": lambda: checks.samples_fit(model, batch),
        "the inverse returns": lambda: checks.invertible(model, batch),
        "the log-determinant is autograd's": lambda: checks.log_determinant(model, batch),
        "the future is not seen": lambda: checks.causal(model, batch),
        "a step equals the parallel form": lambda: checks.steps_are_parallel(model, batch),
        "a checkpoint brings all back": lambda: checks.round_trip(
            model, batch, lambda seed: make(node, batch, seed)
        ),
        "gradient checkpointing changes nothing": lambda: checks.recomputed(model, batch),
        "two processes equal one": lambda: checks.processes(model, batch),
        "every config field changes something": lambda: checks.fields(node, batch, make),
    }
    for what, work in every.items():
        try:
            yield what, work()
        except Exception as error:
            told = str(error).splitlines()[0] if str(error) else "without a word"
            yield what, Finding("fails", f"{type(error).__name__}: {told}")


def in_use(node: Mapping[str, Any]) -> dict[str, Any]:
    """A model's config without the feed-forward blocks that its mixer, one that is a whole layer, says it replaces."""
    mixer = node.get("mixer")
    target = mixer.get("_target_") if isinstance(mixer, Mapping) else None
    replaces = target is not None and getattr(get_object(target), "whole", False)
    return {**node, "mlp": None} if replaces and "mlp" in node else dict(node)


def make(node: Mapping[str, Any], batch: Mapping[str, torch.Tensor], seed: int = 0) -> nn.Module:
    """A model of a config, from a seed, its measured parts measured on the batch."""
    chance.at("init", seed)
    model = build(dict(node), "model").double()
    if can(model, Prepared):
        chance.at("check", "prepare")
        model.prepare(iter([dict(batch)]))
    return model
