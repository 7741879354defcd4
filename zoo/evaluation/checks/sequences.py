"""Whether a model of sequences sees only what it may, and goes on token by token as it sees all at once.

x has T elements, read by row, column and channel; what is told of element t may depend on those before it alone.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from zoo import chance
from zoo.evaluation.checks.finding import (
    CLOSE,
    Batch,
    Finding,
    calls,
    distance,
    fails,
    holds,
    loss,
    outermost,
    silent,
    stirred,
)
from zoo.types import Density, can

LONG = 256  # elements, beyond which they are changed one by one only where there is no gradient
AT_ONCE = 64  # changed sequences in one batch


def causal(model: Any, batch: Batch) -> Finding:
    """What is told of element t has no gradient from element t or later ones.

    Of a model whose forward gives (B, T, ...) or (B, F, T, 1), as those of zoo.models do. Gradients are taken of x as
    real numbers, or of the vectors that its tokens are embedded as; and each element is changed, to see what else does.
    With targets, element t itself may be seen.
    """
    if not getattr(model, "targets", False) and not (can(model, Density) and model.kind == "exact"):
        return silent("it tells no exact likelihood element by element")
    model = stirred(model).eval()
    x, y = batch["x"], batch.get("y")
    T, seen = math.prod(x.shape[1:]), int(bool(getattr(model, "targets", False)))
    order = getattr(model, "ranks", None)
    order = order[0].argsort() if isinstance(order, Tensor) else torch.arange(T)
    found = _told(model, x, y, T)
    ways = {} if isinstance(found, str) else {"gradient": _slopes(*found, order)}
    if T <= LONG or not any(sizes.any() for sizes in ways.values()):
        changes = _changes(model, x, y, T, order)
        if isinstance(changes, str):
            return silent(changes)
        ways["change"] = changes
    ways = {how: sizes for how, sizes in ways.items() if sizes.any()}
    if not ways:
        return fails("no element is told from any other: what forward gives does not depend on x")
    for how, sizes in ways.items():
        later = sizes.triu(seen)  # [t, s]: how much what is told of t depends on s
        leak, edge = float(later.max() / sizes.max()), divmod(int(later.argmax()), T)
        if leak > CLOSE:
            return fails(
                f"what is told of element {edge[0]} depends on element {edge[1]}: "
                f"a {how} of {leak:.1e} of the largest"
            )
    itself = "a later element" if seen else "itself or a later one"
    return holds(f"none of {T} elements is told from {itself}, by {' and by '.join(ways)}")


def _slopes(told: Tensor, sources: list[Tensor], order: Tensor) -> Tensor:
    """The largest gradient of what is told of t from the element s: (T, T)."""
    T = told.shape[1]
    sizes = told.new_zeros(T, T)
    chance.at("check", "causal")
    for t in range(T):
        part = told[:, t].flatten(1)
        if not part.requires_grad:
            continue
        value = (part * torch.randn_like(part)).sum()
        for grad in torch.autograd.grad(value, sources, retain_graph=True, allow_unused=True):
            if grad is not None:
                size = grad.abs().reshape(len(grad), grad.shape[1], -1).amax((0, 2))  # by place
                size = size[order] if len(size) == T else size
                sizes[t, : len(size)] = torch.maximum(sizes[t, : len(size)], size)
    return sizes


@torch.no_grad()
def _changes(model: Any, x: Tensor, y: Tensor | None, T: int, order: Tensor) -> Tensor | str:
    """How much what is told of t changes with the element s, of the batch's first example: (T, T); or why not."""

    def told(flat: Tensor) -> Tensor | str:
        images = x.dim() == 4
        back = (
            flat.unflatten(1, (*x.shape[2:], x.shape[1])).movedim(-1, 1)
            if images
            else flat.unflatten(1, x.shape[1:])
        )
        labels = () if y is None else (y[:1].expand(len(flat), *y.shape[1:]),)
        try:
            return _by_element(model(back, *labels), T)
        except (TypeError, NotImplementedError) as error:
            return f"its forward takes no x alone: {str(error).splitlines()[0]}"

    one = (x.movedim(1, -1) if x.dim() == 4 else x).flatten(1)[:1]
    whole = told(one)
    if isinstance(whole, str):
        return whole
    levels = getattr(model, "levels", None) or int(x.max()) + 1
    parts = []
    for s in torch.arange(T).split(AT_ONCE):
        flat = one.repeat(len(s), 1)
        rows = torch.arange(len(s))
        flat[rows, order[s]] = (flat[rows, order[s]] + 1) % levels
        parts.append((told(flat) - whole).abs().flatten(2).amax(2))
    return torch.cat(parts).T


def _by_element(out: Any, T: int) -> Tensor | str:
    """What forward gave as (B, T, ...), or why it cannot be."""
    if not isinstance(out, Tensor) or out.dim() not in (3, 4):
        return "its forward gives no tensor (B, T, ...) or (B, F, T, 1)"
    if out.dim() == 4 and out.shape[2] == T:
        out = out.squeeze(3).transpose(1, 2)
    if out.shape[1] != T:
        return f"its forward gives {tuple(out.shape)}, and not something for each of {T} elements"
    return out


def steps_are_parallel(model: Any, batch: Batch) -> Finding:
    """prefill and step give what forward gives: of every part that has all three, on its own input of the batch."""
    model = stirred(model).eval()

    def wanted(module: nn.Module) -> bool:
        return callable(getattr(module, "prefill", None)) and callable(getattr(module, "step", None))

    found = outermost(
        [call for call in calls(model, wanted, lambda: loss(model, batch)) if _is_sequence(call.args)]
    )
    if not found:
        return silent("no part with prefill and step is called on a sequence (B, T, D) alone")
    told = []
    for call in found:
        x = call.args[0].detach()
        at = x.shape[1] // 3
        try:
            worst, where = _apart(call.module, x, at)
        except ValueError as error:
            return silent(f"{call.name}: {error}")
        if not worst < CLOSE:
            return fails(
                f"{call.name}: after a prefill of {at}, token {where} differs by {worst:.1e} of the largest number"
            )
        told.append(f"{call.name} to {worst:.0e}")
    return holds(f"prefill and step give what forward gives: {', '.join(told)}")


@torch.no_grad()
def _apart(module: Any, x: Tensor, at: int) -> tuple[float, int]:
    """The largest difference of forward and of steps behind a prefill of `at` tokens, and at which token."""
    whole = module(x)
    first, state = module.prefill(x[:, :at])
    parts = [first]
    for t in range(at, x.shape[1]):
        y, state = module.step(x[:, t], state)
        parts.append(y.unsqueeze(1))
    steps = torch.cat(parts, 1)
    worst = distance(steps, whole)
    by_token = (
        (steps - whole).abs().flatten(2).amax(2).amax(0) if steps.shape == whole.shape else torch.zeros(1)
    )
    return worst, int(by_token.argmax())


def _told(model: Any, x: Tensor, y: Tensor | None, T: int) -> tuple[Tensor, list[Tensor]] | str:
    """What is told of each element, (B, T, F), and x's leaves that it may depend on, each (B, S, ...); or why not."""
    leaves: list[Tensor] = []
    tokens = (x.movedim(1, -1) if x.dim() == 4 else x).flatten(1).long().clamp(min=0)

    def leaf(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        if args[0].dim() != 2 or not torch.equal(args[0].clamp(min=0), tokens[:, : args[0].shape[1]]):
            return output  # labels, positions or a source: no tokens of x
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    hooks = [m.register_forward_hook(leaf) for m in model.modules() if isinstance(m, nn.Embedding)]
    labels = () if y is None else (y,)
    try:
        with torch.enable_grad():
            out = model(x, *labels)
            if not leaves:  # no tokens are embedded: images as real numbers
                real = x.to(next(model.parameters()).dtype)
                flat = (real.movedim(1, -1) if real.dim() == 4 else real).flatten(1).detach().requires_grad_()
                back = (
                    flat.unflatten(1, (*x.shape[2:], x.shape[1])).movedim(-1, 1)
                    if x.dim() == 4
                    else flat.view_as(x)
                )
                leaves.append(flat)
                out = model(back, *labels)
    except (TypeError, RuntimeError, NotImplementedError) as error:
        return f"its forward takes no x alone: {str(error).splitlines()[0]}"
    finally:
        for hook in hooks:
            hook.remove()
    told = _by_element(out, T)
    return told if isinstance(told, str) else (told, leaves)


def _is_sequence(args: tuple[Any, ...]) -> bool:
    return len(args) == 1 and isinstance(args[0], Tensor) and args[0].dim() == 3 and args[0].shape[1] > 2
