"""A step of vector quantization beside those of two peers, and its memory.

A step is forward and backward of z_q and of the commitment term, and the codebook's move where it is a moving mean.
"""

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.layers import Step
from benchmarks.measure import INSTALL, Row, interleaved, ms, over
from zoo.nn import EMACodebook, VectorQuantizer

DIM, SIDE = 64, 64  # 4,096 vectors


def steps() -> Iterator[Row]:
    """With moving means beside vector-quantize-pytorch's; with a learned codebook beside diffusers'."""
    z = torch.randn(1, DIM, SIDE, SIDE)
    for levels in (512, 8192):
        about = f"{SIDE * SIDE:,} rows of {DIM}, {levels:,} codes"
        for what, package, theirs, ours, targets in (
            ("VQ step with EMA", "vector-quantize-pytorch", lucidrains, EMA, (0.2, 0.15)),
            ("VQ step", "diffusers", diffusers, VectorQuantizer, (1.0, None)),
        ):
            if importlib.util.find_spec(package.replace("-", "_")) is None:
                yield Row(f"{what}: time and memory", theirs=package, note=INSTALL)
                continue
            pair = {"ours": Step(Moving(ours(DIM, levels=levels)), z), "theirs": Step(theirs(levels), z)}
            seconds = interleaved(pair, 15, warm=2)
            told = [ms(seconds[name]) for name in pair]
            note = f"{package}; {about}"
            ratio = over(seconds["ours"], seconds["theirs"])
            yield Row(f"{what}: time", *told, ratio, most=targets[0], note=note)
            mine, other = (step.memory() for step in pair.values())
            told = [f"{mine:.3g} MB", f"{other:.3g} MB"]
            note += "; peak of the allocator"
            yield Row(f"{what}: memory", *told, [mine / other], most=targets[1], note=note)


def EMA(dim: int, *, levels: int) -> VectorQuantizer:
    """Ours, with moving means."""
    return VectorQuantizer(dim, levels=levels, codebook=EMACodebook)


class Moving(nn.Module):
    """Our quantizer: z -> z_q and its terms; the codebook moves at each step, as in training."""

    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        self.quantizer, self.steps = quantizer, 0

    def forward(self, z: Tensor) -> Tensor:
        z_q, _, terms = self.quantizer(z)
        self.steps += 1
        self.quantizer.at(self.steps)
        return z_q + sum(terms.values())


class Their(nn.Module):
    """A peer's quantizer: z -> z_q and its term."""

    def __init__(self, quantizer: nn.Module, term: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.quantizer, self.term = quantizer, term

    def forward(self, z: Tensor) -> Tensor:
        told = self.quantizer(z)
        return told[0] + self.term(told)


def lucidrains(levels: int) -> nn.Module:
    """vector-quantize-pytorch's, by the same moving means, straight through."""
    from vector_quantize_pytorch import VectorQuantize

    options = {"decay": 0.99, "commitment_weight": 0.25, "accept_image_fmap": True, "rotation_trick": False}
    return Their(VectorQuantize(DIM, levels, **options), lambda told: told[2].sum())


def diffusers(levels: int) -> nn.Module:
    """diffusers' quantizer of VQ models, with beta on the commitment term."""
    from diffusers.models.autoencoders.vae import VectorQuantizer as Theirs

    return Their(Theirs(levels, DIM, 0.25, legacy=False), lambda told: told[1])
