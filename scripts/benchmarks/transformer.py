"""A Transformer's training step against a plain one of the same size, written as nanoGPT is.

Ours is `model=transformer` as its config has it, with rotary positions; the plain one has learned positions, as
GPT-2. A second row gives ours no positions, so that little but the library itself differs.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measure import Row, interleaved, ms, over
from benchmarks.training import ADAMW
from zoo.models import Autoregressive
from zoo.nn import Attention, NoPosition, Rotary

VOCABULARY, T, BATCH, DIM, DEPTH, HEADS = 65, 256, 4, 256, 4, 8


class Plain(nn.Module):
    """Embeddings, pre-norm blocks, logits of the next token."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, DIM), nn.Embedding(T, DIM)
        self.blocks = nn.ModuleList(PlainBlock() for _ in range(DEPTH))
        self.norm, self.head = nn.LayerNorm(DIM), nn.Linear(DIM, VOCABULARY, bias=False)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.tokens(x) + self.places(torch.arange(x.shape[1]))
        for block in self.blocks:
            h = block(h)
        return F.cross_entropy(self.head(self.norm(h)).view(-1, VOCABULARY), y.reshape(-1))


class PlainBlock(nn.Module):
    """Attention and a feed-forward network, each added to what comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.qkv, self.out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.wide, self.narrow = nn.Linear(DIM, 4 * DIM), nn.Linear(4 * DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        B, T, D = x.shape
        q, k, v = self.qkv(self.first(x)).split(D, dim=2)
        q, k, v = (part.view(B, T, HEADS, D // HEADS).transpose(1, 2) for part in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).contiguous().view(B, T, D))
        return x + self.narrow(F.gelu(self.wide(self.second(x))))


def rows() -> Iterator[Row]:
    torch.set_num_threads(1)
    x = torch.randint(VOCABULARY, (BATCH, T + 1))
    plain = Plain()
    candidates = {"plain": step(plain, lambda: plain.loss(x[:, :-1], x[:, 1:]))}
    for name, position in (("rotary", Rotary), ("none", NoPosition)):
        model = ours(position)
        candidates[name] = step(model, partial(our_loss, model, x[:, 1:]))
    seconds = interleaved(candidates, 25)
    count = sum(p.numel() for p in plain.parameters())
    size = f"dim {DIM}, {DEPTH} blocks, {T} tokens, batch {BATCH}, {count:,} weights"
    for name, most, what in (("rotary", 1.05, "rotary positions"), ("none", None, "no positions")):
        yield Row(
            f"a Transformer's step, {what}",
            ms(seconds[name]),
            ms(seconds["plain"]),
            over(seconds[name], seconds["plain"]),
            most=most,
            note=f"a plain one, written as nanoGPT is, learned positions; {size}",
        )


def ours(position: type) -> Autoregressive:
    return Autoregressive(
        shape=(T,),
        levels=VOCABULARY,
        dim=DIM,
        depth=DEPTH,
        mixer=partial(Attention, heads=HEADS),
        position=position,
    )


def our_loss(model: Autoregressive, x: Tensor) -> Tensor:
    return model.loss(x)["loss"]


def step(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """A function that takes one step."""
    optimizer = ADAMW(model.parameters())

    def take() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return take
