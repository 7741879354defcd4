"""The one place where a config becomes objects: Hydra's instantiate, with types checked and origins limited.

A config on the command line is the user's own word and may name any class. A config that was stored in a run's
folder may come from a stranger, so it may name only what a model, a dataset or an optimizer is made of.
"""

import functools
import inspect
import os
import pydoc
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any

# What a stored config may build: the names that these packages export ...
PUBLIC = ("zoo.nn", "zoo.models", "zoo.data")
# ... and what stands below these. Functions that read, write or run things (torch.load, torch.hub ...) do not.
STORED = (
    "zoo.pretrained",  # the first stage of a model of two, itself built by these rules
    "zoo.loading.pretrained",
    "zoo.training.schedules.",
    "zoo.training.loggers.",
    "zoo.training.compiled.Compiled",
    "zoo.training.sharding.Shards",
    "torch.nn.",
    "torch.optim.",
    "torchvision.transforms.",
    "lightning.Trainer",
    "lightning.pytorch.trainer.trainer.Trainer",
    "lightning.pytorch.callbacks.",
    "lightning.pytorch.loggers.",
    "lightning.pytorch.strategies.",
    "lightning.pytorch.profilers.",
)


def allowed(target: str, extra: Sequence[str] = ()) -> bool:
    """Whether a stored config may name this target; `extra` and the variable ZOO_ALLOW=a,b add packages.

    A module that stands here also has what it imports (torch.nn.init.torch.save), so where a thing was defined is
    asked too; of a package that the user added it is not.
    """
    own = [name for name in os.environ.get("ZOO_ALLOW", "").split(",") if name]
    if any(target.startswith(f"{name.rstrip('.')}.") for name in [*extra, *own]):
        return True
    if not (target.rpartition(".")[0] in PUBLIC or within(target, STORED)):
        return False
    try:
        found = pydoc.locate(target)
    except pydoc.ErrorDuringImport:
        return False
    home = f"{getattr(found, '__module__', None)}.{getattr(found, '__qualname__', None)}"
    # torch's own activations are defined in C
    return within(home, (*STORED, "torch._C._nn.", *(f"{package}." for package in PUBLIC)))


def within(name: str, places: Sequence[str]) -> bool:
    """Whether a dotted name is one of the places, or stands below one that ends with a dot."""
    return any(name == place or (place.endswith(".") and name.startswith(place)) for place in places)


def build(node: Any, key: str = "", *, stored: bool = False, allow: Sequence[str] = ()) -> Any:
    """What a config node describes: `_target_` called with the node's other keys.

    node        a mapping with `_target_` (and `_partial_: true` for a factory), or None, which gives None
    key         where the node stands in the whole config, for errors
    stored      the node comes from a run's folder: only what `allowed` admits is built
    Raises ValueError where a target is not admitted or an argument's type is wrong, and whatever a constructor
    itself raises, without Hydra's wrapping.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    if node is None:
        return None
    plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    if stored:
        admit(plain, key, allow)
    for path, part in targets(plain, key):
        check_types(part, path)
    try:
        return unwrapped(instantiate(plain, _convert_="all"))
    except InstantiationException as error:
        cause = error.__cause__
        while isinstance(cause, InstantiationException) and cause.__cause__ is not None:
            cause = cause.__cause__
        if cause is None or isinstance(cause, InstantiationException):
            raise ValueError(" ".join(str(error).split())) from None
        raise cause from None


def admit(plain: Any, key: str = "", allow: Sequence[str] = ()) -> None:
    """Raise ValueError where a config from a run's folder has an interpolation, or a target that is not admitted."""
    if found := next((name for name, text in texts(plain, key) if "${" in text), None):
        raise ValueError(f"the stored config has an interpolation at {found}: a run stores values only")
    for path, part in targets(plain, key):
        target = part["_target_"]
        if not allowed(target, allow):
            raise ValueError(
                f"the stored config names {target} (at {path or 'its top'}), which is not built from a file; "
                f"if you trust it: ZOO_ALLOW={target.split('.')[0]}"
            )


def targets(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every mapping with a `_target_` in a plain config, with its dotted path."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key, value in node.items():
            yield from targets(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from targets(value, f"{path}[{index}]")


def texts(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every string in a plain config, keys too, with its dotted path."""
    if isinstance(node, str):
        yield path, node
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from texts(str(key), path)
            yield from texts(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from texts(value, f"{path}[{index}]")


def check_types(node: dict[str, Any], path: str) -> None:
    """Hold a node's plain values to the annotations of the constructor that will get them.

    Raises ValueError: "model.dim='abc': Autoregressive takes int there".
    """
    from hydra.utils import get_object

    try:
        target = get_object(node["_target_"])
        parameters = inspect.signature(target).parameters
        hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except ImportError as error:
        raise ValueError(f"{path or 'config'}: cannot import {node['_target_']}: {error}") from None
    except Exception:  # no signature, unresolvable annotations: what cannot be read is not checked
        return
    for name, value in node.items():
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        if name.startswith("_") or (name not in parameters and takes_any):
            continue
        where = f"{path}.{name}" if path else name
        if name not in parameters:
            raise ValueError(
                f"{where}: {target.__name__} has no argument {name!r}; it has {', '.join(parameters)}"
            )
        hint = hints.get(name, Any)
        if not fits(value, hint):
            told = (
                getattr(hint, "__name__", None) if inspect.isclass(hint) else str(hint).replace("typing.", "")
            )
            raise ValueError(f"{where}={value!r}: {target.__name__} takes {told} there")


def fits(value: Any, hint: Any) -> bool:
    """Whether a plain value can be what an annotation says; only int, float, bool, str and None are judged."""
    if isinstance(value, dict | list | tuple):
        return True
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, option) for option in typing.get_args(hint))
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (bool, str):
        return isinstance(value, hint)
    if hint is type(None):
        return value is None
    if value is None or isinstance(value, str | int | float | bool):
        # a scalar where an object, a list or a tensor belongs
        return hint is Any or (origin is None and not inspect.isclass(hint)) or accepts_scalar(hint)
    return True


def accepts_scalar(hint: Any) -> bool:
    """Whether an annotation that is a class other than int, float, bool, str may be given a scalar: paths, Any."""
    return inspect.isclass(hint) and (hint is object or hasattr(hint, "__fspath__"))


def unwrapped(built: Any) -> Any:
    """Hydra's deferred targets as plain functools.partial: a call costs a thousandth."""
    if isinstance(built, functools.partial):
        return functools.partial(built.func, *built.args, **built.keywords)
    return built
