"""The gated recurrent networks that came before attention, as mixers.

Parameters are those of torch.nn: gates are stacked in its order. `step` is written out by the papers'
equations, `forward` is torch's own, fast form.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from zoo.nn.feedforward import scaled_init


class LSTM(nn.Module):
    """Long short-term memory: a cell that is written, kept and read through gates.  (B, T, D) -> (B, T, D)

    c_t = f c_{t-1} + i tanh(g), h_t = o tanh(c_t), y_t = h_t W_out, with gates i, f, o in (0, 1) and g linear
    in x_t and h_{t-1}. Hochreiter & Schmidhuber 1997; Gers et al. 2000 for f, whose bias starts at 1.

    hidden      numbers in h; None is D
    """

    honours: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, dim: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = hidden or dim
        self.cell = started(nn.LSTM(dim, hidden, batch_first=True))
        with torch.no_grad():
            self.cell.bias_ih_l0[hidden : 2 * hidden] = 1.0
        self.out = nn.Linear(hidden, dim)
        scaled_init(self.out)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.cell(x)[0])

    def prefill(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """forward, and the state after it, h and c (B, H).  lengths (B,) if only x[b, :lengths[b]] counts"""
        h, (last, c) = run(self.cell, x, lengths)
        return self.out(h), (last[0], c[0])

    def step(self, x_t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The output for one more token.  x_t (B, D) -> (B, D)"""
        h, c = state
        from_x, from_h = both(self.cell, x_t, h)
        i, f, g, o = (from_x + from_h).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return self.out(h), (h, c)


class GRU(nn.Module):
    """The gated recurrent unit: a state that is partly forgotten, partly renewed.  (B, T, D) -> (B, T, D)

    h_t = (1 - z) n + z h_{t-1}, n = tanh(W x_t + r U h_{t-1}), y_t = h_t W_out, with gates r, z in (0, 1)
    linear in x_t and h_{t-1}. Cho et al. 2014; r acts after the product with U, as in torch, not before.

    hidden      numbers in h; None is D
    """

    honours: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, dim: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = hidden or dim
        self.cell = started(nn.GRU(dim, hidden, batch_first=True))
        self.out = nn.Linear(hidden, dim)
        scaled_init(self.out)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.cell(x)[0])

    def prefill(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """forward, and the state after it: h (B, H).  lengths (B,) if only x[b, :lengths[b]] counts"""
        h, last = run(self.cell, x, lengths)
        return self.out(h), last[0]

    def step(self, x_t: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The output for one more token.  x_t (B, D) -> (B, D)"""
        from_x, from_h = both(self.cell, x_t, state)
        (r, z, n), (r_h, z_h, n_h) = from_x.chunk(3, -1), from_h.chunk(3, -1)
        r, z = (r + r_h).sigmoid(), (z + z_h).sigmoid()
        h = (1 - z) * (n + r * n_h).tanh() + z * state
        return self.out(h), h


def started(cell: nn.RNNBase) -> Any:
    """The cell with orthogonal recurrent maps (Saxe et al. 2014), Glorot's for the input, and biases 0."""
    for weight in cell.weight_ih_l0.chunk(cell.weight_ih_l0.shape[0] // cell.hidden_size):
        nn.init.xavier_uniform_(weight)
    for weight in cell.weight_hh_l0.chunk(cell.weight_hh_l0.shape[0] // cell.hidden_size):
        nn.init.orthogonal_(weight)
    nn.init.zeros_(cell.bias_ih_l0)
    nn.init.zeros_(cell.bias_hh_l0)
    return cell


def run(cell: nn.RNNBase, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Any]:
    """h of all tokens, (B, T, H), and the state after each example's last."""
    if lengths is None:
        return cell(x)
    packed = pack_padded_sequence(x, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False)
    h, state = cell(packed)
    begun = (lengths > 0).view(1, -1, 1)  # an empty example leaves the state at 0
    state = state * begun if isinstance(state, Tensor) else tuple(part * begun for part in state)
    return pad_packed_sequence(h, batch_first=True, total_length=x.shape[1])[0], state


def both(cell: nn.RNNBase, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """What the gates get from the input and from the state."""
    return F.linear(x, cell.weight_ih_l0, cell.bias_ih_l0), F.linear(h, cell.weight_hh_l0, cell.bias_hh_l0)
