"""What a check finds, and what all of them do to a model: call it twice alike, stir its weights, watch its parts."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from zoo import chance
from zoo.types import Scheduled, can

Batch = Mapping[str, Tensor]
CLOSE = 1e-8  # of the largest number, in float64
TINY = 1e-6


class Finding(NamedTuple):
    """What a check says: whether the property holds, and in a few words why, or by how much it fails."""

    verdict: Literal["ok", "fails", "does not apply"]
    words: str


def holds(words: str) -> Finding:
    """The property holds."""
    return Finding("ok", words)


def fails(words: str) -> Finding:
    """It does not; the words say where, and by how much."""
    return Finding("fails", words)


def silent(words: str) -> Finding:
    """The model has no such property; the words say why."""
    return Finding("does not apply", words)


def loss(model: Any, batch: Batch, step: int = 0) -> dict[str, Tensor]:
    """The model's loss at a step, with the same chance each time."""
    if can(model, Scheduled):
        model.at(step)
    chance.at("check", "loss")
    return model.loss(**batch)


def gradients(model: nn.Module, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The terms of the loss, and the gradient of each parameter that got one; in training mode."""
    model.train()
    model.zero_grad(set_to_none=True)
    with torch.enable_grad():
        terms = loss(model, batch)
        terms["loss"].backward()
    found = {name: p.grad.detach().clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return {name: value.detach() for name, value in terms.items()}, found


def stirred(model: nn.Module, amount: float = 0.5) -> nn.Module:
    """A copy in which every parameter was moved: what starts at zero would hide what is behind it.

    amount  by how much of what keeps the size of a map's numbers; deep bijections overflow from less than others
    """
    copied = copy.deepcopy(model)
    chance.at("check", "stirred")
    with torch.no_grad():
        for parameter in copied.parameters():
            fan = parameter[0].numel() if parameter.dim() > 1 else 100
            parameter.add_(torch.randn_like(parameter) * amount / fan**0.5)
    return copied


def still(model: nn.Module) -> nn.Module:
    """A copy without dropout, whose numbers no two orders of drawing share."""
    copied = copy.deepcopy(model)
    for module in copied.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    return copied


def distance(a: Tensor, b: Tensor) -> float:
    """The largest difference, as a part of the largest number; infinite where one is not finite or of another shape.

    Numbers below TINY count as of that size: those of a bias before a norm, say, are the rounding of zero.
    """
    if a.shape != b.shape:
        return float("inf")
    if a.numel() == 0:
        return 0.0
    a, b = a.detach().double(), b.detach().double()
    largest = torch.maximum(a.abs().max(), b.abs().max()).clamp(min=TINY)
    found = float((a - b).abs().max() / largest)
    return found if found == found else float("inf")


def farthest(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> tuple[float, str]:
    """The largest distance of tensors with the same name, and that name; a name on one side only is far away."""
    if odd := sorted(a.keys() ^ b.keys()):
        return float("inf"), odd[0]
    return max(((distance(a[name], b[name]), name) for name in a), default=(0.0, ""))


class Call(NamedTuple):
    """One call of a part: itself, its name, what it got and what it gave."""

    module: Any
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


def calls(model: nn.Module, wanted: Callable[[nn.Module], bool], work: Callable[[], Any]) -> list[Call]:
    """The calls of the parts that are wanted, while some work is done: each part's first, parts as they are named."""
    parts = [(name, module) for name, module in model.named_modules() if name and wanted(module)]
    found: dict[str, Call] = {}
    with watched(parts, found), torch.no_grad():
        work()
    return [found[name] for name, _ in parts if name in found]


def outermost(found: Sequence[Call]) -> list[Call]:
    """Those that are inside of no other."""
    return [call for call in found if not any(call.name.startswith(f"{other.name}.") for other in found)]


def innermost(found: Sequence[Call]) -> list[Call]:
    """Those that have no other inside."""
    return [call for call in found if not any(other.name.startswith(f"{call.name}.") for other in found)]


@contextmanager
def watched(parts: list[tuple[str, nn.Module]], found: dict[str, Call]) -> Iterator[None]:
    """Write down the first call of each part."""

    def note(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        found.setdefault(name, Call(module, name, args, kwargs, output))

    hooks = [
        module.register_forward_hook(
            lambda module, args, kwargs, output, name=name: note(name, module, args, kwargs, output),
            with_kwargs=True,
        )
        for name, module in parts
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
