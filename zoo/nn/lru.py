"""The linear recurrent unit: a complex diagonal recurrence whose eigenvalues start on a ring."""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.chunked import precise
from zoo.nn.feedforward import scaled_init
from zoo.nn.scan import final, scan


class LRU(nn.Module):
    """h_t = lambda h_{t-1} + gamma B x_t, y_t = Re(C h_t) + D x_t, then a gate.  (B, T, D) -> (B, T, D)

    lambda = exp(-exp(nu_log) + i exp(theta_log)), N complex numbers inside the unit circle; gamma starts as
    sqrt(1 - |lambda|^2), which keeps h as large as its input. Then glu(gelu(y) W_out). Orvieto et al. 2023,
    section 3 and appendix A.

    state       N, complex numbers that the layer remembers
    r_min, r_max        |lambda| starts between them, evenly over the ring
    max_phase   its angle starts between 0 and this, in radians: less for longer memories

    The paper trains nu_log, theta_log and gamma_log at a quarter of the learning rate, without decay.
    """

    honours: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self,
        dim: int,
        state: int = 256,
        *,
        r_min: float = 0.9,
        r_max: float = 0.999,
        max_phase: float = 2 * math.pi,
    ) -> None:
        super().__init__()
        if not 0 <= r_min < r_max < 1:
            raise ValueError(
                f"r_min={r_min}, r_max={r_max} is no ring inside the unit circle; try 0.9, 0.999"
            )
        radius2 = torch.rand(state) * (r_max**2 - r_min**2) + r_min**2
        phase = torch.rand(state).clamp(min=1e-6) * max_phase
        self.nu_log = nn.Parameter((-0.5 * radius2.log()).log())
        self.theta_log = nn.Parameter(phase.log())
        self.gamma_log = nn.Parameter(0.5 * torch.log1p(-radius2))
        # real and imaginary parts as neighbouring features; the sign of C's second is its own
        self.B = nn.Linear(dim, 2 * state, bias=False)
        self.C = nn.Linear(2 * state, dim, bias=False)
        self.D = nn.Parameter(torch.randn(dim))
        self.out = nn.Linear(dim, 2 * dim)
        nn.init.normal_(self.B.weight, std=(2 * dim) ** -0.5)
        nn.init.normal_(self.C.weight, std=state**-0.5)
        scaled_init(self.out)

    @property
    def eigenvalues(self) -> Tensor:
        """lambda, (N,) complex."""
        nu_log, theta_log = precise(self.nu_log, self.theta_log)
        return torch.polar((-nu_log.exp()).exp(), theta_log.exp())

    def forward(self, x: Tensor) -> Tensor:
        return self.prefill(x)[0]

    def prefill(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """forward, and the state after it, (B, N) complex.  lengths (B,) if only x[b, :lengths[b]] counts"""
        b = self.enter(x)
        h = scan(self.eigenvalues.expand(1, *b.shape[1:]), b)
        return self.read(h, x), final(h, lengths)

    def step(self, x_t: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The output for one more token.  x_t (B, D) -> (B, D)"""
        state = self.eigenvalues * state + self.enter(x_t)
        return self.read(state, x_t), state

    def enter(self, x: Tensor) -> Tensor:
        """gamma B x, (..., N) complex, in float32 at least: half precision has no room near the circle."""
        b = self.B(x)
        b = b.to(torch.promote_types(b.dtype, torch.float32)).unflatten(-1, (-1, 2))
        return self.gamma_log.exp() * torch.view_as_complex(b)

    def read(self, h: Tensor, x: Tensor) -> Tensor:
        y = self.C(torch.view_as_real(h).flatten(-2).to(self.C.weight.dtype)) + self.D * x
        return F.glu(self.out(F.gelu(y)), -1)
