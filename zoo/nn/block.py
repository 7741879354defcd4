"""A block of a backbone: one branch mixes tokens, another mixes channels."""

from typing import Any

from torch import Tensor, nn

from zoo.nn.fitting import Factory


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
