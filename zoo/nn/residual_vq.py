"""Residual vector quantization: each codebook quantizes what those before it left over.

r_0 = z,  q_l = VQ_l(r_l),  r_{l+1} = r_l - sg(q_l),  z_q = sum_l q_l
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from zoo.nn.likelihood import wide
from zoo.nn.quantizers import Quantizer, VectorQuantizer, field, flat


class ResidualVQ(Quantizer):
    """`depth` codes at each place, (B, depth, H, W), coarse to fine: SoundStream, Zeghidour et al. 2021.

    The gradient goes through once, from z_q to z, not once a layer. Terms are summed over the layers.

    layer     layer(dim) makes the quantizer of one layer, as zoo.nn.VectorQuantizer with its options
    dropout   probability that an example is decoded from only its first n layers, n = 1 ... depth - 1 drawn
              evenly, so that the first codes alone mean something too; the terms are of all layers

    Raises ValueError for layers that bring vectors to length 1: what is left over has not.
    """

    def __init__(
        self,
        dim: int,
        *,
        depth: int = 4,
        layer: Callable[[int], VectorQuantizer] = VectorQuantizer,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer(dim) for _ in range(depth))
        if any(part.cosine for part in self.layers):
            raise ValueError("cosine=true: what a layer leaves over has not length 1; take cosine=false")
        self.depth, self.dropout = depth, dropout
        self.levels = self.layers[0].levels
        self.wants = max(part.wants for part in self.layers)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        with torch.autocast(z.device.type, enabled=False):
            rows = r = wide(flat(z))
            kept = self._kept(z)
            total: Any = 0.0
            codes, terms = [], dict[str, Tensor]()
            for index, layer in enumerate(self.layers):
                e, k, own = layer.quantize(r)
                r = r - e.detach()
                total = total + e * kept[:, index, None]
                codes.append(k.view(len(z), *z.shape[2:]))
                for name, value in own.items():
                    terms[name] = terms[name] + value if name in terms else value
            z_q = field(self.layers[0].through(rows, total), z)
        return z_q.type_as(z), torch.stack(codes, 1), terms

    def decode(self, codes: Tensor) -> Tensor:
        """(B, depth, H, W) -> (B, D, H, W)."""
        parts = [layer.decode(code) for layer, code in zip(self.layers, codes.unbind(1), strict=True)]
        return torch.stack(parts).sum(0)

    @torch.no_grad()
    def prepare(self, z: Tensor) -> None:
        """Each layer from what the layers before it leave over of z (N, D)."""
        for layer in self.layers:
            layer.prepare(z)
            z = z - layer.quantize(z)[0]

    def at(self, step: int) -> None:
        for layer in self.layers:
            layer.at(step)

    def _kept(self, z: Tensor) -> Tensor:
        """Which layers count, for each row: (N, depth) of 0 and 1."""
        B, places = len(z), z[0, 0].numel()
        if not (self.training and self.dropout) or self.depth == 1:
            return torch.ones(B * places, self.depth, device=z.device)
        n = torch.randint(1, self.depth, (B, 1), device=z.device)
        whole = torch.rand(B, 1, device=z.device) >= self.dropout
        kept = whole | (torch.arange(self.depth, device=z.device) < n)
        return kept.float().repeat_interleave(places, 0)
