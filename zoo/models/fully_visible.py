"""Fully visible belief networks of images: Frey 1998. No latents; every element is told from those before it.

x is an image of integers, or of codes, (B, C, H, W), of T elements; y (B,) are labels. Tokens (n, T) are the elements
in the order in which a model reads, by row, column and channel if it says no other. A prompt (n, P) are the first P.
"""

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from zoo.models.tokens import arranged, sequence
from zoo.nn.likelihood import Bernoulli, Categorical, Likelihood
from zoo.types import Kind, Space, Unfit


class FullyVisible(nn.Module):
    """What they share: p(x) = prod_t p(x_t | x_<t), whose conditionals are what a network says, all of one form.

    Each has `forward(x, y)`, which says what the likelihood needs of all elements, k of them together, (B, C, H, W) ->
    (B, F, T / k, 1), and `fill`, which draws; one that reads in an order of its own has `elements` and `image` too.

    likelihood   likelihood(levels) makes p(x_t | x_<t); None: Bernoulli at 2 levels, else a softmax over all
    classes      how many there are in y, if any
    conditional  whether to model p(x | y)
    sides        the heights and widths that it can model are multiples of it
    together     k: 1, or the channels of a pixel

    Unfit if the data are not such images of integers; ValueError for conditional=True without classes.
    """

    kind: ClassVar[Kind] = "exact"
    together: int = 1

    def __init__(
        self,
        shape: Sequence[int],
        levels: int | None,
        *,
        likelihood: Callable[[int], Likelihood] | None = None,
        classes: int | None = None,
        conditional: bool = False,
        sides: int = 1,
    ) -> None:
        super().__init__()

        def fits(space: Space) -> bool:
            if len(space.shape) != 3 or space.levels is None:
                return False
            return all(side > 0 and side % sides == 0 for side in space.shape[1:])

        if not fits(Space(tuple(shape), levels)):
            which = f" whose sides are multiples of {sides}" if sides > 1 else ""
            raise Unfit(
                f"{type(self).__name__} models images of integers (C, H, W){which}, not shape={list(shape)} with "
                f"levels={levels}",
                fits,
            )
        if conditional and not classes:
            raise ValueError(
                "conditional=true needs labels, and this data has no classes; try conditional=false"
            )
        C, H, W = shape
        self.shape, self.levels = (C, H, W), levels
        self.classes, self.conditional = classes, conditional
        self.protocol = {"order": "row, column, channel"}
        self.likelihood = (likelihood or (Bernoulli if levels == 2 else Categorical))(levels)

    def loss(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        """loss: nats per element; nats: per example; y is used if conditional."""
        return terms(self.log_prob(x, y), x[0].numel())

    def log_prob(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """log p(x), or log p(x | y) if conditional, in nats, (B,)."""
        return self.likelihood.log_prob(self(x, y), self.elements(x))

    @torch.no_grad()
    def sample(
        self, n: int, y: Tensor | None = None, *, temperature: float = 1.0, prompt: Tensor | None = None
    ) -> Tensor:
        """n images, (n, C, H, W), element by element, by the model's `fill`; `recomputed` is the slow way.

        y             (n,) labels, of a conditional model; where they are missing, drawn evenly
        temperature   divides logits and multiplies scales; 0 takes the most probable level, of a mixture the
                      heaviest centre
        prompt        (n, P) first elements in the order of reading, which are kept

        ValueError for a temperature below 0 and a prompt that does not fit.
        """
        tokens, P = self.begun(n, prompt, temperature)
        y = self.asked(n, y)
        with torch.inference_mode():  # faster than without gradients alone
            self.fill(tokens, P, y, temperature)
        return self.image(tokens)

    def fill(self, tokens: Tensor, P: int, y: Tensor | None, temperature: float) -> None:
        """Draw tokens (n, T) in place, from the P-th on, given those before it; y (n,), or None."""
        raise NotImplementedError

    def elements(self, x: Tensor) -> Tensor:
        """The elements in the order of reading, as an image of one column.  (B, C, H, W) -> (B, k, T / k, 1)"""
        return sequence(x).unflatten(1, (-1, self.together)).mT.unsqueeze(-1)

    def image(self, tokens: Tensor) -> Tensor:
        """Elements in the order of reading as data.  (n, T) -> (n, C, H, W)"""
        return arranged(tokens, self.shape, self.levels)

    def given(self, y: Tensor | None) -> Tensor | None:
        """The labels that a conditional model needs; None for any other. ValueError where they are missing."""
        if not self.conditional:
            return None
        if y is None:
            raise ValueError("a model with conditional=true needs y, the labels of x")
        return y.long()

    def asked(self, n: int, y: Tensor | None) -> Tensor | None:
        """The labels that samples of a conditional model have: y, or drawn evenly; None for any other."""
        if not self.conditional:
            return None
        device = next(self.parameters()).device
        return torch.randint(self.classes, (n,), device=device) if y is None else y.to(device).long()

    def begun(self, n: int, prompt: Tensor | None, temperature: float) -> tuple[Tensor, int]:
        """Tokens to be filled, (n, T) of int64, the first P of which are the prompt's; and P.

        ValueError for a prompt that is none for n examples of these levels, and for a temperature below 0.
        """
        if temperature < 0:
            raise ValueError(
                f"temperature={temperature} leaves nothing to draw from; it is at least 0, which takes the most "
                "probable level"
            )
        device = next(self.parameters()).device
        length = math.prod(self.shape)
        tokens = torch.zeros(n, length, dtype=torch.int64, device=device)
        if prompt is None:
            return tokens, 0
        prompt = prompt.to(device).long()
        outside = (prompt < 0) | (prompt >= self.levels)
        if prompt.ndim != 2 or len(prompt) != n or prompt.shape[1] > length or outside.any():
            raise ValueError(
                f"a prompt of shape {tuple(prompt.shape)} does not start {n} examples of {length} elements; it "
                f"takes ({n}, P) integers below {self.levels}, P at most {length}"
            )
        P = prompt.shape[1]
        if P % self.together:
            raise ValueError(
                f"{type(self).__name__} tells the {self.together} channels of a pixel together, so a prompt of {P} "
                f"elements cannot be gone on from; try {P - P % self.together}"
            )
        tokens[:, :P] = prompt
        return tokens, P


@torch.no_grad()
def recomputed(
    model: FullyVisible,
    n: int,
    y: Tensor | None = None,
    *,
    temperature: float = 1.0,
    prompt: Tensor | None = None,
) -> Tensor:
    """What model.sample does, the slow and obvious way: the network sees the whole image anew for each element.

    It draws what model.sample draws, by the same generator: samples are equal, but for rounding. Of a mixture of
    MADE's masks it takes the first.
    """
    tokens, P = model.begun(n, prompt, temperature)
    y = model.asked(n, y)
    k = model.together
    for start in range(P, tokens.shape[1], k):
        here = model(model.image(tokens), y)[:, :, start // k : start // k + 1]
        tokens[:, start : start + k] = model.likelihood.sample(here, temperature=temperature).flatten(1)
    return model.image(tokens)


def terms(log_p: Tensor, length: int) -> dict[str, Tensor]:
    """loss: nats per element; nats: per example.  log_p (B,)"""
    nats = -log_p.mean()
    return {"loss": nats / length, "nats": nats}
