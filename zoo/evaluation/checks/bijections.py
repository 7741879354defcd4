"""Whether what is called a bijection is one, and whether its log-determinant is that of its Jacobian."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from zoo.evaluation.checks.finding import (
    Batch,
    Call,
    Finding,
    calls,
    distance,
    fails,
    holds,
    innermost,
    loss,
    outermost,
    silent,
    stirred,
)

LARGEST = 1024  # dimensions of a Jacobian that is computed whole
GENTLY = 0.05  # are weights moved: e^s of many couplings would overflow
EXACT = 1e-6  # of an inverse, which may be found by iteration


def invertible(model: nn.Module, batch: Batch) -> Finding:
    """inverse(forward(x)) is x: of every part that has `inverse` and gives (z, log|det dz/dx|)."""
    model = stirred(model, GENTLY).eval()
    found = bijections(model, batch)
    if not found:
        return silent("no part has an inverse and gives (z, log|det dz/dx|)")
    errors = []
    for call in outermost(found):
        with torch.no_grad():
            z, _ = call.module(call.args[0])
            errors.append((distance(call.module.inverse(z), call.args[0]), call.name))
    worst, name = max(errors)
    told = f"inverse(forward(x)) is x to {worst:.0e} of it in {', '.join(call.name for call in outermost(found))}"
    if worst < EXACT:
        return holds(told)
    return fails(f"{culprit(found, _returns) or name}: inverse(forward(x)) is off by {worst:.1e} of x")


def log_determinant(model: nn.Module, batch: Batch) -> Finding:
    """The log-determinant is that of the Jacobian, which autograd computes whole, of one example."""
    model = stirred(model, GENTLY).eval()
    found = bijections(model, batch)
    if not found:
        return silent("no part has an inverse and gives (z, log|det dz/dx|)")
    small = [call for call in outermost(found) if call.args[0][0].numel() <= LARGEST]
    if not small:
        size = found[0].args[0][0].numel()
        return silent(f"a Jacobian of {size:,} dimensions is too large to compute whole; try dataset=digits")
    worst, name = max((volume_error(call), call.name) for call in small)
    if worst < EXACT:
        return holds(
            f"log|det| is that of autograd's Jacobian to {worst:.0e} nats in {', '.join(c.name for c in small)}"
        )
    where = culprit(found, lambda call: volume_error(call) < EXACT) or name
    return fails(f"{where}: log|det| is off by {worst:.3g} nats from autograd's Jacobian")


def bijections(model: nn.Module, batch: Batch) -> list[Call]:
    """The calls of bijections in a loss, of those inside of others too."""
    found = calls(model, lambda part: callable(getattr(part, "inverse", None)), lambda: loss(model, batch))
    return [call for call in found if _is_pair(call)]


def volume_error(call: Call) -> float:
    """How far a part's log-determinant is from autograd's, in nats, of its input's first example."""
    x = call.args[0][:1].detach()
    jacobian = torch.autograd.functional.jacobian(
        lambda v: call.module(v.view_as(x))[0].flatten(), x.flatten()
    )
    _, told = call.module(x)
    square = jacobian.reshape(-1, x.numel())
    if square.shape[0] != square.shape[1]:
        return float("inf")
    return abs(float(square.slogdet().logabsdet) - float(told.detach().flatten()[0]))


def culprit(found: Sequence[Call], good: Callable[[Call], bool]) -> str:
    """The first innermost bijection that is at fault; "" where each by itself is right."""
    return next((call.name for call in innermost(found) if not good(call)), "")


def _returns(call: Call) -> bool:
    with torch.no_grad():
        return distance(call.module.inverse(call.module(call.args[0])[0]), call.args[0]) < EXACT


def _is_pair(call: Call) -> bool:
    """Whether a part was called with one tensor of the batch and gave a tensor and a number for each example."""
    if len(call.args) != 1 or call.kwargs or not isinstance(call.args[0], Tensor):
        return False
    pair = isinstance(call.output, tuple) and len(call.output) == 2
    return (
        pair
        and all(isinstance(part, Tensor) for part in call.output)
        and call.output[1].shape == call.args[0].shape[:1]
    )
