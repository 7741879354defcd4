"""Codes, and images pixel by pixel: what is kept against what is computed anew."""

import time
from collections.abc import Iterator
from functools import partial

import torch

from benchmarks import iwae, quantization
from benchmarks.measure import Row, interleaved, ms, over
from zoo.models import PixelCNN
from zoo.models.fully_visible import recomputed

IMAGES, SIDE, PIXELS = 64, 28, 2


def rows() -> Iterator[Row]:
    torch.set_num_threads(1)
    yield from sampling()
    yield from quantization.steps()
    yield from iwae.steps()


def sampling() -> Iterator[Row]:
    """64 binary digits by lines that are kept, against the image recomputed for each pixel.

    Of the slow way the last few pixels are measured, for all of them would take minutes and each costs the same.
    """
    for what, sizes, rounds in (
        ("15 blocks of 16", {"dim": 16, "head": 32}, 5),
        ("15 blocks of 128, as for CIFAR-10", {}, 1),
    ):
        model = PixelCNN(shape=(1, SIDE, SIDE), levels=2, **sizes).eval()
        seconds = interleaved({"ours": partial(kept, model), "slow": partial(anew, model)}, rounds, warm=0)
        yield Row(
            "PixelCNN sampling, cached / recomputed",
            ms(seconds["ours"]),
            ms(seconds["slow"]),
            over(seconds["ours"], seconds["slow"]),
            most=0.1,
            note=f"the same draws; {IMAGES} binary digits of {SIDE} x {SIDE}; {what}",
        )


def kept(model: PixelCNN) -> float:
    """CPU seconds of all images."""
    before = time.process_time()
    model.sample(IMAGES)
    return time.process_time() - before


def anew(model: PixelCNN) -> float:
    """CPU seconds of all images the slow way, as many as for the last pixels, so many times."""
    prompt = torch.zeros(IMAGES, SIDE * SIDE - PIXELS, dtype=torch.int64)
    before = time.process_time()
    recomputed(model, IMAGES, prompt=prompt)
    return (time.process_time() - before) * SIDE * SIDE / PIXELS
