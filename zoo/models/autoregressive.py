"""Autoregressive models: p(x) = prod_t p(x_t | x_1 ... x_{t-1}), by one network for all t.

x is data, tokens are x as a sequence (B, T), T the number of elements of one example, V = levels; y (B,) are
classes, or y (B, T) targets: what is to be told at each token, PAD where nothing is.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.models.decoding import Decoding
from zoo.models.tokens import arranged, grid, sequence
from zoo.nn.attention import Attention
from zoo.nn.backbone import Backbone
from zoo.nn.feedforward import FeedForward
from zoo.nn.head import Logits
from zoo.nn.ranks import per_rank
from zoo.types import Density, Kind, Sampler, Unfit, scored


class Autoregressive(nn.Module):
    """A causal backbone that predicts each token from those before it: a GPT, over any integer data.

    loss = -sum_t log softmax(head(h_t))[x_t], h = backbone(start, x_1 ... x_{T-1}). Images are read by row,
    column and channel. PAD marks what is not there: at the end of a text it is neither counted nor seen.
    Radford et al. 2019.

    With targets it models y instead, p(y | x) = prod_t p(y_t | x_1 ... x_t) over the tokens that have one, and
    h = backbone(x_1 ... x_T). Then there is no p(x): neither a likelihood nor samples.

    classes     how many there are in y, if any
    targets     whether y (B, T) holds targets, in [0, levels), for a loss and an accuracy of nothing else
    conditional whether to start from the embedding of y, and so model p(x | y), or from one for all
    dim, depth, mixer, position, mlp, norm, norm_first, dropout   as zoo.nn.Backbone has them
    head        head(dim, levels), as zoo.nn.Logits, or zoo.nn.Logistics for levels that have an order
    tie         one matrix for the embedding of tokens and for the head (Press & Wolf 2017)

    Raises Unfit for real-valued data; ValueError for conditional=True without classes, or with targets, and
    for tie=True with a head that is no matrix.
    """

    kind: ClassVar[Kind] = "exact"

    def __init__(
        self,
        *,
        shape: Sequence[int],
        levels: int | None,
        classes: int | None = None,
        targets: bool = False,
        conditional: bool = False,
        dim: int = 768,
        depth: int = 12,
        mixer: Callable[..., Any] | Sequence[Callable[..., Any]] = Attention,
        position: Callable[..., Any] | None = None,
        mlp: Callable[..., Any] | None = FeedForward,
        norm: Callable[..., Any] = nn.LayerNorm,
        norm_first: bool = True,
        dropout: float = 0.0,
        head: Callable[..., Any] = Logits,
        tie: bool = False,
    ) -> None:
        super().__init__()
        if levels is None:
            raise Unfit(
                "a model of tokens needs integers below some number of levels, and this data is real-valued; "
                "try a dataset with levels",
                lambda space: space.levels is not None,
            )
        if conditional and not classes:
            raise ValueError(
                "conditional=true needs labels, and this data has no classes; try conditional=false"
            )
        if conditional and targets:
            raise ValueError(
                "conditional=true asks for labels as y, and the y of this data is targets; try conditional=false"
            )
        self.shape, self.levels = tuple(shape), levels
        self.targets, self.conditional = targets, conditional
        self.length = math.prod(shape)
        self.protocol = {"order": "row, column, channel"} if len(shape) == 3 else {}
        if targets:
            self.protocol["predicts"] = "targets"
        self.start = None if targets else nn.Embedding(classes if conditional and classes else 1, dim)
        self.embed = nn.Embedding(levels, dim)
        self.backbone = Backbone(
            dim,
            depth,
            mixer,
            position=position,
            mlp=mlp,
            norm=norm,
            norm_first=norm_first,
            dropout=dropout,
            grid=grid(shape),
        )
        self.head = head(dim, levels)
        for part in (self.start, self.embed, *self.head.modules()):
            if isinstance(part, nn.Embedding | nn.Linear):
                nn.init.normal_(part.weight, std=0.02)
        if tie:
            if not isinstance(self.head, Logits):
                raise ValueError(f"tie=true: {type(self.head).__name__} is no matrix to share; try tie=false")
            self.head.weight = self.embed.weight

    @property
    def blocks(self) -> nn.ModuleList:
        """What gradient checkpointing may recompute."""
        return self.backbone.blocks

    def can(self, ability: type) -> bool:
        """Whether it has an ability of zoo.types: with targets it tells y, and nothing of how likely x is."""
        return isinstance(self, ability) and not (self.targets and ability in (Density, Sampler))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Logits of every token given those before it, or of its target.  x (B, *shape) -> (B, T, V)"""
        return self.head(self.hidden(sequence(x), y))

    def hidden(self, tokens: Tensor, y: Tensor | None = None) -> Tensor:
        """What each token, or its target, is told from.  (B, T) -> (B, T, D)"""
        if self.targets:
            return self.backbone(self.embed(tokens.clamp(min=0)))
        return self.backbone(self.inputs(tokens[:, :-1], y))

    def told(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Features (N, D), and what is told from them (N,): every token, or the targets that there are."""
        tokens = sequence(x)
        h = self.hidden(tokens, y)
        if not self.targets:
            return h.flatten(0, 1), tokens.flatten()
        if y is None or y.shape != tokens.shape:
            found = "none" if y is None else f"y of shape {tuple(y.shape)}"
            raise ValueError(
                f"targets=true needs one target, or PAD, for each token of {tuple(tokens.shape)}; there is {found}"
            )
        there = scored(y)
        return h[there], y[there].long()  # a head over 8,192 symbols is too dear for filler

    def loss(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        """loss: nats per scored token; nats: per example."""
        h, tokens = self.told(x, y)
        nats = self.head.nats(h, tokens).sum()
        return {"loss": nats / per_rank(scored(tokens).sum(), self.training), "nats": nats / len(x)}

    def log_prob(self, x: Tensor, y: Tensor | None = None, *, since: int = 0) -> Tensor:
        """log p(x), or log p(x | y), in nats, (B,). ValueError with targets.

        since   only tokens from this one on are counted, given all before them: log p(x_since ... | x_1 ...)
        """
        return -self.nats(x, y, since=since).sum(1)

    def nats(self, x: Tensor, y: Tensor | None = None, *, since: int = 0) -> Tensor:
        """-log p of each token from `since` on, given all before it; 0 at PAD.  (B, *shape) -> (B, T - since)

        x may be longer than what was trained on, if the position encoding has no end.

        Raises ValueError if no token is left, and with targets.
        """
        tokens = sequence(x)
        if not 0 <= since < tokens.shape[1]:
            raise ValueError(
                f"since={since} leaves none of {tokens.shape[1]} tokens to be counted from there; "
                f"try 0 to {tokens.shape[1] - 1}"
            )
        h = self.backbone(self.inputs(tokens[:, :-1], y))[:, since:]
        return self.head.nats(h, tokens[:, since:])

    @torch.no_grad()
    def sample(
        self,
        n: int,
        y: Tensor | None = None,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        prompt: Tensor | None = None,
    ) -> Tensor:
        """n examples, (n, *shape), drawn token by token.

        y               (n,) classes; where they are missing and needed, drawn evenly
        temperature     logits are divided by it; 0 takes the most probable token
        top_k, top_p    draw only among the k most probable tokens, the fewest with probability p together
        prompt          (n, P) first tokens, which are kept; shorter ones end in PAD

        Raises ValueError if prompts are not n, or longer than an example, or have PAD before their end, with
        targets, and as zoo.models.decoding does.
        """
        draw = Decoding(temperature=temperature, top_k=top_k, top_p=top_p)
        device = self.embed.weight.device
        prompt = torch.empty(n, 0) if prompt is None else prompt
        prompt = prompt.to(device).long()
        here = scored(prompt)
        lengths = here.sum(1)
        if len(prompt) != n or prompt.shape[1] > self.length or (here[:, 1:] & ~here[:, :-1]).any():
            raise ValueError(
                f"a prompt of shape {tuple(prompt.shape)} does not start {n} examples of {self.length} "
                f"tokens; it takes ({n}, P) tokens, P at most {self.length}, with PAD only after the last"
            )
        if y is None and self.conditional and self.start is not None:
            y = torch.randint(self.start.num_embeddings, (n,), device=device)
        P = prompt.shape[1]
        ragged = not bool(here.all())
        shortest = int(lengths.min()) if ragged else P
        drawn: list[Tensor] = []
        with torch.inference_mode():  # faster by 5 % than without gradients alone
            h, state = self.backbone.prefill(self.inputs(prompt, y), lengths + 1 if ragged else None)
            h = h[torch.arange(n, device=device), lengths]
            while len(drawn) < self.length - shortest:
                if drawn:
                    if ragged:
                        # a full row, beside shorter ones, stays at its last position: what it draws is not kept
                        state = state._replace(t=state.t.clamp(max=self.length - 1))
                    h, state = self.backbone.step(self.embed(drawn[-1]), state)
                drawn.append(draw(self.head(h)))
        # longer prompts drew as many tokens as the shortest one, past their end
        tokens = F.pad(prompt, (0, len(drawn)))
        if drawn:
            places = lengths.unsqueeze(1) + torch.arange(len(drawn), device=device)
            tokens.scatter_(1, places, torch.stack(drawn, 1))
        return arranged(tokens[:, : self.length], self.shape, self.levels)

    def statistics(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        """How many tokens there are to tell, and how many of them were the most probable ones."""
        h, tokens = self.told(x, y)
        right = self.head(h).argmax(-1) == tokens  # never at PAD, which is no level
        return {"right": right.sum(), "tokens": scored(tokens).sum()}

    def summarize(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """accuracy: how often the most probable token was the right one, of those that count."""
        return {"accuracy": float(sums["right"]) / max(float(sums["tokens"]), 1.0)}

    def inputs(self, tokens: Tensor, y: Tensor | None) -> Tensor:
        """The start and the tokens, embedded.  (B, T), (B,) -> (B, 1 + T, D)"""
        if self.start is None:
            raise ValueError("a model with targets=true tells y from x; it has neither log_prob nor sample")
        if self.conditional and y is None:
            raise ValueError("a model with conditional=true needs y, the labels of x")
        label = tokens.new_zeros(len(tokens)) if y is None or not self.conditional else y.long()
        # what stands in for PAD is not seen by any token that counts
        return torch.cat([self.start(label).unsqueeze(1), self.embed(tokens.clamp(min=0))], 1)
