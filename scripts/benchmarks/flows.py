"""Flows against normflows and nflows of the same size, and what inverting saves; on a CPU.

A step is loss, gradients and optimizer. Peers have Adam as PyTorch gives it, ours is fused, as its config has it; a row
tells the step with both of them fused. Memory is the peak of loss and gradients, those of the weights included
unless a row says otherwise.
"""

import importlib.util
import warnings
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.layers import Step
from benchmarks.measure import INSTALL, Row, interleaved, ms, over
from zoo.models import NICE, Glow
from zoo.nn import checkpoint_blocks

SHAPE, BATCH = (3, 32, 32), 16
GLOW = {"hidden": 128, "steps": 8, "scales": 3}
DIGIT, DIGITS, HIDDEN = 784, 200, (1000,) * 5
ADAM = partial(torch.optim.Adam, fused=True)


def rows() -> Iterator[Row]:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)
    yield from glow()
    yield from nice()
    yield from invertible()


class Loss(nn.Module):
    """A model's loss as a module: x -> ()."""

    def __init__(self, model: nn.Module, loss: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.of = model, loss

    def forward(self, x: Tensor) -> Tensor:
        return self.of(self.model, x)


def ours(model: nn.Module, x: Tensor) -> Loss:
    """A flow of ours, measured on x."""
    model.prepare([{"x": x}])
    return Loss(model, lambda model, x: model.loss(x)["loss"])


def glow() -> Iterator[Row]:
    """Three scales of eight steps on photographs."""
    x = torch.randint(256, (BATCH, *SHAPE), dtype=torch.uint8)
    mine = ours(Glow(shape=SHAPE, levels=256, **GLOW), x)
    about = f"normflows; {GLOW['scales']} scales of {GLOW['steps']} steps, {GLOW['hidden']} channels, batch {BATCH}"
    if importlib.util.find_spec("normflows") is None:
        yield Row("Glow's step, memory and samples", theirs="normflows", note=INSTALL)
        return
    theirs = Loss(their_glow(), lambda model, x: model.forward_kld(x))
    noisy = (x + torch.rand(x.shape)) / 256 - 0.5
    yield from steps("Glow's step", mine, x, theirs, noisy, 0.7, about)
    used = [Step(mine, x.float()).memory(), Step(theirs, noisy).memory()]
    yield Row("Glow's memory", *(f"{one:.0f} MB" for one in used), [used[0] / used[1]], most=0.57, note=about)
    with torch.no_grad():
        candidates = {
            "ours": partial(drawn, mine.model.eval(), BATCH),
            "theirs": partial(drawn, theirs.model.eval(), BATCH),
        }
        seconds = interleaved(candidates, 15)
    yield Row(
        "Glow's samples",
        ms(seconds["ours"]),
        ms(seconds["theirs"]),
        over(seconds["ours"], seconds["theirs"]),
        most=0.85,
        note=about,
    )


def their_glow() -> nn.Module:
    """The same in normflows, norms in the networks and free matrices included; its bases have a mean and a scale."""
    import normflows

    C, H, W = SHAPE
    scales = GLOW["scales"]
    bases, flows, merges = [], [], []
    for i in range(scales):
        left = scales - i  # of how many halvings a scale is the result
        channels = C * 2 ** (left + 1)
        block = partial(normflows.flows.GlowBlock, split_mode="channel", use_lu=False, net_actnorm=True)
        flows.append([block(channels, GLOW["hidden"]) for _ in range(GLOW["steps"])])
        flows[-1].append(normflows.flows.Squeeze())
        leaving = channels if i == 0 else channels // 2
        bases.append(normflows.distributions.GlowBase((leaving, H // 2**left, W // 2**left)))
        merges += [normflows.flows.Merge()] if i else []
    return normflows.MultiscaleFlow(bases, flows, merges, class_cond=False)


def nice() -> Iterator[Row]:
    """As published for MNIST."""
    if importlib.util.find_spec("nflows") is None:
        yield Row("NICE's step", theirs="nflows", note=INSTALL)
        return
    x = torch.randint(256, (DIGITS, 1, 28, 28), dtype=torch.uint8)
    mine = ours(NICE(shape=(1, 28, 28), levels=256, hidden=HIDDEN), x)
    theirs = Loss(their_nice(), lambda model, x: -model.log_prob(x).mean())
    noisy = ((x + torch.rand(x.shape)) / 256).flatten(1)
    yield from steps(
        "NICE's step", mine, x, theirs, noisy, 0.7, f"nflows; 4 couplings of 5 x 1000, batch {DIGITS}"
    )


def their_nice() -> nn.Module:
    """The same in nflows, but for the scale, which is fixed, and the base, a Gaussian."""
    from nflows.distributions.normal import StandardNormal
    from nflows.flows.base import Flow
    from nflows.nn.nets import MLP
    from nflows.transforms import AdditiveCouplingTransform, CompositeTransform
    from nflows.transforms.standard import PointwiseAffineTransform

    def network(enter: int, leave: int) -> nn.Module:
        return Flat(MLP((enter,), (leave,), HIDDEN))

    masks = [(torch.arange(DIGIT) % 2 == i % 2).float() for i in range(4)]
    layers = [AdditiveCouplingTransform(mask, network) for mask in masks]
    return Flow(
        CompositeTransform([*layers, PointwiseAffineTransform(0.0, torch.ones(DIGIT))]),
        StandardNormal([DIGIT]),
    )


class Flat(nn.Module):
    """A network that is given a context, which it has no use for."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, context: None = None) -> Tensor:
        return self.network(x)


def invertible() -> Iterator[Row]:
    """Memory at depth 32 over depth 8, and time over that of keeping activations."""
    x = torch.randint(256, (BATCH, *SHAPE), dtype=torch.uint8)

    def made(depth: int, policy: str, hidden: int) -> Loss:
        model = Glow(shape=SHAPE, levels=256, hidden=hidden, steps=depth, scales=1)
        checkpoint_blocks(model, policy)
        return ours(model, x)

    for policy, most in (("invertible", 1.3), ("none", None)):
        used = []
        for depth in (32, 8):
            loss = made(depth, policy, 64)
            own = sum(4 * p.numel() for p in loss.parameters()) / 1e6
            used.append(Step(loss, x.float()).memory() - own)
        yield Row(
            f"a flow's memory at depth 32 / depth 8, {policy}",
            *(f"{one:.1f} MB" for one in used),
            [used[0] / used[1]],
            most=most,
            note="Glow, 64 channels, without the weights' gradients",
        )
    candidates = {policy: step(made(32, policy, 128), x, ADAM) for policy in ("invertible", "none")}
    seconds = interleaved(candidates, 5)
    yield Row(
        "a flow's step, invertible / none",
        ms(seconds["invertible"]),
        ms(seconds["none"]),
        over(seconds["invertible"], seconds["none"]),
        most=1.6,
        note=f"Glow, 32 steps, 128 channels, batch {BATCH}",
    )


def steps(
    what: str, mine: Loss, x: Tensor, theirs: Loss, noisy: Tensor, most: float, about: str
) -> Iterator[Row]:
    """One step, the peer's optimizer as PyTorch gives it, and fused."""
    candidates = {
        "ours": step(mine, x, ADAM),
        "theirs": step(theirs, noisy, torch.optim.Adam),
        "fused": step(theirs, noisy, ADAM),
    }
    seconds = interleaved(candidates, 5)
    for name, target, note in (("theirs", most, ""), ("fused", None, "; both with fused Adam")):
        yield Row(
            what,
            ms(seconds["ours"]),
            ms(seconds[name]),
            over(seconds["ours"], seconds[name]),
            most=target,
            note=about + note,
        )


def step(loss: Loss, x: Tensor, optimizer: Callable[..., torch.optim.Optimizer]) -> Callable[[], None]:
    """A function that takes one."""
    moves = optimizer(loss.parameters(), lr=1e-5)

    def take() -> None:
        moves.zero_grad()
        loss(x).backward()
        moves.step()

    return take


def drawn(model: nn.Module, n: int) -> None:
    model.sample(n)
