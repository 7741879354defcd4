"""Two stages: a codec that was trained before, and a model of its latents.

Van den Oord et al. 2017 (1711.00937), over codes; Rombach et al. 2021 (2112.10752), over real latents.
x is data, z = codec.encode(x) its latent: a field of codes (B, L, H, W), or real numbers.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from zoo.models.unquantized import Unquantized
from zoo.types import Codec, Density, Kind, Measured, Prepared, Sampler, Scheduled, Space, Unfit, can

ENOUGH = 10_000  # examples that the scale of real latents is measured from


class Latent(nn.Module):
    """A prior over the latents of a frozen codec: a Transformer or a PixelCNN over codes, diffusion over real ones.

    codec   any model with encode, decode and latent (zoo.types.Codec), as zoo.pretrained gives it. It is never
            trained and always in evaluation mode
    prior   prior(shape=, levels=) makes a model of the space codec.latent; its own options, as classes, are set
            before. Its options of `sample` are those of the pair
    unquantized   take the vectors before the quantizer instead of codes, as diffusion needs; the decoder then
            quantizes. Codecs whose latents are real numbers already are taken as they are

    Codes: log p(x) >= log p(x | z) + log p(z), a bound, as other codes may give x too; for codecs that have a
    likelihood of x given z (`explicit`, `log_likelihood`), as a VQVAE may. Others have none, a VQGAN never.
    Real latents are brought to mean 0 and variance 1, by two numbers that `prepare` measures.

    Unfit for data that are not what the codec was trained on; ValueError for a prior that cannot be made for such
    latents, and for a codec that has only codes, where vectors are wanted.
    """

    def __init__(
        self,
        *,
        shape: Any,
        levels: int | None,
        codec: nn.Module,
        prior: Callable[..., nn.Module],
        unquantized: bool = False,
    ) -> None:
        super().__init__()
        if not can(codec, Codec):
            raise ValueError(
                f"the first stage, {type(codec).__name__}, has no latents; take a run of vqvae, vqgan, vae or "
                "kl_autoencoder"
            )
        own = (tuple(codec.shape), codec.levels)
        if own != (tuple(shape), levels):
            raise Unfit(
                f"the first stage was trained on shape={list(own[0])} with levels={own[1]}, and this data has "
                f"shape={list(shape)} with levels={levels}",
                lambda space: (tuple(space.shape), space.levels) == own,
            )
        self.shape, self.levels = own
        if unquantized and codec.latent.levels is not None:
            codec = Unquantized(codec)
        self.codec = codec.requires_grad_(False).eval()
        self.prior = made(prior, codec.latent)
        self.explicit = bool(getattr(codec, "explicit", False)) and codec.latent.levels is not None
        self.conditional = bool(getattr(self.prior, "conditional", False))
        if codec.latent.levels is None:
            self.register_buffer("shift", torch.zeros(()))
            self.register_buffer("scale", torch.ones(()))

    @property
    def kind(self) -> Kind:
        """What log_prob is of log p(x): a bound, or an estimate if the prior's is one."""
        return "estimate" if self.prior.kind == "estimate" else "lower bound"

    @property
    def protocol(self) -> dict[str, Any]:
        """What stands beside each number: which first stage, and what the prior says of itself."""
        stage = getattr(self.codec, "origin", type(self.codec).__name__)
        told = {"first_stage": stage, **getattr(self.prior, "protocol", {})}
        if self.can(Density):
            told["bound"] = "log p(x | codes) + log p(codes)"
        if "order" in told:
            told["order"] += " of the latent"  # not of x: a part of x is no beginning
        return told

    @property
    def blocks(self) -> list[nn.Module]:
        """What gradient checkpointing may wrap: the prior's."""
        return list(getattr(self.prior, "blocks", []))

    @property
    def evaluations(self) -> int | None:
        """How often the prior's network was asked for each example of the last sample, where it counts that."""
        return getattr(self.prior, "evaluations", None)

    def can(self, ability: type) -> bool:
        """Whether it has an ability of zoo.types: what its prior can, and a density if the codec has one too."""
        if ability is Density:
            return self.explicit and can(self.prior, Density)
        if ability is Measured:
            return can(self.prior, Measured) or self._tells_codes
        if ability in (Sampler, Scheduled):
            return can(self.prior, ability)
        return isinstance(self, ability)

    def train(self, mode: bool = True) -> "Latent":
        """Training is the prior's; the codec stays in evaluation mode."""
        super().train(mode)
        self.codec.eval()
        return self

    def loss(self, x: Tensor, y: Tensor | None = None, *, z: Tensor | None = None) -> dict[str, Tensor]:
        """The prior's loss and terms. Its nats are those of the latent, "latent_nats".

        z   the codec's latent of x, if it is known already

        "nats" bounds -log p(x) where that can be, and is left out in training, for which it is of no use.
        """
        z = self.codes(x) if z is None else z
        terms = dict(self.prior.loss(self.scaled(z), y))
        if "nats" in terms:
            terms["latent_nats"] = terms.pop("nats")
            if self.can(Density) and not self.training:
                terms["nats"] = terms["latent_nats"] - self.codec.log_likelihood(x, z).mean()
        return terms

    def log_prob(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """log p(x | z) + log p(z) with z = encode(x), in nats, (B,): a bound on log p(x)."""
        z = self.codes(x)
        return self.codec.log_likelihood(x, z) + self.prior.log_prob(z, y)

    @property
    def sample(self) -> Callable[..., Tensor]:
        """sample(n, y) draws latents and decodes them, (n, *shape); it has the options of the prior's."""
        draw = self.prior.sample

        @wraps(draw)
        def sample(n: int, y: Tensor | None = None, **options: Any) -> Tensor:
            return self.decoded(draw(n, y, **options))

        return sample

    def of_use(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Of the options of `sample` those that the prior has a use for (zoo.types.Sampler)."""
        return self.prior.of_use(options) if hasattr(self.prior, "of_use") else dict(options)

    def decoded(self, z: Tensor) -> Tensor:
        """The data of a latent of the prior, (n, *shape)."""
        return self.codec.decode(z if self.codec.latent.levels else z * self.scale + self.shift)

    def shown(self, z_t: Tensor, t: Tensor) -> Tensor:
        """A stage of a diffusion prior's sampling, decoded, (n, *shape)."""
        return self.decoded(self.prior.shown(z_t, t))

    @torch.no_grad()
    def codes(self, x: Tensor) -> Tensor:
        """The codec's latent of x, whatever precision the prior is trained in: (B, *shape) -> (B, *latent)."""
        with torch.autocast(x.device.type, enabled=False):
            return self.codec.encode(x)

    def scaled(self, z: Tensor) -> Tensor:
        """A latent as the prior sees it."""
        return z if self.codec.latent.levels else (z - self.shift) / self.scale

    @torch.no_grad()
    def prepare(self, batches: Iterable[dict[str, Tensor]]) -> None:
        """The mean and scale of real latents, from 10,000 examples; and what the prior measures of latents."""
        batches = iter(batches)
        seen: list[dict[str, Tensor]] = []
        if self.codec.latent.levels is None:
            while sum(len(batch["x"]) for batch in seen) < ENOUGH and (batch := next(batches, None)):
                seen.append({**batch, "x": self.codes(batch["x"])})
            z = torch.cat([batch["x"] for batch in seen])
            self.shift.copy_(z.mean())
            self.scale.copy_(z.std(correction=0).clamp(min=1e-6))
        if can(self.prior, Prepared):
            self.prior.prepare(self._latents(seen, batches))

    def _latents(
        self, seen: list[dict[str, Tensor]], batches: Iterator[dict[str, Tensor]]
    ) -> Iterator[dict[str, Tensor]]:
        for batch in seen:
            yield {**batch, "x": self.scaled(batch["x"])}
        for batch in batches:
            yield {**batch, "x": self.scaled(self.codes(batch["x"]))}

    def at(self, step: int) -> None:
        """The number of optimizer steps done; the codec's are over."""
        self.prior.at(step)

    @torch.no_grad()
    def statistics(self, x: Tensor, y: Tensor | None = None, *, z: Tensor | None = None) -> dict[str, Tensor]:
        """The prior's, of the latents; and of codes -log p(z) in nats, where the prior tells it exactly."""
        z = self.codes(x) if z is None else z
        sums = self.prior.statistics(self.scaled(z), y) if can(self.prior, Measured) else {}
        if self._tells_codes:
            nats = -self.prior.log_prob(z, y).double().sum()
            sums = {**sums, "latent_nats": nats, "latents": torch.tensor(len(z), device=z.device)}
        return sums

    def summarize(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """The prior's; latent_nats is -log p(codes) per example, what they cost to be told."""
        told = self.prior.summarize(sums) if can(self.prior, Measured) else {}
        if self._tells_codes:
            told = {**told, "latent_nats": float(sums["latent_nats"]) / float(sums["latents"])}
        return told

    @property
    def _tells_codes(self) -> bool:
        exact = can(self.prior, Density) and self.prior.kind == "exact"
        return exact and self.codec.latent.levels is not None


def made(prior: Callable[..., nn.Module], space: Space) -> nn.Module:
    """The prior of a space of latents. ValueError where it is for others."""
    try:
        return prior(shape=space.shape, levels=space.levels)
    except Unfit as error:
        kind = "real numbers" if space.levels is None else f"codes below {space.levels}"
        raise ValueError(
            f"the first stage's latents are {kind} of shape={list(space.shape)}, and this prior is for others: {error} "
            "Diffusion takes vectors with backbone=mlp, fields of vectors with any backbone; code_prior takes codes."
        ) from None
