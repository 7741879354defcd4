"""The masked autoencoder: Germain, Gregor, Murray and Larochelle 2015, Masked Autoencoder for Distribution Estimation.

x is an image of T elements, each with a rank, its place in the order in which they are read, from 0. A hidden unit of
degree d knows the elements of rank d and below; the output for rank t reads units of degrees below t.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from zoo.models.fully_visible import FullyVisible, terms
from zoo.models.pixels import scaled
from zoo.models.tokens import arranged, sequence
from zoo.nn.likelihood import Likelihood
from zoo.nn.masked_linear import MaskedLinear


class MADE(FullyVisible):
    """An autoencoder whose masks leave no way from an element to its own output, or to an earlier one.

    With several masks, step k trains with mask k mod M, and what it models is their mixture,
    p(x) = 1/M sum_m p_m(x): a mean over joint probabilities, as in section 4 of the paper, not over pixels.

    hidden        widths of the hidden layers
    masks         M: connectivity-agnostic training, for M > 1
    random_order  read in a random order, one for each mask (order-agnostic training), not by row, column, channel
    direct        weights from the elements to the outputs, beside the hidden layers
    activation    of the hidden layers
    seed          of degrees and orders
    likelihood    as zoo.models.fully_visible has it, which also says what data are Unfit

    ValueError for masks < 1.
    """

    ranks: Tensor

    def __init__(
        self,
        *,
        shape: Sequence[int],
        levels: int | None,
        hidden: Sequence[int] = (8000,),
        masks: int = 1,
        random_order: bool = False,
        direct: bool = False,
        activation: Callable[[], nn.Module] = nn.ReLU,
        seed: int = 0,
        likelihood: Callable[[int], Likelihood] | None = None,
    ) -> None:
        super().__init__(shape, levels, likelihood=likelihood)
        if masks < 1:
            raise ValueError(f"masks={masks}: there is at least one")
        self.random_order, self.masks, self.current = random_order, masks, 0
        if random_order:
            several = f", {masks} of them" if masks > 1 else ""
            self.protocol["order"] = f"random{several}, seed {seed}"
        self.protocol["masks"] = masks
        self.features = self.likelihood.features((1, 1, 1))
        layers = degrees(math.prod(shape), hidden, masks, random_order, torch.Generator().manual_seed(seed))
        self.register_buffer("ranks", layers[0])
        self.hidden = nn.ModuleList(MaskedLinear(a, b, activation=activation) for a, b in pairwise(layers))
        self.output = MaskedLinear(layers[-1], layers[0], strict=True, features=self.features)
        self.direct = None
        if direct:
            self.direct = MaskedLinear(layers[0], layers[0], strict=True, features=self.features, bias=False)

    @property
    def blocks(self) -> list[nn.Module]:
        """What gradient checkpointing may recompute."""
        return [*self.hidden, self.output]

    def at(self, step: int) -> None:
        """Masks take turns, a step of training each."""
        self.current = step % self.masks

    def forward(self, x: Tensor, y: Tensor | None = None, m: int = 0) -> Tensor:
        """What the m-th mask says of each element, by rank: (B, C, H, W) -> (B, F, T, 1)."""
        x = scaled(sequence(x), self.levels, self.output.weight.dtype)
        h = x
        for layer in self.blocks:
            h = layer(h, m)
        if self.direct is not None:
            h = h + self.direct(x, m)
        return h.unflatten(1, (self.features, -1))[:, :, self.ranks[m].argsort(), None]

    def loss(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        """loss: nats per element; nats: per example, of one mask in training, else of all; y is not used."""
        log_p = self._log_prob(x, self.current) if self.training else self.log_prob(x)
        return terms(log_p, x[0].numel())

    def log_prob(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """log p(x) in nats, (B,), p the mean over all masks; y is not used."""
        each = torch.stack([self._log_prob(x, m) for m in range(self.masks)])
        return each.logsumexp(0) - math.log(self.masks)

    def fill(self, tokens: Tensor, P: int, y: Tensor | None, temperature: float) -> None:
        """Each image by one of the masks, at the cost of one forward pass: a unit is computed when it knows all that it
        may. ValueError for a prompt to a model of several orders. y is not used.
        """
        if P and self.random_order and self.masks > 1:
            raise ValueError(f"a prompt has no place in {self.masks} orders; sample from random_order=false")
        chosen = torch.zeros(len(tokens), dtype=torch.int64, device=tokens.device)
        if self.masks > 1:
            chosen = torch.distributions.Categorical(logits=self._chances(tokens, P)).sample()
        for m in range(self.masks):
            here = chosen == m
            if here.any():
                filled = self._filled(tokens[here], P, m, temperature)
                tokens[here] = filled[:, self.ranks[m, self.ranks[0].argsort()]]

    def image(self, tokens: Tensor) -> Tensor:
        """Elements in the order of the first mask as data: (n, T) -> (n, C, H, W)."""
        return super().image(tokens[:, self.ranks[0]])

    def _log_prob(self, x: Tensor, m: int, first: int | None = None) -> Tensor:
        """log p_m of the elements, or of the first of them: (B,)."""
        told = sequence(x)[:, None, self.ranks[m].argsort(), None]
        return self.likelihood.log_prob(self(x, m=m)[:, :, :first], told[:, :, :first])

    def _chances(self, tokens: Tensor, P: int) -> Tensor:
        """How probable each mask is, given the first P elements: (n, M), log up to a constant."""
        if P == 0:
            return torch.zeros(len(tokens), self.masks, device=tokens.device)
        x = arranged(tokens, self.shape, self.levels)
        return torch.stack([self._log_prob(x, m, P) for m in range(self.masks)], 1)

    def _filled(self, tokens: Tensor, P: int, m: int, temperature: float) -> Tensor:
        """Elements by rank (n, T), the first P of which are known, drawn by the m-th mask."""
        T = tokens.shape[1]
        order = self.ranks[m].argsort().tolist()
        # what is not yet known is 0, and so is whoever would know it: masks are kept without being applied
        known = torch.zeros(len(tokens), T, dtype=self.output.weight.dtype, device=tokens.device)
        values = [known] + [known.new_zeros(len(known), layer.weight.shape[0]) for layer in self.hidden]
        units = [[(layer.leave[m] == t).nonzero()[:, 0] for t in range(T)] for layer in self.hidden]
        for t in range(T):
            if t >= P:
                which = slice(order[t], None, T)
                here = self.output.rows(values[-1], which)
                if self.direct is not None:
                    here = here + self.direct.rows(known, which)
                here = here[:, :, None, None]  # (n, F, 1, 1)
                tokens[:, t] = self.likelihood.sample(here, temperature=temperature).flatten()
            known[:, order[t]] = scaled(tokens[:, t], self.levels, known.dtype)
            for layer, of, below, above in zip(self.hidden, units, values, values[1:]):
                if len(of[t]):
                    above[:, of[t]] = layer.rows(below, of[t]).to(above.dtype)
        return tokens


def degrees(
    length: int, hidden: Sequence[int], masks: int, random_order: bool, generator: torch.Generator
) -> list[Tensor]:
    """Ranks of the elements (M, T), then degrees of each hidden layer (M, H): drawn evenly from the least degree
    before them to T - 2, since nothing may read a unit that knows the last element."""
    layers: list[list[Tensor]] = [[] for _ in range(1 + len(hidden))]
    for _ in range(masks):
        here = torch.randperm(length, generator=generator) if random_order else torch.arange(length)
        layers[0].append(here)
        for layer, width in zip(layers[1:], hidden):
            least = min(int(here.min()), max(length - 2, 0))
            here = torch.randint(least, max(length - 1, 1), (width,), generator=generator)
            layer.append(here)
    return [torch.stack(layer) for layer in layers]
