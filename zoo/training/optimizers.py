"""Parameter groups by pattern: which parameters decay, and which have a learning rate of their own.

A parameter's label is its name and the type of the module that owns it: "encoder.0.bias:Linear".
"""

import difflib
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn


def labels(model: nn.Module) -> dict[str, nn.Parameter]:
    """Label -> parameter, of all that are trained; a shared parameter once, under its first name."""
    found: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                found[f"{path}.{name}:{type(module).__name__}".lstrip(".")] = parameter
    return found


def grouped(model: nn.Module, groups: Sequence[Mapping[str, Any]] = ()) -> list[dict[str, Any]]:
    """Every trained parameter in exactly one optimizer group.

    groups   each {"match": pattern, "optional": bool, **options}; the pattern is searched for in labels, the
             first group that matches has the parameter, what none matches has the optimizer's own options
    Raises ValueError where a pattern matches nothing, unless its group is optional, with the nearest labels.
    """
    found = labels(model)
    if not found:
        raise ValueError(f"{type(model).__name__} has no parameter to train")
    parts: list[dict[str, Any]] = []
    left = dict(found)
    for group in groups:
        if not isinstance(group, Mapping) or "match" not in group:
            raise ValueError(f"optimizer.groups: {group} has no match, the pattern of its parameters' labels")
        try:
            pattern = re.compile(group["match"])
        except re.error as error:
            raise ValueError(
                f"optimizer.groups: {group['match']!r} is no regular expression: {error}"
            ) from None
        if not group.get("optional", False) and not any(pattern.search(label) for label in found):
            near = difflib.get_close_matches(group["match"], found, n=3, cutoff=0.0)
            raise ValueError(
                f"optimizer.groups: {group['match']!r} matches no parameter; "
                f"the nearest are {', '.join(near)}"
            )
        mine = [label for label in left if pattern.search(label)]
        options = {name: value for name, value in group.items() if name not in ("match", "optional")}
        parts.append({"params": [left.pop(label) for label in mine], **options})
    parts.insert(0, {"params": list(left.values())})
    return [part for part in parts if part["params"]]


def build(
    model: nn.Module, factory: Callable[..., torch.optim.Optimizer], groups: Sequence[Mapping[str, Any]] = ()
) -> torch.optim.Optimizer:
    """The optimizer of a model's groups.

    Raises ValueError where a group has an option that the optimizer does not know, or where fused=True meets
    complex parameters, which no fused kernel takes.
    """
    parts = grouped(model, groups)
    if isinstance(factory, functools.partial) and factory.keywords.get("fused"):
        strange = [label for label, parameter in labels(model).items() if not parameter.is_floating_point()]
        if strange:
            raise ValueError(
                f"{strange[0]} is complex, which fused optimizers cannot update; set optimizer.fused=false"
            )
    optimizer = factory(parts)
    known = {"params", *optimizer.defaults}
    for part in parts:
        if unknown := set(part) - known:
            raise ValueError(
                f"optimizer.groups: {type(optimizer).__name__} has no option {sorted(unknown)[0]!r}; "
                f"it has {', '.join(optimizer.defaults)}"
            )
    return optimizer
