"""A step of the IWAE with 50 draws, 784-512-16-512-784 on binary images, against pythae's.

Loss and gradients, without an optimizer. Both decode the draws of all images at once, so the matrix products are the
same; what differs is the likelihood, ours of logits and with its own gradient, theirs of probabilities.
"""

import importlib.util
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.measure import INSTALL, Row, interleaved, ms, over
from zoo.models import VAE
from zoo.nn import MLP, ImportanceWeighted

BATCH, DRAWS = 100, 50


def steps() -> Iterator[Row]:
    """One row: the time of a step."""
    what = f"IWAE, k = {DRAWS}: a step"
    if importlib.util.find_spec("pythae") is None:
        yield Row(what, theirs="pythae", note=INSTALL)
        return
    x = (torch.rand(BATCH, 1, 28, 28) < 0.13).to(torch.uint8)
    mine, other = ours(), theirs()
    seconds = interleaved(
        {
            "ours": partial(step, mine, lambda: mine.loss(x)["loss"]),
            "theirs": partial(step, other, partial(their_loss, other, {"data": x.float()})),
        },
        15,
        warm=2,
    )
    told = [ms(seconds[name]) for name in ("ours", "theirs")]
    note = f"pythae; 784-512-16, batch {BATCH}"
    yield Row(what, *told, over(seconds["ours"], seconds["theirs"]), most=0.7, note=note)


def ours() -> VAE:
    """The sizes of pythae's own networks."""
    net = partial(MLP, hidden=(512,))
    sizes = {"latent": 16, "encoder": net, "decoder": net}
    return VAE(shape=(1, 28, 28), levels=2, samples=DRAWS, bound=ImportanceWeighted(), **sizes)


def theirs() -> nn.Module:
    """pythae's, as it is by default."""
    from pythae.models import IWAE, IWAEConfig

    sizes = {"input_dim": (1, 28, 28), "latent_dim": 16, "number_samples": DRAWS}
    return IWAE(IWAEConfig(**sizes, reconstruction_loss="bce"))


def their_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The loss of a batch."""
    return model(batch).loss


def step(model: nn.Module, loss: Callable[[], Tensor]) -> None:
    """Loss and gradients."""
    model.zero_grad()
    loss().backward()
