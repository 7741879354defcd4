"""The contracts of the house: what a model, a dataset and their abilities are. Structural, nothing to inherit.

x is data as the dataset gives it: integers in [0, levels), or real numbers where levels is None.
y is what belongs to an example: a label, a caption, targets. z is a latent. Log-probabilities are in nats.
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

PAD = -1  # marks a token that is not there: no loss, no metric and no likelihood counts it

Kind = Literal["exact", "lower bound", "estimate"]


class Space(NamedTuple):
    """What one example looks like, before any model has touched it.

    shape   size without the batch: (1, 28, 28), (256,), (4, 8, 8)
    levels  symbols per element: 2 for binary, 256 for bytes, V for text; None for real numbers
    """

    shape: tuple[int, ...]
    levels: int | None = None


class Unfit(ValueError):
    """Data that a model cannot be made for; `fits(space)` tells which data it can, so that an error can list them."""

    def __init__(self, message: str, fits: Callable[[Space], bool]) -> None:
        super().__init__(message)
        self.fits = fits


@runtime_checkable
class Dataset(Protocol):
    """A map-style dataset that is indexed a batch at a time.

    It may also have `fingerprint` (a hash of its content), `counts` (how many characters, bytes or words its split
    has, for units per symbol of text), `decode(x)` (tokens back to text) and `to(device)`. What is drawn anew each
    time an example is seen comes from torch's default generator, which the loader has keyed to the place.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Tensor) -> dict[str, Tensor]:
        """indices (B,) -> {"x": (B, *shape)} and, where there are, {"y": (B, ...)}."""
        ...


@runtime_checkable
class Trainable(Protocol):
    """Whoever has a loss is a model."""

    def loss(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        """Scalars: "loss" is minimised, the others are logged, in nats per example unless the name says otherwise."""
        ...


@runtime_checkable
class Sampler(Protocol):
    """Draws fresh examples.

    One whose options depend on each other may have `of_use(options)`: of those of `sample` in force the ones that had
    a say, {name: value}, which alone stand in a protocol.
    """

    def sample(self, n: int, y: Tensor | None = None, **options: Any) -> Tensor:
        """n examples in data space, (n, *shape), the data's own kind of numbers."""
        ...


@runtime_checkable
class Density(Protocol):
    """Tells how probable data is; `kind` says what its log_prob is of the true value.

    One whose log_prob is slow may have `on_request`: if it is true, evaluation asks only where `metrics` names nll.
    """

    kind: Kind

    def log_prob(self, x: Tensor, y: Tensor | None = None, **options: Any) -> Tensor:
        """log p(x) in nats, (B,), of the data exactly as the dataset gives them."""
        ...


@runtime_checkable
class Codec(Protocol):
    """Turns data into latents and back; `latent` is the space of what encode returns."""

    latent: Space

    def encode(self, x: Tensor) -> Tensor: ...

    def decode(self, z: Tensor) -> Tensor: ...


@runtime_checkable
class Prepared(Protocol):
    """Has parts that are measured, not learned."""

    def prepare(self, batches: Iterable[dict[str, Tensor]]) -> None:
        """Measure from training batches, as many as it needs; called once, before anything else runs."""
        ...


@runtime_checkable
class Scheduled(Protocol):
    """Has parts that depend on the step; loss never counts its own calls."""

    def at(self, step: int) -> None:
        """The number of optimizer steps done; called before every batch and after every step."""
        ...


@runtime_checkable
class Measured(Protocol):
    """Has a health that is seen over an epoch only: codebook use, active units, accuracy over counted tokens.

    It may have `unwell(told)`: what is bad about the numbers of `summarize`, each in a sentence with a cure.
    """

    def statistics(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        """Sums, which are added over batches and ranks."""
        ...

    def summarize(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """Named numbers, from the sums over a whole split."""
        ...


def can(model: object, contract: type) -> bool:
    """Whether a model has the ability that a contract of this module names.

    A model made of parts has a method `can(contract)` and decides by what its parts allow; for any other the
    methods that it has decide.
    """
    decide = getattr(model, "can", None)
    return bool(decide(contract)) if callable(decide) else isinstance(model, contract)


def scored(x: Tensor) -> Tensor:
    """Where there is a symbol: (B, *shape) of booleans, False at PAD, which only signed integers can be."""
    if torch.is_floating_point(x) or not x.dtype.is_signed:  # as uint8, PAD would be 255: white
        return torch.ones_like(x, dtype=torch.bool)
    return x != PAD
