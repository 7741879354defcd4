"""What autoregressive models of images share: the order of elements, what is said of each, beginnings, drawing.

x is an image of integers, or of codes, (B, C, H, W); its T elements are read by row, column and channel. Parameters
(B, F, T, 1) are what a likelihood needs of each element, given those before it. A beginning, or prompt, (n, P), are
the first P elements in the order in which the model reads.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.models.tokens import sequence
from zoo.nn.likelihood import Bernoulli, Categorical, DiscretizedLogisticMixture, Likelihood
from zoo.nn.masked_conv import Lines
from zoo.types import Space, Unfit

ORDER = "row, column, channel"


def size_of(model: object, shape: Sequence[int], levels: int | None) -> tuple[int, int, int]:
    """(C, H, W). Unfit for other data than images of integers."""

    def fits(space: Space) -> bool:
        return len(space.shape) == 3 and space.levels is not None

    if not fits(Space(tuple(shape), levels)):
        raise Unfit(
            f"{type(model).__name__} models images of integers (C, H, W), not shape={list(shape)} with "
            f"levels={levels}",
            fits,
        )
    C, H, W = shape
    return C, H, W


def per_element(levels: int, likelihood: Callable[[int], Likelihood] | None) -> Likelihood:
    """What is said of each element: a likelihood for so many levels; None: Bernoulli at 2, else a softmax."""
    return (likelihood or (Bernoulli if levels == 2 else Categorical))(levels)


def elements(x: Tensor) -> Tensor:
    """The elements in order, as an image of one column.  (B, C, H, W) -> (B, 1, T, 1)"""
    return sequence(x)[:, None, :, None]


class Pixels(nn.Module):
    """Images of integers as maps: numbers in [0, 1], or vectors.  (B, C, H, W) -> (B, e C, H, W)

    Feature i belongs to channel i mod C.

    embed   e, the size of a vector for each level: for codes, whose numbers say nothing; None: a number
    """

    def __init__(self, levels: int, embed: int | None) -> None:
        super().__init__()
        self.levels = levels
        self.vectors = nn.Embedding(levels, embed) if embed else None

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        if self.vectors is None:
            return scaled(x, self.levels, dtype)
        return self.vectors(x.long()).movedim(-1, 1).flatten(1, 2)


def scaled(x: Tensor, levels: int, dtype: torch.dtype) -> Tensor:
    """Integers as numbers in [0, 1]."""
    return x.to(dtype) / (levels - 1)


def terms(log_p: Tensor, length: int) -> dict[str, Tensor]:
    """loss: nats per element; nats: per example.  log_p (B,)"""
    nats = -log_p.mean()
    return {"loss": nats / length, "nats": nats}


def begun(model: Any, n: int, prompt: Tensor | None, temperature: float) -> tuple[Tensor, int]:
    """Elements to be filled, (n, T) of int64, the first P of which are the prompt's; and P.

    ValueError for a prompt that is none for n examples of these levels, and for a temperature below 0.
    """
    if temperature < 0:
        raise ValueError(
            f"temperature={temperature} leaves nothing to draw from; it is at least 0, which takes the most "
            "probable level"
        )
    device = next(model.parameters()).device
    length = model.shape[0] * model.shape[1] * model.shape[2]
    tokens = torch.zeros(n, length, dtype=torch.int64, device=device)
    if prompt is None:
        return tokens, 0
    prompt = prompt.to(device).long()
    outside = (prompt < 0) | (prompt >= model.levels)
    if prompt.ndim != 2 or len(prompt) != n or prompt.shape[1] > length or outside.any():
        raise ValueError(
            f"a prompt of shape {tuple(prompt.shape)} does not start {n} examples of {length} elements; it takes "
            f"({n}, P) integers below {model.levels}, P at most {length}"
        )
    P = prompt.shape[1]
    if P % model.together:
        raise ValueError(
            f"{type(model).__name__} tells the {model.together} channels of a pixel together, so a prompt of {P} "
            f"elements cannot be gone on from; try {P - P % model.together}"
        )
    tokens[:, :P] = prompt
    return tokens, P


def drawn(likelihood: Likelihood, parameters: Tensor, temperature: float, channels: int = 1) -> Tensor:
    """Integers (n, channels, H, W) from parameters (n, F, H, W); at temperature 0 the most probable ones.

    Logits are divided by the temperature; the scales of logistics are multiplied by it.
    """
    if temperature == 0:
        return likelihood.mode(parameters)
    if not isinstance(likelihood, DiscretizedLogisticMixture):
        return likelihood.sample(parameters / temperature)
    parts = parameters.unflatten(1, (likelihood.components, -1))
    logits, means, scales, rest = parts.split([1, channels, channels, parts.shape[2] - 1 - 2 * channels], 2)
    parts = torch.cat([logits / temperature, means, scales + math.log(temperature), rest], 2)
    return likelihood.sample(parts.flatten(1, 2))


def known_classes(classes: int | None, conditional: bool) -> int | None:
    """How many labels a network is told; None: it is told none. ValueError for conditional=True without classes."""
    if conditional and not classes:
        raise ValueError("conditional=true needs labels, and this data has no classes; try conditional=false")
    return classes if conditional else None


def given(model: Any, y: Tensor | None) -> Tensor | None:
    """The labels that a conditional model needs; None for any other. ValueError where they are missing."""
    if not model.conditional:
        return None
    if y is None:
        raise ValueError("a model with conditional=true needs y, the labels of x")
    return y.long()


def labels(model: Any, y: Tensor | None, n: int) -> Tensor | None:
    """The labels that samples of a conditional model have: y, or drawn evenly; None for any other."""
    if not getattr(model, "conditional", False):
        return None
    device = next(model.parameters()).device
    return torch.randint(model.classes, (n,), device=device) if y is None else y.to(device).long()


def by_element(parameters: Tensor, channels: int) -> Tensor:
    """From maps to elements in order; feature i belongs to channel i mod C.  (B, F C, H, W) -> (B, F, T, 1)"""
    return parameters.unflatten(1, (-1, channels)).movedim(2, -1).flatten(2).unsqueeze(-1)


@torch.no_grad()
def recomputed(
    model: Any, n: int, y: Tensor | None = None, *, temperature: float = 1.0, prompt: Tensor | None = None
) -> Tensor:
    """What model.sample does, the slow and obvious way: the network sees the whole image anew for each element.

    It draws what model.sample draws, by the same generator: samples are equal, but for rounding.
    """
    tokens, P = begun(model, n, prompt, temperature)
    y = labels(model, y, n)
    size = model.together
    for start in range(P, tokens.shape[1], size):
        here = model(model.image(tokens), y)[:, :, start // size : start // size + 1]
        tokens[:, start : start + size] = drawn(model.likelihood, here, temperature, size).flatten(1)
    return model.image(tokens)


@torch.inference_mode()
def by_pixel(model: Any, tokens: Tensor, P: int, y: Tensor | None, temperature: float) -> None:
    """Fill tokens (n, T) from the P-th on, each place of the image computed once, from lines that are kept.

    model.step(x, r, c, y, lines) gives the parameters (n, F C, 1, 1) of pixel (r, c) of images x (n, C, H, W);
    model.first is the convolution that sees the pixels themselves, by model.inputs(x). A channel's features know
    no more of their own pixel than the channels before, so that the last channel changes nothing but them.
    """
    C, H, W = model.shape
    x = tokens.view(-1, H, W, C).movedim(-1, 1)
    lines = Lines(W)
    for place in range(H * W):
        r, c = divmod(place, W)
        known = min(max(P - place * C, 0), C)
        for channel in range(min(known, C - 1), C):
            lines.at(r, c)
            parameters = model.step(x, r, c, y, lines)
            if channel >= known:
                here = parameters.unflatten(1, (-1, C))[:, :, channel]
                x[:, channel, r, c] = drawn(model.likelihood, here, temperature).flatten().long()
        lines.write(model.first, model.inputs(x[:, :, r : r + 1, c : c + 1]))
