"""A second layer of latents above a VAE's: Burda et al. 2015, section 5. As a prior, for layers are stacked so.

z (..., D) is the latent below, h (..., L) the one above.
"""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from zoo.nn.likelihood import wide
from zoo.nn.mlp import MLP
from zoo.nn.priors import Encoder, StandardNormal, log_normal, normal


class StochasticLayer(nn.Module):
    """p(z) = integral of p(z|h) p(h) with p(z|h) = N(mu(h), e^lv(h)); q(h|z) is a Gaussian too.

    log_prob is one draw's  log p(z|h) + log p(h) - log q(h|z),  h ~ q(h|z) : its exponential is p(z) on average, so
    that weights p(x|z) p(z) / q(z|x) stay exact, p(x) on average, and their mean log a bound. h is drawn given the
    z that was drawn, not given its mean.

    latent   L, the size of h
    encoder  encoder((D,), (2 L,)) makes q(h|z): mu, then lv
    decoder  decoder((L,), (2 D,)) makes p(z|h): mu, then lv
    prior    prior(L, (D,)) makes p(h): zoo.nn.StandardNormal, GaussianMixture, or another layer

    ValueError for a prior that begins at images, which h is not given.
    """

    def __init__(
        self,
        dim: int,
        shape: Sequence[int],
        *,
        latent: int = 50,
        encoder: Callable[..., nn.Module] = MLP,
        decoder: Callable[..., nn.Module] = MLP,
        prior: Callable[..., nn.Module] = StandardNormal,
    ) -> None:
        super().__init__()
        self.latent = latent
        self.encoder = encoder((dim,), (2 * latent,))
        self.decoder = decoder((latent,), (2 * dim,))
        self.prior = prior(latent, (dim,))
        if hasattr(self.prior, "wants"):
            raise ValueError(
                f"a {type(self.prior).__name__} is of images in [0, 1], and a second layer's is of latents; take "
                "zoo.nn.StandardNormal or GaussianMixture for it"
            )

    def log_prob(self, z: Tensor, encoder: Encoder) -> Tensor:
        """An estimate of log p(z) whose exponential is p(z) on average: (...); the images' encoder is not asked."""
        rows = z.flatten(0, -2)
        # as z is cut, not in rows: on several devices noise is dealt by the dimension of the batch
        mu, lv = (part.view(*z.shape[:-1], -1) for part in self.posterior(rows))
        h = normal(mu, lv)
        log_p = log_normal(wide(rows), *parts(self.decoder(self._as_weights(h.flatten(0, -2)))))
        return log_p.view(z.shape[:-1]) + self.prior.log_prob(h, self.posterior) - log_normal(h, mu, lv)

    def sample(self, like: Tensor, encoder: Encoder, *, temperature: float = 1.0) -> Tensor:
        """Draws of the shape, type and device of like (n, D); temperature scales the noise of both layers."""
        h = self.prior.sample(like.new_empty(len(like), self.latent), self.posterior, temperature=temperature)
        return normal(*parts(self.decoder(self._as_weights(h))), temperature).to(like)

    def posterior(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """mu and lv of q(h|z): (N, D) -> (N, L), (N, L)."""
        return parts(self.encoder(self._as_weights(z)))

    def means(self, z: Tensor) -> list[Tensor]:
        """The posterior means of this layer and of those above, each given the mean below: (N, L), ..."""
        h = self.posterior(z)[0]
        return [h, *(self.prior.means(h) if isinstance(self.prior, StochasticLayer) else ())]

    def _as_weights(self, x: Tensor) -> Tensor:
        return x.to(next(self.parameters()).dtype)


def parts(told: Tensor) -> tuple[Tensor, Tensor]:
    """mu and lv, from a network's output (..., 2 D)."""
    mu, lv = wide(told).chunk(2, -1)
    return mu, lv.clamp(-30.0, 20.0)
