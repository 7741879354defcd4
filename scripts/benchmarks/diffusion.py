"""Networks of diffusion beside those of peers: a step of training, its memory, and an evaluation as sampling has it.

A step is the squared error, its gradients and AdamW; ours is fused, as its config has it, theirs as PyTorch gives it.
diffusers' U-Net has ours' layers and parameters, denoising-diffusion-pytorch's as many FLOPs at another width, bare
PyTorch's DiT ours' layers. FLOPs are counted by PyTorch, of forward and backward; ours are fewer than diffusers' for
the same function, for it doubles the sides and convolves at once.
"""

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.layers import DEVICE, Step, clock
from benchmarks.measure import INSTALL, Row, interleaved, ms, over
from benchmarks.training import ADAMW
from zoo.nn import Attention, DiT, UNet

B, SHAPE = 16, (3, 32, 32)
DIM, WIDER = 32, 36  # channels of the U-Nets at the full size
MULT = (1, 2, 2, 2)
WIDTH, DEPTH, HEADS, PATCH = 192, 6, 3, 4  # of the DiTs


def rows() -> Iterator[Row]:
    torch.set_num_threads(1)
    for package, make, most in (
        ("diffusers", diffusers, 0.95),
        ("denoising_diffusion_pytorch", denoising, 0.9),
    ):
        if importlib.util.find_spec(package) is None:
            yield Row("U-Net: step, memory and sampling", theirs=package, note=INSTALL)
            continue
        ours = UNet(SHAPE, None, dim=DIM, mult=MULT)
        targets = {"step": most, "memory": 1.0, "sampling": most}
        yield from against("U-Net", ours, make(), targets, package)
    ours = DiT(SHAPE, None, dim=WIDTH, depth=DEPTH, patch=PATCH, mixer=partial(Attention, heads=HEADS))
    targets = {"step": 1.05, "memory": 1.05, "sampling": 1.05}
    yield from against("DiT", ours, BareDiT(), targets, "bare PyTorch, its AdamW fused too", ADAMW)


def against(
    what: str,
    ours: nn.Module,
    theirs: nn.Module,
    targets: Mapping[str, float],
    note: str,
    their_optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
) -> Iterator[Row]:
    """A step, the memory of its loss and gradients, and an evaluation without them."""
    x, t = torch.randn(B, *SHAPE, device=DEVICE), torch.rand(B, device=DEVICE)
    pair = {"ours": ours.to(DEVICE), "theirs": theirs.to(DEVICE)}
    told = " and ".join(f"{flops(model, x, t) / 1e9:.1f}" for model in pair.values())
    note = f"{note}; batch {B}, {told} GFLOP"
    optimizers = {"ours": ADAMW, "theirs": their_optimizer}
    steps = {name: training(model, optimizers[name], x, t) for name, model in pair.items()}
    yield row(f"{what}: step", interleaved(steps, 9, warm=2), targets["step"], note)
    used = [Step(Timed(model, t), x).memory() for model in pair.values()]
    megabytes = (f"{one:.3g} MB" for one in used)
    yield Row(f"{what}: memory", *megabytes, [used[0] / used[1]], most=targets["memory"], note=note)
    draws = {name: sampling(model.eval(), x, t) for name, model in pair.items()}
    yield row(f"{what}: sampling", interleaved(draws, 9, warm=2), targets["sampling"], note)


def row(what: str, seconds: Mapping[str, list[float]], most: float, note: str) -> Row:
    ratios = over(seconds["ours"], seconds["theirs"])
    return Row(what, ms(seconds["ours"]), ms(seconds["theirs"]), ratios, most=most, note=note)


def flops(model: nn.Module, x: Tensor, t: Tensor) -> int:
    """Those of an evaluation and its gradients, of all examples."""
    with FlopCounterMode(display=False) as counter:
        model(x, t).sum().backward()
    model.zero_grad()
    return counter.get_total_flops()


def training(
    model: nn.Module, optimizer: Callable[..., torch.optim.Optimizer], x: Tensor, t: Tensor
) -> Callable[[], float]:
    """A function that takes a step and returns its seconds."""
    moves, v = optimizer(model.parameters()), torch.randn_like(x)

    def take() -> float:
        before = clock()
        moves.zero_grad()
        F.mse_loss(model(x, t), v).backward()
        moves.step()
        return clock() - before

    model.train()
    return take


def sampling(model: nn.Module, x: Tensor, t: Tensor) -> Callable[[], float]:
    """A function that evaluates once and returns its seconds."""

    def take() -> float:
        before = clock()
        with torch.no_grad():
            model(x, t)
        return clock() - before

    return take


class Timed(nn.Module):
    """A network at times that are given already.  x (B, C, H, W) -> the same"""

    def __init__(self, network: nn.Module, t: Tensor) -> None:
        super().__init__()
        self.network, self.t = network, t

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x, self.t)


def diffusers() -> nn.Module:
    """diffusers' UNet2DModel with DDPM's layers: as many parameters as ours."""
    from diffusers import UNet2DModel

    down, up = ["DownBlock2D"] * len(MULT), ["UpBlock2D"] * len(MULT)
    down[1], up[-2] = "AttnDownBlock2D", "AttnUpBlock2D"  # at 16 x 16
    model = UNet2DModel(
        sample_size=SHAPE[1],
        in_channels=SHAPE[0],
        out_channels=SHAPE[0],
        block_out_channels=[DIM * m for m in MULT],
        down_block_types=down,
        up_block_types=up,
        attention_head_dim=None,
        dropout=0.1,
        norm_num_groups=8,  # as many as ours at the full size
        norm_eps=1e-6,
    )
    return Called(model, lambda network, x, t: network(x, 1000 * t).sample)


def denoising() -> nn.Module:
    """denoising-diffusion-pytorch's Unet, as wide as gives ours' FLOPs."""
    from denoising_diffusion_pytorch import Unet

    model = Unet(WIDER, dim_mults=MULT, dropout=0.1)
    return Called(model, lambda network, x, t: network(x, 1000 * t))


class Called(nn.Module):
    """A peer's network, called as ours: x, t -> what it tells."""

    def __init__(self, network: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.network, self.call = network, call

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.call(self.network, x, t)


class BareDiT(nn.Module):
    """A DiT in plain PyTorch, as one writes it for one size: no choices, no condition but the time."""

    def __init__(self) -> None:
        super().__init__()
        self.cut = nn.Conv2d(SHAPE[0], WIDTH, PATCH, stride=PATCH)
        tokens = (SHAPE[1] // PATCH) ** 2
        self.place = nn.Parameter(torch.randn(1, tokens, WIDTH), requires_grad=False)
        self.time = nn.Sequential(nn.Linear(256, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.blocks = nn.ModuleList(BareBlock() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH, elementwise_affine=False)
        self.last = nn.Linear(WIDTH, 2 * WIDTH)
        self.leave = nn.Linear(WIDTH, PATCH * PATCH * SHAPE[0])

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        frequencies = 1000 * torch.exp(-torch.arange(128, device=x.device) * 9.21034 / 128)
        angle = t[:, None] * frequencies
        h = F.silu(self.time(torch.cat([angle.cos(), angle.sin()], 1)))
        x = self.cut(x).flatten(2).mT + self.place
        for block in self.blocks:
            x = block(x, h)
        shift, scale = self.last(h)[:, None].chunk(2, -1)
        x = self.leave(self.norm(x) * (1 + scale) + shift)
        side = SHAPE[1] // PATCH
        x = x.view(len(x), side, side, PATCH, PATCH, SHAPE[0])
        return x.permute(0, 5, 1, 3, 2, 4).reshape(len(x), *SHAPE)


class BareBlock(nn.Module):
    """Its block, with adaLN-Zero."""

    def __init__(self) -> None:
        super().__init__()
        self.modulation = nn.Linear(WIDTH, 6 * WIDTH)
        self.norm = nn.LayerNorm(WIDTH, elementwise_affine=False)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp_norm = nn.LayerNorm(WIDTH, elementwise_affine=False)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(approximate="tanh"), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        a, b, c, d, e, f = self.modulation(h)[:, None].chunk(6, -1)
        qkv = self.qkv(self.norm(x) * (1 + b) + a).unflatten(-1, (3, HEADS, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + c * self.out(y)
        return x + f * self.mlp(self.mlp_norm(x) * (1 + e) + d)
