"""Whether every field of a model's config changes something: a knob that does nothing is worse than none.

A field is a leaf of the config, "dim" or "mixer.heads". It is turned to a few other values, one at a time; the model
made with it, from the same seed, is then another in its weights, its loss, its gradients, what it says of the data or
what it draws. Bits count: a chunk's size changes sums' order, and that is seen.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zoo.evaluation.checks.finding import Batch, Finding, fails, gradients, holds, loss, silent
from zoo.evaluation.checks.weights import outputs
from zoo.types import Scheduled, can

FACTS = ("shape", "levels", "classes", "targets", "source_levels")  # of the data, not of the model
LATER = (100, 10_000, 1_000_000)  # steps at which a schedule may have changed something
NULL = (1, 2, 0.5, True, False)  # what stands for a value that is not set


Node = Mapping[str, Any]
Path = tuple[Any, ...]  # keys and places in lists, from the top
Build = Callable[[Node, Batch], nn.Module]


def fields(node: Node, batch: Batch, build: Build) -> Finding:
    """Every field changes something, of weights, loss, gradients, likelihood or samples.

    node   the model's config, resolved: a mapping with `_target_`, others inside of it
    build  makes a model of such a config for such a batch, always from the same seed
    A field that does nothing is tried again with data of two levels, and with each other field turned: it may matter
    there only. Fields that are words, and those for which no other value can be built, are not tried, and told.
    """
    seen = {path: effect(node, batch, path, build) for path, _ in leaves(node)}
    idle = [
        path
        for path, found in seen.items()
        if found is False
        and not any(effect(*place, path, build) for place in elsewhere(node, batch, path, build))
    ]
    untried = [named(path) for path, found in seen.items() if found is None]
    rest = f"; not tried: {', '.join(untried)}" if untried else ""
    if idle:
        return fails(
            f"{', '.join(map(named, idle))}: no other value changes weights, loss, gradients or samples{rest}"
        )
    if len(untried) == len(seen):
        return silent(f"it has no field that can be turned{rest}")
    return holds(f"each of {len(seen) - len(untried)} fields changes something{rest}")


def effect(node: Node, batch: Batch, path: Path, build: Build) -> bool | None:
    """Whether some other value of a field makes another model; None where no other value can be built."""
    before, found = None, None
    for other in others(value_at(node, path)):
        model = built(build, replaced(node, path, other), batch)
        if model is None:
            continue
        before = before or Seen(build(node, batch), batch)
        if before.differs(model, batch):
            return True
        found = False
    return found


def elsewhere(node: Node, batch: Batch, path: Path, build: Build) -> Iterator[tuple[Node, Batch]]:
    """Other configs and data in which a field may matter."""
    if (node.get("levels") or 0) > 2 and not torch.is_floating_point(batch["x"]):
        binary = ({**node, "levels": 2}, {**batch, "x": batch["x"].clamp(min=0) % 2})
        if built(build, *binary) is not None:
            yield binary
    for other, value in leaves(node):
        turned = (replaced(node, other, new) for new in others(value) if other != path)
        found = next((one for one in turned if built(build, one, batch) is not None), None)
        if found is not None:
            yield found, batch


def built(build: Build, node: Node, batch: Batch) -> nn.Module | None:
    """The model of a config, None where there can be none of it."""
    try:
        return build(node, batch)
    except (ValueError, TypeError, RuntimeError, LookupError, ArithmeticError):
        return None


class Seen:
    """A model as it is from outside: its weights, and what it does with a batch, found out when it is asked for."""

    def __init__(self, model: nn.Module, batch: Batch) -> None:
        self.state = {name: value.clone() for name, value in model.state_dict().items()}
        self.views = [view(model, batch) for view in VIEWS]

    def differs(self, model: nn.Module, batch: Batch) -> bool:
        """Whether another model can be told from this one; the cheap things are looked at first.

        One that can be made and not be used is another.
        """
        if not same(self.state, model.state_dict()):
            return True
        try:
            return any(not same(known, view(model, batch)) for known, view in zip(self.views, VIEWS))
        except (ValueError, TypeError, RuntimeError, LookupError, ArithmeticError):
            return True


def _learning(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    terms, found = gradients(model, batch)
    return terms | {f"gradient of {name}": value for name, value in found.items()}


def _later(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    if not can(model, Scheduled):
        return {}
    model.train()
    with torch.no_grad():
        return {
            f"{step} {name}": value.clone()
            for step in LATER
            for name, value in loss(model, batch, step).items()
        }


VIEWS: tuple[Callable[[nn.Module, Batch], dict[str, Tensor]], ...] = (_learning, outputs, _later)


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether all tensors are equal, bit by bit."""
    return a.keys() == b.keys() and all(
        a[name].shape == b[name].shape and torch.equal(torch.nan_to_num(a[name]), torch.nan_to_num(b[name]))
        for name in a
    )


def leaves(node: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """(path, value) of each field: a value that is no mapping; a list of plain values is one."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if not str(key).startswith("_") and not (not path and key in FACTS):
                yield from leaves(value, (*path, key))
    elif isinstance(node, list) and any(isinstance(value, Mapping | list) for value in node):
        for i, value in enumerate(node):
            yield from leaves(value, (*path, i))
    elif path:
        yield path, node


def others(value: Any) -> list[Any]:
    """Other values that a field may have, likely ones first."""
    if isinstance(value, bool):
        return [not value]
    if value is None:
        return list(NULL)
    if isinstance(value, int):
        return [
            n for n in (2 * value, value // 2, value + 1, value - 1, 1) if n != value and (n > 0 or value < 1)
        ]
    if isinstance(value, float):
        return [2 * value, value / 2] if value else [0.1, 0.5, -0.5]
    if isinstance(value, list) and value and all(isinstance(n, int | float) for n in value):
        return [[2 * n for n in value], [*value, value[-1]], value[:-1], [n / 2 for n in value]]
    return []


def named(path: Path) -> str:
    """A field as it is typed: "mixer.heads"."""
    return ".".join(map(str, path))


def value_at(node: Any, path: Path) -> Any:
    """A field's value."""
    for key in path:
        node = node[key]
    return node


def replaced(node: Any, path: Path, value: Any) -> Any:
    """A copy of a nested config with another value at a path."""
    if not path:
        return value
    first, rest = path[0], path[1:]
    if isinstance(node, list):
        return [replaced(found, rest, value) if i == first else found for i, found in enumerate(node)]
    return {key: replaced(found, rest, value) if key == first else found for key, found in node.items()}
