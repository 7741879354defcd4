"""Whether a model trains, comes back from a checkpoint as it was, and is the same when its blocks run again."""

import copy
import io
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from zoo import chance
from zoo.evaluation.checks.finding import (
    CLOSE,
    Batch,
    Finding,
    distance,
    fails,
    farthest,
    gradients,
    holds,
    loss,
    silent,
)
from zoo.nn.checkpointing import checkpoint_blocks
from zoo.types import Density, Sampler, can

DRAWN = 2  # samples that are compared


def trains(model: nn.Module, batch: Batch) -> Finding:
    """The loss is a finite number, and each parameter gets a finite gradient from it."""
    terms, found = gradients(copy.deepcopy(model), batch)
    for name, value in terms.items():
        if value.dim() or not math.isfinite(float(value)):
            return fails(
                f"{name} is no finite number: {value.flatten()[:1].tolist()} of shape {tuple(value.shape)}"
            )
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    if without := [name for name in trained if name not in found]:
        return fails(f"{without[0]}{_more(without)} gets no gradient: nothing that is trained depends on it")
    if odd := [name for name, grad in found.items() if not grad.isfinite().all()]:
        return fails(f"{odd[0]}{_more(odd)} has a gradient that is not finite")
    return holds(
        f"loss {float(terms['loss']):.4g}, and a finite gradient for each of {len(trained)} parameters"
    )


def samples_fit(model: Any, batch: Batch) -> Finding:
    """What is drawn looks like the data: shape, kind of numbers, levels; and the same chance draws the same."""
    if not can(model, Sampler):
        return silent("it draws no samples")
    model = copy.deepcopy(model).eval()
    x, again = drawn(model), drawn(model)
    shape, data = tuple(batch["x"].shape[1:]), batch["x"]
    if tuple(x.shape) != (DRAWN, *shape):
        return fails(f"sample({DRAWN}) has the shape {tuple(x.shape)}, not {(DRAWN, *shape)}")
    if torch.is_floating_point(x) != torch.is_floating_point(data):
        return fails(f"sample gives {x.dtype}, and the data are {data.dtype}")
    levels = getattr(model, "levels", None)
    if levels and not torch.is_floating_point(x) and not (0 <= int(x.min()) <= int(x.max()) < levels):
        return fails(f"sample gives values from {int(x.min())} to {int(x.max())}, of {levels} levels")
    if not torch.equal(x, again):
        return fails("the same chance draws other samples the second time")
    return holds(f"of shape {shape} and {x.dtype}, the same for the same chance")


def round_trip(model: nn.Module, batch: Batch, make: Callable[[int], nn.Module]) -> Finding:
    """Weights saved and loaded into a model made anew give the same loss, likelihood and samples, bit by bit.

    make  makes the model from a seed; it is made from another one than `model`
    """
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    anew = make(1)
    try:
        anew.load_state_dict(torch.load(file, weights_only=True))
    except Exception as error:
        return fails(f"its weights cannot be loaded again: {str(error).splitlines()[0]}")
    before, after = outputs(model, batch), outputs(anew, batch)
    if before.keys() != after.keys():
        return fails(f"only one of both has {sorted(before.keys() ^ after.keys())[0]}")
    for name, value in before.items():
        if not torch.equal(value, after[name]):
            return fails(
                f"{name} differs by {distance(value, after[name]):.1e}: something that counts is in no state_dict"
            )
    return holds(f"the same {', '.join(before)} from weights loaded into a model made anew")


def recomputed(model: nn.Module, batch: Batch) -> Finding:
    """With gradient checkpointing loss and gradients are the same, and blocks do run twice."""
    if not list(getattr(model, "blocks", [])):
        return silent("it names no `blocks`, so there is nothing to compute again")
    plain, again = copy.deepcopy(model), copy.deepcopy(model)
    checkpoint_blocks(again, "full")
    runs = {"plain": 0, "again": 0}
    for name, one in (("plain", plain), ("again", again)):
        for part in {part for block in one.blocks for part in block.modules() if part is not block}:
            part.register_forward_pre_hook(lambda *call, name=name: runs.update({name: runs[name] + 1}))
    before, after = gradients(plain, batch), gradients(again, batch)
    for kind, a, b in zip(("", "the gradient of "), before, after):
        worst, name = farthest(a, b)
        if not worst < CLOSE:
            return fails(f"{kind}{name} differs by {worst:.1e} when blocks are computed again")
    if 0 < runs["plain"] == runs["again"]:
        return fails("no part of its blocks runs a second time: nothing is computed again")
    return holds(f"the same loss and gradients with {len(list(model.blocks))} blocks computed again")


def outputs(model: Any, batch: Batch) -> dict[str, Tensor]:
    """What a model tells of a batch and draws, in evaluation mode, with the same chance each time."""
    model.eval()
    with torch.no_grad():
        found = {name: value.detach() for name, value in loss(model, batch).items()}
        if can(model, Density):
            chance.at("check", "log_prob")
            found["log_prob"] = model.log_prob(**batch)
        if can(model, Sampler):
            found["samples"] = drawn(model)
    return found


def drawn(model: Any) -> Tensor:
    """A few samples, the same each time."""
    chance.at("check", "sample")
    with torch.no_grad():
        return model.sample(DRAWN)


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
