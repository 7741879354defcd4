"""Chance as a function of the seed and the place; nothing about it is stored.

A place is a few integers and strings: ("train", seed, epoch, batch, rank). Before anything random happens at
a place, all generators of the process are keyed to it. So a run that was killed and resumed draws what the
unbroken run drew, workers change nothing, and a validation in between changes nothing of the training.
"""

import hashlib
import random

import numpy as np
import torch

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
