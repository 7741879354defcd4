"""Integers from files: images, texts, the user's own. Nothing here knows a model.

Names are imported when they are first used (PEP 562), so `zoo.data.vocabulary` can be read without torch.
"""

from importlib import import_module
from typing import Any

_MODULES = {
    "arrays": ("Arrays", "Bernoulli", "CropFlip"),
    "mnist": ("MNIST",),
    "binarized_mnist": ("BinarizedMNIST",),
    "cifar": ("CIFAR10", "CIFAR100"),
    "coarse": ("CoarseCIFAR10",),
    "digits": ("Digits",),
    "shapes": ("Shapes",),
    "captioned": ("Captioned", "ColouredShapes", "captions", "coloured_shapes"),
    "own": ("Own",),
    "sequential": ("Sequences", "SequentialMNIST", "SequentialCIFAR10"),
    "synthetic": ("InductionHeads", "Reversal", "SelectiveCopying", "Sorting"),
    "pairs": ("Pairs", "reflow"),
    "recall": ("AssociativeRecall", "Induction", "MQAR"),
    "listops": ("ListOps",),
    "toys": ("Checkerboard", "EightGaussians", "Moons", "Spirals"),
    "text": ("Text",),
    "vocabulary": ("Bytes", "Characters", "Words"),
    "bpe": ("BPE",),
    "corpora": ("pydoc", "tinyshakespeare", "text8", "enwik8", "wikitext2", "wikitext103", "own_text"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Import the module that defines a public name, the first time the name is asked for."""
    if name not in _HOME:
        raise AttributeError(f"zoo.data has no {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"zoo.data.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
