"""Two streams of tokens, words and patches, with weights of their own, that attend to each other: MMDiT.

x (B, C, H, W) becomes patches (B, T, D), the words of a condition (B, L, D); h (B, D) is the embedding of the time and
of the condition's vector, mask (B, 1, 1, L) says which words are there.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.attention import check_heads
from zoo.nn.conditions import Condition, words
from zoo.nn.dit import bare_norm, gelu_tanh, modulated, time_embedding, zero_linear
from zoo.nn.feedforward import scaled_init
from zoo.nn.grid_position import centred, check_four
from zoo.nn.patches import patched, patchify, unpatchify


class MMDiT(nn.Module):
    """A DiT that reads: words and patches see each other in every block.

    x (B, C, H, W), t (B,), c -> (B, C, H, W). Esser et al. 2024 (SD3), whose width is 64 depth, with depth heads; a
    class is a single word. Queries and keys have an RMS norm for each head, so no score is larger than sqrt(d) times
    what their gains are. Words that are not there are not seen; the last block has no output for words. Patches get
    fixed sinusoids, so that images of any size have the trained one in their middle. Zero at the start, as zoo.nn.DiT.

    shape       (C, H, W) of an image; others can be given, if patches tile them
    context     width of a condition
    dim, depth, heads   width of both streams, blocks, heads of the attention
    patch       side P of a patch

    Raises Unfit, at any time, for what patches do not tile; ValueError without a condition, for a dim that heads do not
    divide, or that is no multiple of 4.
    """

    def __init__(
        self,
        shape: Sequence[int],
        context: int | None,
        *,
        dim: int = 1536,
        depth: int = 24,
        heads: int = 24,
        patch: int = 2,
    ) -> None:
        super().__init__()
        if context is None:
            raise ValueError(
                "an MMDiT reads words, and this model has no condition; try condition=class, or backbone=dit"
            )
        check_heads(dim, heads)
        check_four(dim)
        self.grid, self.patch = patched(shape, patch), patch
        self.enter = nn.Linear(patch * patch * shape[0], dim)
        self.read = nn.Linear(context, dim)
        self.embed = time_embedding(dim, context)
        self.blocks = nn.ModuleList(TwoStreams(dim, heads, last=i == depth - 1) for i in range(depth))
        self.norm = bare_norm(dim)
        self.last = zero_linear(dim, 2 * dim)
        self.leave = zero_linear(dim, patch * patch * shape[0])
        nn.init.xavier_uniform_(self.enter.weight)
        nn.init.zeros_(self.enter.bias)

    @property
    def runs(self) -> list[list[nn.Module]]:
        """Each block alone, for checkpointing: they hand on two sequences."""
        return [[block] for block in self.blocks]

    def forward(self, x: Tensor, t: Tensor, c: Condition | None = None) -> Tensor:
        sides = patched(x.shape[1:], self.patch)
        h = F.silu(self.embed(t, c))
        memory, mask = words(c)
        read = self.read(memory)
        tokens = self.enter(patchify(x, self.patch))
        tokens = tokens + centred(sides, self.grid, tokens)
        if mask is not None:
            mask = F.pad(mask, (0, tokens.shape[1]), value=True)
        for block in self.blocks:
            tokens, read = block(tokens, read, h, mask)
        shift, scale = self.last(h).unsqueeze(1).chunk(2, -1)
        return unpatchify(self.leave(modulated(self.norm(tokens), shift, scale)), x.shape[1:], self.patch)


class TwoStreams(nn.Module):
    """Attention over both streams, then an mlp for each.  patches (B, T, D), words (B, L, D), h, mask -> the same two

    last    words are only looked at: they stay as they are
    """

    def __init__(self, dim: int, heads: int, *, last: bool = False) -> None:
        super().__init__()
        self.patches = Stream(dim, heads)
        self.words = Stream(dim, heads, silent=last)

    def forward(self, x: Tensor, read: Tensor, h: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        of_x, of_read = self.patches.modulate(h), self.words.modulate(h)
        qs, ks, vs = zip(self.words.project(read, of_read), self.patches.project(x, of_x), strict=True)
        q, k, v = torch.cat([q for q in qs if q is not None], 2), torch.cat(ks, 2), torch.cat(vs, 2)
        y = F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)  # (B, L + T, D)
        said, y = y[:, : -x.shape[1]], y[:, -x.shape[1] :]
        return self.patches.add(x, y, of_x), read if self.words.silent else self.words.add(
            read, said, of_read
        )


class Stream(nn.Module):
    """One stream's part of a block: what it asks and tells, and what it does with the answer.

    x (B, T, D). Modulations start at zero, as in zoo.nn.dit.Modulated.

    silent  it only tells: it has neither queries nor an output
    """

    def __init__(self, dim: int, heads: int, *, silent: bool = False) -> None:
        super().__init__()
        self.heads, self.silent = heads, silent
        self.modulation = zero_linear(dim, (2 if silent else 6) * dim)
        self.norm = bare_norm(dim)
        self.qkv = nn.Linear(dim, (2 if silent else 3) * dim)
        self.k_norm = nn.RMSNorm(dim // heads, eps=1e-6)
        scaled_init(self.qkv)
        if not silent:
            self.q_norm = nn.RMSNorm(dim // heads, eps=1e-6)
            self.out = nn.Linear(dim, dim)
            self.mlp_norm, self.mlp = bare_norm(dim), gelu_tanh(dim)
            scaled_init(self.out)

    def modulate(self, h: Tensor) -> tuple[Tensor, ...]:
        """Shift and scale, then a gate and the same of the mlp, (B, 1, D) each."""
        return self.modulation(h).unsqueeze(1).chunk(2 if self.silent else 6, -1)

    def project(self, x: Tensor, parts: tuple[Tensor, ...]) -> tuple[Tensor | None, Tensor, Tensor]:
        """Queries, or None, keys and values, (B, H, T, d)."""
        x = self.qkv(modulated(self.norm(x), *parts[:2]))
        *q, k, v = x.unflatten(-1, (2 if self.silent else 3, self.heads, -1)).unbind(2)  # (B, T, H, d)
        k, v = self.k_norm(k).transpose(1, 2), v.transpose(1, 2)
        return self.q_norm(q[0]).transpose(1, 2) if q else None, k, v

    def add(self, x: Tensor, y: Tensor, parts: tuple[Tensor, ...]) -> Tensor:
        """x with the answer y and the mlp added."""
        _, _, gate, shift, scale, mlp_gate = parts
        x = torch.addcmul(x, gate, self.out(y))
        return torch.addcmul(x, mlp_gate, self.mlp(modulated(self.mlp_norm(x), shift, scale)))
