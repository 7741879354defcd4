"""What is made of a mixer and an encoding that are chosen apart: what each takes, and whether they work together.

A factory is a class, a function or a partial of one, called with what only its caller knows.
"""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from zoo.nn.position import NoPosition, Position, encodings, fits

Factory = Callable[..., Any]


class Mismatch(ValueError):
    """Two choices that do not work together; `instead` are the classes that would, for an error to name as choices."""

    def __init__(self, message: str, instead: Sequence[str]) -> None:
        super().__init__(message)
        self.instead = list(instead)


def kind(factory: Factory) -> Any:
    """The class, or function, that a factory calls in the end."""
    return factory.func if isinstance(factory, partial) else factory


def offered(factory: Factory, **arguments: Any) -> dict[str, Any]:
    """Those of the arguments that a factory has by name."""
    names = inspect.signature(factory).parameters
    return {name: value for name, value in arguments.items() if name in names}


def open_to(factory: Factory, **arguments: Any) -> dict[str, Any]:
    """Those of the arguments that a factory has by name and still leaves at None."""
    names = inspect.signature(factory).parameters
    return {name: arguments[name] for name in offered(factory, **arguments) if names[name].default is None}


def own_position(mixers: Sequence[Factory]) -> type[Position]:
    """The encoding that the mixers' classes name: of a hybrid, the first that is one."""
    own = [getattr(kind(mixer), "own", NoPosition) for mixer in mixers]
    return next((position for position in own if position is not NoPosition), NoPosition)


def check_fit(position: Factory, mixers: Sequence[Factory], causal: bool) -> list[Factory]:
    """The mixers that can do what an encoding asks.

    Raises Mismatch, a ValueError, if there is none, and names the encodings that do fit.
    """
    able = [mixer for mixer in mixers if fits(kind(position), kind(mixer), causal)]
    if not able:
        names = " and ".join(dict.fromkeys(kind(mixer).__name__ for mixer in mixers))
        good = [p.__name__ for p in encodings() if any(fits(p, kind(m), causal) for m in mixers)]
        raise Mismatch(
            f"position={kind(position).__name__} does not work with "
            f"{'causal' if causal else 'bidirectional'} {names}; "
            f"it takes {', '.join(good) or 'no encoding that is known'}",
            good,
        )
    return able


def shared_heads(mixers: Sequence[Factory]) -> int:
    """How many heads the mixers have, 1 if they have none.

    Raises ValueError if they differ: one encoding serves them all.
    """
    parameters = [inspect.signature(mixer).parameters for mixer in mixers]
    heads = {p["heads"].default for p in parameters if "heads" in p}
    if len(heads) > 1:
        raise ValueError(
            f"mixers with heads={sorted(heads)} cannot share one position encoding; give all the same"
        )
    return heads.pop() if heads else 1
