"""A VAE 784-512-16-512-784 on binary images against pythae's: one step, and training as a user starts it.

Both see the same bits, ours as integers, pythae's as floats. pythae takes AdamW as PyTorch gives it; ours is
fused, as its config has it. A row tells the step with both optimizers fused.
"""

import contextlib
import importlib.util
import io
import logging
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import INSTALL, Row, interleaved, ms, over
from benchmarks.training import ADAMW, BATCH, Terminal, gathered, train
from zoo.models import VAE
from zoo.nn import MLP

STEPS = 150  # of a whole training
AT_ONCE = 10  # steps between two looks at the clock


def rows() -> Iterator[Row]:
    if importlib.util.find_spec("pythae") is None:
        yield Row("a VAE's step and its training", theirs="pythae", note=INSTALL)
        return
    torch.set_num_threads(1)
    x = (torch.rand(STEPS * BATCH, 1, 28, 28) < 0.13).to(torch.uint8)
    yield from steps(x[:BATCH])
    yield from training(x)


def steps(x: Tensor) -> Iterator[Row]:
    """Loss, gradients, optimizer."""
    slow = partial(torch.optim.AdamW, lr=1e-3)
    candidates = {
        "ours": step(ours(), ADAMW, lambda model: model.loss(x)["loss"]),
        "theirs": step(theirs(), slow, partial(their_loss, {"data": x.float()})),
        "fused": step(theirs(), ADAMW, partial(their_loss, {"data": x.float()})),
    }
    seconds = interleaved(candidates, 25)
    for name, most, note in (("theirs", 0.75, "pythae"), ("fused", None, "pythae with fused AdamW")):
        yield Row(
            "a VAE's step",
            ms(seconds["ours"], AT_ONCE),
            ms(seconds[name], AT_ONCE),
            over(seconds["ours"], seconds[name]),
            most=most,
            note=f"{note}; 784-512-16, batch {BATCH}",
        )


def training(x: Tensor) -> Iterator[Row]:
    """One epoch, with all that each of them does around its steps; and a loop that does nothing around them."""
    candidates = {
        "ours": partial(train_ours, x),
        "plain": partial(train_plain, x),
        "theirs": partial(train_theirs, x.float()),
    }
    seconds = interleaved(candidates, 9)
    about = f"pythae's trainer; an epoch of {STEPS} steps with start and end, told per step"
    for name, what, most, note in (
        ("ours", "a VAE's training", 0.55, "; callbacks as in the loop"),
        ("plain", "the same, ours in a plain PyTorch loop", None, ""),
    ):
        yield Row(
            what,
            ms(seconds[name], STEPS),
            ms(seconds["theirs"], STEPS),
            over(seconds[name], seconds["theirs"]),
            most=most,
            note=about + note,
        )


def ours() -> VAE:
    network = partial(MLP, hidden=(512,))
    return VAE(shape=(1, 28, 28), levels=2, latent=16, encoder=network, decoder=network)


def theirs() -> nn.Module:
    from pythae.models import VAE as Theirs
    from pythae.models import VAEConfig

    return Theirs(VAEConfig(input_dim=(1, 28, 28), latent_dim=16, reconstruction_loss="bce"))


def their_loss(batch: dict[str, Tensor], model: nn.Module) -> Tensor:
    return model(batch).loss


def step(
    model: nn.Module, optimizer: Callable[..., torch.optim.Optimizer], loss: Callable[[Any], Tensor]
) -> Callable[[], None]:
    """A function that takes some steps."""
    moves = optimizer(model.parameters())

    def take() -> None:
        for _ in range(AT_ONCE):
            moves.zero_grad()
            loss(model).backward()
            moves.step()

    return take


def train_ours(x: Tensor) -> None:
    train(ours(), x, STEPS, Terminal())


def train_plain(x: Tensor) -> None:
    model = ours()
    optimizer = ADAMW(model.parameters())
    for batch in islice(gathered(x), STEPS):
        optimizer.zero_grad()
        model.loss(**batch)["loss"].backward()
        optimizer.step()


def train_theirs(x: Tensor) -> None:
    from pythae.data.datasets import BaseDataset
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    for name in ("pythae", "pythae.trainers.base_trainer.base_trainer"):
        logging.getLogger(name).setLevel(logging.ERROR)
    quiet = contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO())
    with tempfile.TemporaryDirectory() as folder, quiet[0], quiet[1]:
        config = BaseTrainerConfig(
            output_dir=folder,
            num_epochs=1,
            per_device_train_batch_size=BATCH,
            optimizer_cls="AdamW",
            learning_rate=1e-3,
            no_cuda=True,
        )
        data = BaseDataset(x, torch.zeros(len(x)))
        BaseTrainer(model=theirs(), train_dataset=data, training_config=config).train()
