"""A stack of residual blocks around any token mixer: Transformers, and whatever replaces attention.

x (B, T, D); x_t (B, D) is one token. A factory is called with what only its caller knows, as `mixer(dim,
causal=...)`.
"""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from zoo.nn.attention import Attention
from zoo.nn.feedforward import FeedForward
from zoo.nn.position import NoPosition, Position, encodings, fits

Factory = Callable[..., Any]


class State(NamedTuple):
    """What a backbone remembers: t, the next token's position, (1,) or (B, 1); and each block's own state."""

    t: Tensor
    blocks: list[Any]


class Backbone(nn.Module):
    """depth blocks and a last norm.  x (B, T, D) -> (B, T, D)

    mixer       mixer(dim), which is also offered causal, position, layer and depth if it has such arguments.
                A list is dealt out by depth, so a hybrid is [Mamba, Mamba, Attention]
    position    position(dim, heads, depth), built once for all blocks; None is what the mixer's class names
                as its `own`
    mlp         mlp(dim), or None for blocks without; a mixer whose class says `whole = True` gets none
    norm        norm(dim), before each branch
    dropout     probability that a feature is dropped, of the input and of each branch, while training

    Residual branches end in a linear map named `out`, whose weights start 1/sqrt(2 depth) as large (Radford
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
        dropout: float = 0.0,
        causal: bool = True,
    ) -> None:
        super().__init__()
        mixers = [mixer] if callable(mixer) else list(mixer)
        position = own_position(mixers) if position is None else position
        able = check_fit(position, mixers, causal)
        self.position = position(dim, shared_heads(able), depth)
        self.blocks = nn.ModuleList()
        for layer in range(depth):
            factory = mixers[layer % len(mixers)]
            place = self.position.layer(layer) if factory in able else NoPosition(dim)
            build = partial(
                factory, **offered(factory, causal=causal, position=place, layer=layer, depth=depth)
            )
            feed = None if getattr(kind(factory), "whole", False) else mlp
            self.blocks.append(Block(dim, build, mlp=feed, norm=norm, dropout=dropout))
        self.norm = norm(dim)
        self.dropout = nn.Dropout(dropout)
        with torch.no_grad():
            for block in self.blocks:
                for branch in (block.mixer, block.mlp):
                    if isinstance(out := getattr(branch, "out", None), nn.Linear):
                        out.weight.mul_((2 * depth) ** -0.5)

    @property
    def position_name(self) -> str:
        """The encoding in force, whoever chose it: "Rotary"."""
        return type(self.position).__name__

    def forward(self, x: Tensor) -> Tensor:
        t = torch.arange(x.shape[1], device=x.device)
        for layer, block in enumerate(self.blocks):
            x = block(self.enter(x, t, layer))
        return self.norm(x)

    def prefill(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, State]:
        """forward, and the state after it.  x (B, T, D); lengths (B,) if only x[b, :lengths[b]] counts

        Raises ValueError if a mixer cannot go on token by token.
        """
        T = x.shape[1]
        t = torch.arange(T, device=x.device)
        states = []
        for layer, block in enumerate(self.blocks):
            x, state = block.prefill(self.enter(x, t, layer), lengths)
            states.append(state)
        end = torch.full((1,), T, device=x.device) if lengths is None else lengths.unsqueeze(1)
        return self.norm(x), State(end, states)

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        """The output for one more token.  x_t (B, D) -> (B, D); a state is changed: it serves once"""
        states = []
        for layer, (block, before) in enumerate(zip(self.blocks, state.blocks, strict=True)):
            x_t = self.enter(x_t.unsqueeze(1), state.t, layer).squeeze(1)
            x_t, after = block.step(x_t, before)
            states.append(after)
        return self.norm(x_t), State(state.t + 1, states)

    def enter(self, x: Tensor, t: Tensor, layer: int) -> Tensor:
        """The input of a block, with positions in it.  (B, T, D) -> (B, T, D)"""
        x = self.position.embed(x, t, layer)
        return self.dropout(x) if layer == 0 else x


class Block(nn.Module):
    """Mix tokens, then channels, each on a normalised copy added back.  (B, T, D) -> (B, T, D)

    x = x + mixer(norm(x));  x = x + mlp(norm(x)): the pre-norm order of Radford et al. 2019. mlp None leaves
    the second out.
    """

    def __init__(
        self,
        dim: int,
        mixer: Factory,
        *,
        mlp: Factory | None,
        norm: Factory = nn.LayerNorm,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.mixer_norm = norm(dim)
        self.mixer = mixer(dim)
        self.mlp_norm = None if mlp is None else norm(dim)
        self.mlp = None if mlp is None else mlp(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.feed(x + self.dropout(self.mixer(self.mixer_norm(x))))

    def prefill(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Any]:
        if not hasattr(self.mixer, "step"):
            raise ValueError(
                f"{type(self.mixer).__name__} has no step, so its network cannot go on token by token; "
                "take a recurrent mixer or causal attention to sample"
            )
        mixed, state = self.mixer.prefill(self.mixer_norm(x), lengths)
        return self.feed(x + self.dropout(mixed)), state

    def step(self, x_t: Tensor, state: Any) -> tuple[Tensor, Any]:
        mixed, state = self.mixer.step(self.mixer_norm(x_t), state)
        return self.feed(x_t + self.dropout(mixed)), state

    def feed(self, x: Tensor) -> Tensor:
        return x if self.mlp is None else x + self.dropout(self.mlp(self.mlp_norm(x)))


def kind(factory: Factory) -> Any:
    """The class, or function, that a factory calls in the end."""
    return factory.func if isinstance(factory, partial) else factory


def offered(factory: Factory, **arguments: Any) -> dict[str, Any]:
    """Those of the arguments that a factory has by name."""
    names = inspect.signature(factory).parameters
    return {name: value for name, value in arguments.items() if name in names}


def own_position(mixers: Sequence[Factory]) -> type[Position]:
    """The encoding that the mixers' classes name: of a hybrid, the first that is one."""
    own = [getattr(kind(mixer), "own", NoPosition) for mixer in mixers]
    return next((position for position in own if position is not NoPosition), NoPosition)


def check_fit(position: Factory, mixers: Sequence[Factory], causal: bool) -> list[Factory]:
    """The mixers that can do what an encoding asks.

    Raises ValueError if there is none, and names the encodings that do fit.
    """
    able = [mixer for mixer in mixers if fits(kind(position), kind(mixer), causal)]
    if not able:
        names = " and ".join(dict.fromkeys(kind(mixer).__name__ for mixer in mixers))
        good = [p.__name__ for p in encodings() if any(fits(p, kind(m), causal) for m in mixers)]
        raise ValueError(
            f"position={kind(position).__name__} does not work with "
            f"{'causal' if causal else 'bidirectional'} {names}; "
            f"it takes {', '.join(good) or 'no encoding that is known'}"
        )
    return able


def shared_heads(mixers: Sequence[Factory]) -> int:
    """How many heads the mixers have, 1 if they have none.

    Raises ValueError if they differ: one encoding serves them all.
    """
    parameters = [inspect.signature(mixer).parameters for mixer in mixers]
    heads = {p["heads"].default for p in parameters if "heads" in p}
    if len(heads) > 1:
        raise ValueError(
            f"mixers with heads={sorted(heads)} cannot share one position encoding; give all the same"
        )
    return heads.pop() if heads else 1
