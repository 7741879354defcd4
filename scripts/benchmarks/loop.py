"""What the learner adds to a step, beside what an empty Lightning loop adds: both over a plain PyTorch loop."""

import statistics
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.measure import Row, interleaved, ms, over
from benchmarks.training import empty, ours, plain

ON = "callbacks Stopping, Finite, Progress on a terminal, Checkpoints every 1,000; MetricsLog every 50 steps"


class Tiny(nn.Module):
    """A network with a loss of five terms."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 784))

    def loss(self, x: Tensor) -> dict[str, Tensor]:
        error = (self.layers(x) - x).square().mean()
        return {"loss": error, **{f"term{i}": error.detach() * i for i in range(1, 5)}}


def rows() -> Iterator[Row]:
    torch.set_num_threads(1)
    x = torch.rand(10_240, 784)
    drawn: list[int] = []
    yield from added(x, drawn)
    yield whole(x)


def added(x: Tensor, drawn: list[int]) -> Iterator[Row]:
    """Around a step of about a millisecond."""
    steps, model = 1100, partial(Tiny, 48)
    candidates = {
        "plain": partial(plain, model, x, steps),
        "empty": partial(empty, model, x, steps),
        "ours": partial(ours, model, x, steps, drawn=drawn),
    }
    seconds = interleaved(candidates, 9)
    added = {
        name: [a - b for a, b in zip(seconds[name], seconds["plain"], strict=True)]
        for name in ("empty", "ours")
    }
    yield Row(
        "added to a step by the loop",
        ms(added["ours"]),
        ms(added["empty"]),
        over(added["ours"], added["empty"]),
        most=1.6,
        note=f"an empty Lightning loop; plain step {ms(seconds['plain'])}; five scalars; {ON}; "
        f"the bar was drawn {statistics.median(drawn):.0f} times in {steps + 51} steps",
    )


def whole(x: Tensor) -> Row:
    """Around a step of about 20 ms."""
    steps, model = 60, partial(Tiny, 1900)
    candidates = {"plain": partial(plain, model, x, steps), "ours": partial(ours, model, x, steps)}
    seconds = interleaved(candidates, 9)
    return Row(
        "a step of 20 ms, whole",
        ms(seconds["ours"]),
        ms(seconds["plain"]),
        over(seconds["ours"], seconds["plain"]),
        most=1.05,
        note="a plain PyTorch loop; the same callbacks",
    )
