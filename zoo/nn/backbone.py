"""A stack of residual blocks around any token mixer: Transformers, and whatever replaces attention.

x (B, T, D); x_t (B, D) is one token. A factory is called with what only its caller knows, as `mixer(dim,
causal=...)`.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.attention import Attention
from zoo.nn.bidirectional import Bidirectional
from zoo.nn.block import Block
from zoo.nn.feedforward import FeedForward
from zoo.nn.fitting import Factory, check_fit, kind, offered, open_to, own_position, shared_heads
from zoo.nn.position import NoPosition

After = Callable[[int, Tensor], Tensor]


def same(layer: int, x: Tensor) -> Tensor:
    """Nothing is done after a block."""
    return x


class State(NamedTuple):
    """What a backbone remembers.

    t       the next token's position, (1,) or (B, 1)
    blocks  each block's own state
    past    the last inputs, as many as the encoding looks at, (B, R, D)
    """

    t: Tensor
    blocks: list[Any]
    past: Tensor


class Backbone(nn.Module):
    """depth blocks and a last norm.  x (B, T, D) -> (B, T, D)

    mixer       mixer(dim), which is also offered causal, position, layer and depth if it has such arguments.
                A list is dealt out by depth, so a hybrid is [Mamba, Mamba, Attention]. One without an argument
                causal looks back only, and gets a reversed copy (zoo.nn.Bidirectional) if causal is False
    position    position(dim, heads, depth), built once for all blocks; None is what the mixer's class names
                as its `own`. Offered causal, length and width where it has such arguments and they are None
    grid        how the tokens lie, (T,) or (rows, columns), for encodings that need to know
    mlp         mlp(dim), which is also offered layer and depth, or None for blocks without; a mixer whose
                class says `whole = True` gets none. It may have prefill and step, as a mixer has
    norm        norm(dim), before each branch and after the last
    norm_first  False puts each norm after its branch has been added (the post-norm of Vaswani et al. 2017,
                BERT and RoFormer), and none after the last block, which ends in one
    dropout     probability that a feature is dropped, of the input and of each branch, while training

    What is done after each block can be given with every call: `after(layer, x)`, as attention to another
    sequence. Residual branches end in a linear map named `out`, whose weights start 1/sqrt(2 depth) as large (Radford
    et al. 2019). With `prefill` and `step` in all mixers it can go on token by token, at the same result.

    Raises ValueError if none of the mixers can do what the encoding asks. In a hybrid it goes to those that
    can.
    """

    def __init__(
        self,
        dim: int,
        depth: int = 6,
        mixer: Factory | Sequence[Factory] = Attention,
        *,
        position: Factory | None = None,
        mlp: Factory | None = FeedForward,
        norm: Factory = nn.LayerNorm,
        norm_first: bool = True,
        dropout: float = 0.0,
        causal: bool = True,
        grid: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        mixers = [mixer] if callable(mixer) else list(mixer)
        position = own_position(mixers) if position is None else position
        able = check_fit(position, mixers, causal)
        facts = {
            "causal": causal,
            "length": None if grid is None else math.prod(grid),
            "width": None if grid is None or len(grid) < 2 else grid[-1],
        }
        self.position = position(dim, shared_heads(able), depth, **open_to(position, **facts))
        self.blocks = nn.ModuleList()
        taken = 0
        for layer in range(depth):
            factory = mixers[layer % len(mixers)]
            place = self.position.layer(taken) if factory in able else NoPosition(dim)
            taken += factory in able
            build = partial(
                factory, **offered(factory, causal=causal, position=place, layer=layer, depth=depth)
            )
            if not causal and not offered(factory, causal=causal):
                build = partial(Bidirectional, mixer=build)
            feed = None
            if mlp is not None and not getattr(kind(factory), "whole", False):
                feed = partial(mlp, **offered(mlp, layer=layer, depth=depth))
            self.blocks.append(Block(dim, build, mlp=feed, norm=norm, norm_first=norm_first, dropout=dropout))
        self.norm = norm(dim) if norm_first else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        with torch.no_grad():
            for block in self.blocks:
                for branch in block.modules():
                    if isinstance(out := getattr(branch, "out", None), nn.Linear):
                        out.weight.mul_((2 * depth) ** -0.5)

    @property
    def position_name(self) -> str:
        """The encoding in force, whoever chose it: "Rotary"."""
        return type(self.position).__name__

    def forward(self, x: Tensor, *, after: After = same) -> Tensor:
        t = torch.arange(x.shape[1], device=x.device)
        for layer, block in enumerate(self.blocks):
            x = after(layer, block(self.enter(x, t, layer)))
        return self.norm(x)

    def prefill(
        self, x: Tensor, lengths: Tensor | None = None, *, after: After = same
    ) -> tuple[Tensor, State]:
        """forward, and the state after it.  x (B, T, D); lengths (B,) if only x[b, :lengths[b]] counts

        Raises ValueError if a mixer cannot go on token by token.
        """
        B, T, D = x.shape
        if T == 0:  # what has no token yet goes on as one of which nothing counts
            y, state = self.prefill(x.new_zeros(B, 1, D), torch.zeros(B, device=x.device).long(), after=after)
            return y[:, :0], state
        t = torch.arange(T, device=x.device)
        past = recent(x, lengths, self.position.reach)
        states = []
        for layer, block in enumerate(self.blocks):
            x, state = block.prefill(self.enter(x, t, layer), lengths)
            x = after(layer, x)
            states.append(state)
        end = torch.full((1,), T, device=x.device) if lengths is None else lengths.unsqueeze(1)
        return self.norm(x), State(end, states, past)

    def step(self, x_t: Tensor, state: State, *, after: After = same) -> tuple[Tensor, State]:
        """The output for one more token.  x_t (B, D) -> (B, D); a state is changed: it serves once"""
        states = []
        window = x_t.unsqueeze(1)
        t = state.t
        if self.position.reach:
            window = torch.cat([state.past, window], 1)
            t = t + torch.arange(-self.position.reach, 1, device=x_t.device)
        x = self.enter(window, t, 0)[:, -1]
        for layer, (block, before) in enumerate(zip(self.blocks, state.blocks, strict=True)):
            if layer and "embed" in self.position.places:
                x = self.enter(x.unsqueeze(1), state.t, layer).squeeze(1)
            x, behind = block.step(x, before)
            if after is not same:
                x = after(layer, x.unsqueeze(1)).squeeze(1)
            states.append(behind)
        return self.norm(x), State(state.t + 1, states, window[:, 1:])

    def enter(self, x: Tensor, t: Tensor, layer: int) -> Tensor:
        """The input of a block, with positions in it.  (B, T, D) -> (B, T, D)"""
        x = self.position.embed(x, t, layer)
        return self.dropout(x) if layer == 0 else x


def recent(x: Tensor, lengths: Tensor | None, reach: int) -> Tensor:
    """The last inputs of each example, with zeros before its first.  (B, T, D) -> (B, reach, D)"""
    x = F.pad(x, (0, 0, reach, 0))
    if lengths is None:
        return x[:, x.shape[1] - reach :]
    last = lengths[:, None] + torch.arange(reach, device=x.device)
    return x.gather(1, last.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
