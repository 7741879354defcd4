"""Normalizing flows: a bijection between data and a simple distribution; Dinh et al. 2014 and 2016.

x is data as the dataset gives it, v = x + u the same in real numbers (u from a dequantization; where the data are real,
v = x), z = f(v) a latent (B, D). Everything is in the units of the data: log p(v) = log p(z) + log|det dz/dv|.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.bases import ByClass, Gaussian
from zoo.nn.bijections import Chain, Flatten, Squeeze, leaves, runs
from zoo.nn.dequantization import UniformDequantization, padded, real
from zoo.nn.likelihood import whole
from zoo.nn.preprocessing import Whitening
from zoo.nn.scalings import RunningNorm
from zoo.types import Kind, Space

FIRST = 512  # examples, or a few more, that norms are measured on: Glow's code takes 256
STEEP = 5.0  # nats by which a layer may stretch each dimension; e^5 is 148


class Flow(nn.Module):
    """A flow of images of integers, or of real numbers.

    integers   log p(x) >= E_u [log p(x + u) - log q(u | x)], a bound; loss is its negative in nats
    reals      log p(x) exactly, a density

    bijection       a Chain from what `preprocess` gives to z (B, D)
    preprocess      bijections, called first: Rescale, Logit, Whitening of zoo.nn
    base            makes p(z): zoo.nn.Gaussian or Logistic
    dequantization  dequantization(shape, levels): zoo.nn.UniformDequantization, VariationalDequantization
    conditional     model p(x | y): the base has a mean and a scale for each class
    multiple        images are padded with zeros to sides that this divides. They are paid for: the bound is on the
                    probability of the padded image, which the image alone decides, over the image's dimensions

    ValueError for conditional=True without classes.
    """

    def __init__(
        self,
        bijection: Chain,
        *,
        shape: Sequence[int],
        levels: int | None,
        classes: int | None = None,
        conditional: bool = False,
        preprocess: Sequence[nn.Module] = (),
        base: Callable[[], nn.Module] = Gaussian,
        dequantization: Callable[..., nn.Module] = UniformDequantization,
        multiple: int = 1,
    ) -> None:
        super().__init__()
        if conditional and not classes:
            raise ValueError(
                "conditional=true needs labels, and this data has no classes; try conditional=false"
            )
        self.shape, self.levels = tuple(shape), levels
        self.conditional, self.classes = conditional, classes
        enter = padded(shape, multiple) if multiple > 1 else self.shape
        self.margins = [side for a, b in zip(self.shape[:0:-1], enter[:0:-1]) for side in around(b - a)]
        self.latent = Space((math.prod(enter),))
        self.kind: Kind = "exact" if levels is None else "lower bound"
        self.protocol = {}
        self.dequantization = None
        if levels is not None:
            self.dequantization = dequantization(enter, levels)
            self.protocol["dequantization"] = self.dequantization.name
        if enter != self.shape:
            self.protocol["padded"] = f"to {enter[1]} x {enter[2]}"
        self.preprocess = Chain(*preprocess)
        self.bijection = bijection
        self.base = ByClass(base(), self.latent.shape[0], classes) if conditional else base()
        self.norms = [part for part in bijection.modules() if isinstance(part, RunningNorm)]
        self.step: int | None = None  # the last that `at` was told

    @property
    def runs(self) -> list[list[nn.Module]]:
        """Blocks that are called one after the other, scale by scale."""
        return runs(self.bijection)

    @property
    def blocks(self) -> list[nn.Module]:
        """What gradient checkpointing may recompute."""
        return [block for run in self.runs for block in run]

    def loss(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        """One draw of u per example: nats, and its parts -log p(z), -log|det dz/dv| and log q(u | x)."""
        with self._watched():
            base, log_det, log_q = (part.mean() for part in self._terms(x, y))
        nats = log_q - base - log_det
        return {"loss": nats, "nats": nats, "base": -base, "log_det": -log_det, "dequantization": log_q}

    @torch.no_grad()
    def log_prob(self, x: Tensor, y: Tensor | None = None, *, samples: int = 1) -> Tensor:
        """log p(x), or log p(x | y), in nats, (B,), float64, without gradients.

        For integers the importance-weighted bound, log 1/K sum_k p(x + u_k) / q(u_k | x) with K = samples draws of
        u: its mean grows with K towards log p(x). For real numbers it is exact, and draws nothing.
        ValueError for samples < 1.
        """
        if samples < 1:
            raise ValueError(f"samples={samples}: the bound takes at least one draw")
        draws = samples if self.levels else 1
        weights = []
        for _ in range(draws):
            base, log_det, log_q = self._terms(x, y)
            weights.append((base + log_det - log_q).double())
        return torch.stack(weights).logsumexp(0) - math.log(draws)

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, temperature: float = 1.0) -> Tensor:
        """n examples, (n, *shape), the data's own kind of numbers.

        y            (n,) classes; where they are missing and needed, drawn evenly
        temperature  scales the base's noise: below 1 samples are likelier and less diverse, at 0 all the same
        """
        like = next(self.parameters())
        like = torch.empty(n, *self.latent.shape, dtype=like.dtype, device=like.device)
        if self.conditional and y is None:
            y = torch.randint(self.classes, (n,), device=like.device)
        return self.decode(self.base.sample(like, y, temperature=temperature))

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """The latent of x, (B, D); of integers, that of the middle of their bins."""
        v = self._real(x)
        return self.transform(v if self.levels is None else v + 0.5)[0]

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """The data that a latent stands for: (B, D) -> (B, *shape). decode(encode(x)) is x."""
        v = self.preprocess.inverse(self.bijection.inverse(z))
        v = F.pad(v, [-side for side in self.margins])
        return v if self.levels is None else whole(v.floor().clamp(0, self.levels - 1), self.levels)

    @torch.no_grad()
    def prepare(self, batches: Iterable[dict[str, Tensor]]) -> None:
        """Measure the whitening on all batches, then each norm, in order, on what the first 512 examples become."""
        batches = (batch["x"] for batch in batches)
        first: list[Tensor] = []
        while sum(map(len, first)) < FIRST and (more := list(islice(batches, 1))):
            first += more
        v = torch.cat([self._dequantized(x)[0] for x in first])
        for layer in self.preprocess.layers:
            if isinstance(layer, Whitening):
                before = self.preprocess.layers[: list(self.preprocess.layers).index(layer)]
                layer.measure(
                    Chain(*before)(part)[0]
                    for part in chain(v.split(FIRST), (self._dequantized(x)[0] for x in batches))
                )
        self.bijection.initialize(self.preprocess(v)[0])

    def at(self, step: int) -> None:
        """Bring the moments that the last step's batches had into the running norms."""
        if step != self.step:
            for norm in self.norms:
                norm.update()
        self.step = step

    @torch.no_grad()
    def statistics(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        """Sums over the batch: the largest error of inverse(forward(v)), and log|det| of each layer (L,), float64."""
        v, _ = self._dequantized(x)
        found: list[Tensor] = []
        layers = [layer for part in (self.preprocess, self.bijection) for _, layer in leaves(part)]
        hooks = [layer.register_forward_hook(lambda *call: found.append(call[2][1])) for layer in layers]
        z, _ = self.transform(v)
        for hook in hooks:
            hook.remove()
        back = self.preprocess.inverse(self.bijection.inverse(z))
        return {
            "count": torch.tensor(len(x), device=x.device),
            "inverse_error": (back - v).abs().flatten(1).amax(1).double().sum(),
            "log_det": torch.stack(found).double().sum(1),
        }

    def summarize(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """The mean over examples of the largest error of inverse(forward(v)), in units of the data, and log|det|
        in nats per dimension: for each kind of layer on each scale, and of the layer that has most.

        log_det_steepest_layer is the place of the latter among the flow's layers, from 1.
        """
        D = self.latent.shape[0]
        by_layer = (sums["log_det"] / sums["count"] / D).tolist()
        first = [("data", layer) for _, layer in leaves(self.preprocess)]
        layers = first + [(str(scale), layer) for scale, layer in leaves(self.bijection)]
        told = {"inverse_error": float(sums["inverse_error"] / sums["count"])}
        for (scale, layer), value in zip(layers, by_layer):
            if not isinstance(layer, Squeeze | Flatten):  # which stretch nothing
                key = f"log_det_{scale}_{type(layer).__name__}"
                told[key] = told.get(key, 0.0) + value
        steepest = max(range(len(first), len(layers)), key=lambda i: abs(by_layer[i]))
        told["log_det_steepest"] = by_layer[steepest]
        told["log_det_steepest_layer"] = float(steepest - len(first) + 1)
        return told

    def unwell(self, told: dict[str, float]) -> list[str]:
        """A sentence where a layer of the flow stretches or squeezes each dimension by more than e^5."""
        if abs(told["log_det_steepest"]) <= STEEP:
            return []
        layers, place = list(leaves(self.bijection)), int(told["log_det_steepest_layer"])
        scale, layer = layers[place - 1]
        return [
            f"layer {place} of {len(layers)}, {type(layer).__name__} on scale {scale}, has a log-determinant of "
            f"{told['log_det_steepest']:.1f} nats per dimension: it explodes; try a lower learning rate, a longer "
            "warm-up, or gradient clipping"
        ]

    def transform(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """v (B, *padded shape) in the data's units -> z (B, D), log|det dz/dv| (B,)."""
        h, log_det = self.preprocess(v)
        z, more = self.bijection(h)
        return z, log_det + more

    def _terms(self, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """log p(z), log|det dz/dv| and log q(u | x): (B,) each."""
        if self.conditional and y is None:
            raise ValueError("a model with conditional=true needs y, the labels of x")
        v, log_q = self._dequantized(x)
        z, log_det = self.transform(v)
        return self.base.log_prob(z, y), log_det, log_q

    def _dequantized(self, x: Tensor) -> tuple[Tensor, Tensor]:
        v = self._real(x)
        return (v, v.new_zeros(len(v))) if self.dequantization is None else self.dequantization(v)

    def _real(self, x: Tensor) -> Tensor:
        """x in the parameters' type, padded; of images the channels are last in memory: convolutions are faster so."""
        v = F.pad(real(x, next(self.parameters()).dtype), self.margins)
        return v.contiguous(memory_format=torch.channels_last) if v.dim() == 4 else v

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Running norms take note of what passes, if it is trained on; not of its recomputation later."""
        for norm in self.norms:
            norm.watching = self.training and torch.is_grad_enabled()
        try:
            yield
        finally:
            for norm in self.norms:
                norm.watching = False


def around(extra: int) -> tuple[int, int]:
    """How many zeros stand before and after what is padded by so many."""
    return extra // 2, extra - extra // 2
