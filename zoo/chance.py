"""Chance as a function of the seed and the place; nothing about it is stored.

A place is a few integers and strings: ("train", seed, epoch, batch). Before anything random happens at a place, all
generators of the process are keyed to it. So a run that was killed and resumed draws what the unbroken run drew,
workers change nothing, and a validation in between changes nothing of the training.

Of several processes that share a batch each draws the numbers of the whole batch, and takes its own rows: `dealt`.
"""

import contextlib
import functools
import hashlib
import random
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

MPS = torch.backends.mps.is_available()


def key(*place: int | str) -> int:
    """An integer in [0, 2^63) from a place: blake2b of its repr, the same on every machine."""
    digest = hashlib.blake2b(repr(place).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def at(*place: int | str) -> None:
    """Key python's, numpy's and torch's default generators to a place; CUDA's too, once it is in use."""
    number = key(*place)
    random.seed(number)
    np.random.seed(number & 0xFFFFFFFF)
    torch.default_generator.manual_seed(number)  # 1 us; torch.manual_seed visits all backends and takes 130
    if torch.cuda.is_initialized():
        for generator in torch.cuda.default_generators:
            generator.manual_seed(number)
    if MPS:
        torch.mps.manual_seed(number)


ALONE = contextlib.nullcontext()


def dealt(
    *places: tuple[int | str, ...], rows: Sequence[int], rank: int = 0, world: int = 1
) -> contextlib.AbstractContextManager:
    """Key the process to its share of a batch; within the context, numbers for its rows are those of one process.

    places   of the batch, each with as many of its `rows`; several where one process would have several batches
    rank     this process has the rows rank, rank + world, rank + 2 world ... of them all

    What torch draws for a tensor with a dimension of the batch is drawn for the whole batch, from a generator that
    all processes key to the place. All else (dropout, numpy, what has no such dimension) comes from the default
    generators, which each process keys to its own rank: independent, and equal in distribution to one process.
    A single process is keyed to the place with rank 0, and nothing more.
    """
    if world == 1:
        at(*places[0], 0)
        return ALONE
    at(*places[0], rank, world)  # not rank 0's own place: its dropout would know the noise
    return Dealt([key(*place, 0) for place in places], rows, rank, world)


class Dealt:
    """A context in which torch's own functions draw for the whole batch and give this process's rows.

    keys    of the generators, each for so many of the `rows`
    The batch's dimension is the first that is as long as this process's share; where there is none, the first of
    all if it is a multiple of that, as of images whose pixels are rows. Functions are replaced, for a
    TorchFunctionMode would cost about 1 us at each operation of the model.
    """

    now: "Dealt"  # whose context it is

    def __init__(self, keys: Sequence[int], rows: Sequence[int], rank: int, world: int) -> None:
        self.keys, self.rows, self.rank, self.world = keys, rows, rank, world
        self.share = len(range(rank, sum(rows), world))
        self.generators: dict[torch.device, list[torch.Generator]] = {}

    def __enter__(self) -> None:
        Dealt.now = self
        makers, fillers = dealers(compiling="torch._dynamo" in sys.modules)
        for name, function in makers.items():
            setattr(torch, name, function)
        for name, function in fillers.items():
            setattr(torch.Tensor, name, function)

    def __exit__(self, *error: Any) -> None:
        for name, function in MAKERS.items():
            setattr(torch, name, function)
        for name in FILLERS:
            delattr(torch.Tensor, name)  # torch.Tensor inherits them

    def made(self, name: str, function: Callable[..., Tensor], *args: Any, **options: Any) -> Tensor:
        """torch.randn and its like, of this process's rows."""
        if options.get("generator") is not None or options.get("out") is not None:
            return function(*args, **options)
        like = function(*args, **(options | {"device": "meta"}))  # its shape, type and strides
        near = args[0].device if name.endswith("_like") else torch.get_default_device()
        device = torch.empty(0, device=options.get("device") or near).device
        drawn = self.rows_of(like, device, functools.partial(fill, name, bounds(name, args, options)))
        return function(*args, **options) if drawn is None else drawn

    def rows_of(
        self, like: Tensor, device: torch.device, draw: Callable[[Tensor, torch.Generator], Any]
    ) -> Tensor | None:
        """This process's rows of what is drawn for the whole batch; None where no dimension is the batch's."""
        shape, share = list(like.shape), self.share
        if share in shape:
            batch, each = shape.index(share), 1
        elif shape and shape[0] and share and shape[0] % share == 0:
            batch, each = 0, shape[0] // share
        else:
            return None
        if torch._C._current_graph_task_id() != -1:
            raise RuntimeError(
                "a block draws random numbers and is computed again in the backward pass, where on several devices "
                "they would be others; draw them in loss, or set gradient_checkpointing=none"
            )
        if device not in self.generators:
            self.generators[device] = [torch.Generator(device).manual_seed(number) for number in self.keys]
        order = sorted(range(like.dim()), key=like.stride, reverse=True)
        options: dict[str, Any] = {"dtype": like.dtype, "device": device}
        parts = []
        for rows, generator in zip(self.rows, self.generators[device]):
            shape[batch] = rows * each
            parts.append(torch.empty_permuted(shape, order, **options))
            draw(parts[-1], generator)
        whole = torch.cat(parts, batch).movedim(batch, 0).unflatten(0, (-1, each))
        mine = whole[self.rank :: self.world].flatten(0, 1).movedim(0, batch)
        return torch.empty_permuted(like.shape, order, **options).copy_(mine)


@functools.cache
def dealers(*, compiling: bool) -> tuple[dict[str, Callable[..., Tensor]], dict[str, Callable[..., Tensor]]]:
    """What stands in for torch's functions and for a tensor's methods: they ask whoever deals now.

    The same ones at every batch, into which torch.compile does not look: else it would compile every batch anew. Where
    nothing is compiled nothing is hidden, for that alone would import the compiler, for seconds.
    """

    def maker(name: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *args, **options: Dealt.now.made(name, function, *args, **options)

    def filler(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda tensor, *args, **options: filled(tensor, Dealt.now, function, *args, **options)

    hidden = torch.compiler.disable if compiling else lambda function: function
    return (
        {name: hidden(maker(name, function)) for name, function in MAKERS.items()},
        {name: hidden(filler(function)) for name, function in FILLERS.items()},
    )


def filled(
    tensor: Tensor, deal: Dealt, function: Callable[..., Tensor], *args: Any, **options: Any
) -> Tensor:
    """Tensor.normal_ and its like, of this process's rows."""
    if options.get("generator") is not None or any(isinstance(value, Tensor) for value in args):
        return function(tensor, *args, **options)
    options.pop("generator", None)
    drawn = deal.rows_of(
        tensor, tensor.device, lambda whole, generator: function(whole, *args, generator=generator, **options)
    )
    return function(tensor, *args, **options) if drawn is None else tensor.copy_(drawn)


def fill(name: str, limits: tuple[int, ...], whole: Tensor, generator: torch.Generator) -> None:
    """Draw as the function of this name draws."""
    kind = name.removesuffix("_like")
    filler = {"rand": "uniform_", "randn": "normal_", "randint": "random_"}[kind]
    FILLERS[filler](whole, *limits, generator=generator)


def bounds(name: str, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[int, ...]:
    """The low and the high of randint and randint_like; () for all others."""
    if not name.startswith("randint"):
        return ()
    given = [value for value in args if isinstance(value, int)]
    given += [options[word] for word in ("low", "high") if word in options]
    return (0, *given) if len(given) == 1 else tuple(given)


MAKERS = {name: getattr(torch, name) for name in (
    "rand", "randn", "randint", "rand_like", "randn_like", "randint_like",
)}  # fmt: skip
FILLERS = {name: getattr(torch.Tensor, name) for name in (
    "normal_", "uniform_", "random_", "exponential_", "bernoulli_",
)}  # fmt: skip
