"""Dropout whose noise belongs to the sample, not to the device it lies on.

    y = x * keep / (1 - rate),    keep ~ Bernoulli(1 - rate)

drawn per entry (dropout), or once per sample (stochastic depth: a residual branch is
there as a whole or not at all). flax's `nn.Dropout` draws one mask from one key, so that
under data parallelism every device repeats the masks of the first; here each sample has
a key made from its position in the global batch, and eight devices equal one.

Reference: Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from
Overfitting", JMLR 2014, https://jmlr.org/papers/v15/srivastava14a.html (section 10, the
inverted form); Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016,
https://arxiv.org/abs/1603.09382 (equation 2; scaled in training, not at test);
Klambauer et al., "Self-Normalizing Neural Networks", NeurIPS 2017,
https://arxiv.org/abs/1706.02515 (section "New Dropout Technique": alpha dropout).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxml.export import export
from jaxml.parallel.collectives import sample_keys
from jaxml.typing import Array, Float

SELU_LIMIT = -1.0507009873554805 * 1.6732632423543772
"""selu(x) for x to minus infinity."""


@export("nn.Dropout", since="0.1")
class Dropout(nn.Module):
    """Zeroes entries, or whole samples, with a probability, and scales up the rest.

    Needs an rng named "dropout" where it acts: in training, at a rate above zero. That
    key must be the same on all devices.

    Attributes:
        rate: probability of zero, in [0, 1).
        per_sample: drop whole samples (stochastic depth) instead of entries.
        axis_name: mesh axis the batch is split over, or None.
    """

    rate: float
    per_sample: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch *rest"],
        *,
        train: bool,
        share: Float[Array, ""] | float = 1.0,
    ) -> Float[Array, "batch *rest"]:
        """Returns `x` with noise, or `x` itself in evaluation.

        Args:
            x: of this device.
            train: whether there is noise.
            share: of the rate, in [0, 1]; it may be traced.

        Raises:
            ValueError: if the rate lies outside [0, 1).
        """
        if not 0 <= self.rate < 1:
            raise ValueError(f"the dropout rate must lie in [0, 1), got {self.rate}")
        if not train or self.rate == 0 or self.is_initializing():
            return x
        rate = self.rate * share
        keys = sample_keys(self.make_rng("dropout"), len(x), self.axis_name)
        shape = (1,) * (x.ndim - 1) if self.per_sample else x.shape[1:]
        keep = jax.vmap(lambda k: jax.random.bernoulli(k, 1 - rate, shape))(keys)
        return jnp.where(keep, x / jnp.asarray(1 - rate, x.dtype), jnp.zeros_like(x))


@export("nn.AlphaDropout", since="0.1")
class AlphaDropout(nn.Module):
    """Dropout for SELU: entries become its limit from below, then mean and variance return.

    With q = 1 - rate, a' = -1.7581 and a = (q + a'^2 q (1 - q))^(-1/2) the kept entries
    become a x + b, the others a a' + b, b = -a (1 - q) a': mean 0 and variance 1 stay.

    Attributes:
        rate: probability of losing an entry, in [0, 1).
        axis_name: mesh axis the batch is split over, or None.
    """

    rate: float
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch *rest"], *, train: bool
    ) -> Float[Array, "batch *rest"]:
        """Returns `x` with noise, or `x` itself in evaluation.

        Raises:
            ValueError: if the rate lies outside [0, 1).
        """
        if not 0 <= self.rate < 1:
            raise ValueError(f"the dropout rate must lie in [0, 1), got {self.rate}")
        if not train or self.rate == 0 or self.is_initializing():
            return x
        keys = sample_keys(self.make_rng("dropout"), len(x), self.axis_name)
        share = 1 - self.rate
        keep = jax.vmap(lambda k: jax.random.bernoulli(k, share, x.shape[1:]))(keys)
        scale = (share + SELU_LIMIT**2 * share * self.rate) ** -0.5
        lost = jnp.asarray(SELU_LIMIT, x.dtype)
        shift = jnp.asarray(-scale * self.rate * SELU_LIMIT, x.dtype)
        return jnp.asarray(scale, x.dtype) * jnp.where(keep, x, lost) + shift
