"""Bounds on log p(x) by several draws of the latent, as what a VAE is trained by.

log_w (K, B) are log p(x, z_k) - log q(z_k|x) of K draws z_k ~ q(z|x), in nats.
"""

import math

from torch import Tensor


class ImportanceWeighted:
    """log 1/K sum_k w_k, which lies between the ELBO (K = 1) and log p(x): Burda et al. 2015, eq. 8.

    Its gradient is sum_k w~_k d log w_k with w~ = w / sum w.
    """

    holds = False  # whether log q(z|x) is to be given with its own parameters held constant

    def __call__(self, log_w: Tensor, z: Tensor) -> Tensor:
        """log_w (K, B), z (K, B, D) -> the bound, (B,)."""
        return log_w.logsumexp(0) - math.log(len(log_w))


class DoublyReparameterized(ImportanceWeighted):
    """The same bound; its gradient for the encoder grows no noisier with K: Tucker et al. 2018, eq. 8 (DReG).

    decoder: sum_k w~_k d log w_k;  encoder: sum_k w~_k^2 d log w_k / dz_k dz_k, without d log q(z|x) at a fixed z

    That z alone carries the encoder's gradient must hold: of two stochastic layers only the first is seen.
    """

    holds = True

    def __call__(self, log_w: Tensor, z: Tensor) -> Tensor:
        """log_w (K, B), z (K, B, D) -> the bound, (B,)."""
        if z.requires_grad:
            share = log_w.detach().softmax(0).unsqueeze(-1)
            z.register_hook(lambda gradient: share * gradient)
        return super().__call__(log_w, z)
