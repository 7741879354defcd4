"""A stack of residual blocks around any token mixer: Transformers, and whatever replaces attention.

x (B, T, D); x_t (B, D) is one token. A factory is called with what only its caller knows, as `mixer(dim,
causal=...)`.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.attention import Attention
from zoo.nn.bidirectional import Bidirectional
from zoo.nn.feedforward import FeedForward
from zoo.nn.position import NoPosition, Position, encodings, fits

Factory = Callable[..., Any]
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


class Block(nn.Module):
    """Mix tokens, then channels, each on a normalised copy added back.  (B, T, D) -> (B, T, D)

    x = x + mixer(norm(x));  x = x + mlp(norm(x)): the pre-norm order of Radford et al. 2019. norm_first=False:
    x = norm(x + mixer(x));  x = norm(x + mlp(x)). mlp None leaves the second out.
    """

    def __init__(
        self,
        dim: int,
        mixer: Factory,
        *,
        mlp: Factory | None,
        norm: Factory = nn.LayerNorm,
        norm_first: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.mixer_norm = norm(dim)
        self.mixer = mixer(dim)
        self.mlp_norm: Any = None if mlp is None else norm(dim)
        self.mlp: Any = None if mlp is None else mlp(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.feed(self.add(x, self.mixer(self.enter(x, self.mixer_norm)), self.mixer_norm))

    def prefill(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Any]:
        if not hasattr(self.mixer, "step"):
            raise ValueError(
                f"{type(self.mixer).__name__} has no step, so its network cannot go on token by token; "
                "take a recurrent mixer or causal attention to sample"
            )
        mixed, state = self.mixer.prefill(self.enter(x, self.mixer_norm), lengths)
        x = self.add(x, mixed, self.mixer_norm)
        if not hasattr(self.mlp, "step"):
            return self.feed(x), (state, None)
        fed, last = self.mlp.prefill(self.enter(x, self.mlp_norm), lengths)
        return self.add(x, fed, self.mlp_norm), (state, last)

    def step(self, x_t: Tensor, state: Any) -> tuple[Tensor, Any]:
        state, last = state
        mixed, state = self.mixer.step(self.enter(x_t, self.mixer_norm), state)
        x_t = self.add(x_t, mixed, self.mixer_norm)
        if not hasattr(self.mlp, "step"):
            return self.feed(x_t), (state, None)
        fed, last = self.mlp.step(self.enter(x_t, self.mlp_norm), last)
        return self.add(x_t, fed, self.mlp_norm), (state, last)

    def feed(self, x: Tensor) -> Tensor:
        if self.mlp is None:
            return x
        return self.add(x, self.mlp(self.enter(x, self.mlp_norm)), self.mlp_norm)

    def enter(self, x: Tensor, norm: nn.Module) -> Tensor:
        """What a branch sees."""
        return norm(x) if self.norm_first else x

    def add(self, x: Tensor, branch: Tensor, norm: nn.Module) -> Tensor:
        """What comes after it."""
        x = x + (self.dropout(branch) if self.training else branch)
        return x if self.norm_first else norm(x)


def kind(factory: Factory) -> Any:
    """The class, or function, that a factory calls in the end."""
    return factory.func if isinstance(factory, partial) else factory


def offered(factory: Factory, **arguments: Any) -> dict[str, Any]:
    """Those of the arguments that a factory has by name."""
    names = inspect.signature(factory).parameters
    return {name: value for name, value in arguments.items() if name in names}


def open_to(factory: Factory, **arguments: Any) -> dict[str, Any]:
    """Those of the arguments that a factory has by name and still leaves at None."""
    names = inspect.signature(factory).parameters
    return {name: arguments[name] for name in offered(factory, **arguments) if names[name].default is None}


def recent(x: Tensor, lengths: Tensor | None, reach: int) -> Tensor:
    """The last inputs of each example, with zeros before its first.  (B, T, D) -> (B, reach, D)"""
    x = F.pad(x, (0, 0, reach, 0))
    if lengths is None:
        return x[:, x.shape[1] - reach :]
    last = lengths[:, None] + torch.arange(reach, device=x.device)
    return x.gather(1, last.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


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
        error = ValueError(
            f"position={kind(position).__name__} does not work with "
            f"{'causal' if causal else 'bidirectional'} {names}; "
            f"it takes {', '.join(good) or 'no encoding that is known'}"
        )
        error.instead = good  # what a command line may tell by the names that it knows
        raise error
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
