"""Batches of 128 in shuffled order: ours from one gather, torchvision's from one Python call per image.

Pixels are drawn at random, for speed does not depend on them: sizes and types are those of the data sets,
and torchvision's own __getitem__, transforms and DataLoader do the work. Ours are brought to float32 in
[0, 1] too, though models take the integers.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Subset

from benchmarks.measure import Row, interleaved, over
from zoo.data.arrays import Arrays, CropFlip
from zoo.training.loaders import Loaders

BATCH = 128
OURS, THEIRS = 25_600, 5_120  # examples per round: a DataLoader's are dear
ROUNDS = 9


def rows() -> Iterator[Row]:
    from torchvision import datasets, transforms

    torch.set_num_threads(1)
    x = torch.randint(256, (OURS, 1, 28, 28), dtype=torch.uint8)
    y = torch.randint(10, (OURS,))
    theirs = bare(datasets.MNIST, data=x[:, 0], targets=y, transform=transforms.ToTensor())
    yield compared("MNIST, examples per CPU second", Arrays(x, y, levels=256), theirs, least=50)
    x = torch.randint(256, (OURS, 3, 32, 32), dtype=torch.uint8)
    steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    pixels = np.ascontiguousarray(x.movedim(1, -1).numpy())
    theirs = bare(datasets.CIFAR10, data=pixels, targets=y.tolist(), transform=transforms.Compose(steps))
    ours = Arrays(x, y, levels=256, augment=CropFlip(padding=4))
    yield compared("CIFAR-10 with crop and flip, the same", ours, theirs, least=15)


def bare(kind: type, **fields: Any) -> Any:
    """A dataset of torchvision's without its files."""
    dataset = object.__new__(kind)
    dataset.target_transform = None
    for name, value in fields.items():
        setattr(dataset, name, value)
    return dataset


def compared(what: str, ours: Arrays, theirs: Any, *, least: float) -> Row:
    """Examples per CPU second of our loader over those of torchvision's dataset in a DataLoader."""
    facts = {"name": "benchmark", "shape": list(ours.x.shape[1:]), "levels": 256}
    loader = Loaders(lambda split: ours, facts, batch_size=BATCH, seed=0).loader("train")
    slow = DataLoader(Subset(theirs, range(THEIRS)), batch_size=BATCH, shuffle=True)
    epochs = {
        "ours": epoch(loader, OURS, lambda batch: batch["x"].float().div_(255)),
        "theirs": epoch(slow, THEIRS, lambda batch: batch[0]),
    }
    seconds = interleaved(epochs, ROUNDS)
    speed = {name: 1 / statistics.median(spent) for name, spent in seconds.items()}
    return Row(
        what,
        f"{speed['ours']:,.0f}",
        f"{speed['theirs']:,.0f}",
        over(seconds["theirs"], seconds["ours"]),
        least=least,
        note="torchvision in a DataLoader, no workers; batch 128",
    )


def epoch(batches: Any, n: int, finish: Callable[[Any], torch.Tensor]) -> Callable[[], float]:
    """A function that reads n examples and returns the CPU seconds of one."""

    def read() -> float:
        before = time.process_time()
        for batch in batches:
            finish(batch)
        return (time.process_time() - before) / n

    return read
