"""Feature maps: what stands for exp(q k) when the softmax has to go.

Linear attention weighs key j for query i by phi(q_i) . phi(k_j), a kernel that a map of
finitely many features gives, so that the sum over j can be taken before q is known:

    elu      phi(x) = elu(x) + 1                        always positive
    relu     phi(x) = max(x, 0)                         sparse; a query may weigh nothing
    exp      phi(x) = exp(x)                            overflows above 88 in float32
    softmax  phi(x) = softmax(x) over the features      exp with a bound
    cosine   phi(x) = [1, x / |x|]                      weight 1 + cos(q, k) >= 0
    taylor   phi(x) = [1, x, x (x) x / sqrt(2)]         weight 1 + s + s^2 / 2 > 0

The last two come from exp(s) = 1 + s + s^2 / 2 + ...: cut after the first order it is
only positive if q and k are unit vectors, cut after the second it always is, with a
feature for every pair.

The trap is the sign: weights must not be negative, or the normaliser may vanish.

Reference: Katharopoulos et al., "Transformers are RNNs", ICML 2020,
https://arxiv.org/abs/2006.16236 (equation 7, elu + 1); Choromanski et al., "Rethinking
Attention with Performers", ICLR 2021, https://arxiv.org/abs/2009.14794 (relu and exp);
Keles et al., "On The Computational Complexity of Self-Attention", ALT 2023,
https://arxiv.org/abs/2209.04881 (Taylor features). The scale dim^-1/4 on q and on k that
makes s the usual logit is for the caller to apply.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jaxml.typing import Array, Float

FeatureMap = Callable[[Array], Array]


def elu(x: Float[Array, "*rows dim"]) -> Float[Array, "*rows dim"]:
    """Positive everywhere, with gradient everywhere."""
    return jax.nn.elu(x) + 1


def cosine(x: Float[Array, "*rows dim"]) -> Float[Array, "*rows features"]:
    """One, and the unit vector; zero has no direction and weighs all alike."""
    # The floor sits under the root: the norm itself has no gradient at zero.
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    unit = x * lax.rsqrt(jnp.maximum(square, 1e-12))
    return jnp.concatenate([jnp.ones_like(square), unit], axis=-1)


def taylor(x: Float[Array, "*rows dim"]) -> Float[Array, "*rows features"]:
    """1 + dim + dim^2 features."""
    pairs = x[..., :, None] * x[..., None, :] * 0.5**0.5
    one = jnp.ones_like(x[..., :1])
    return jnp.concatenate([one, x, pairs.reshape(*x.shape[:-1], -1)], axis=-1)


FEATURE_MAPS: dict[str, FeatureMap] = {
    "elu": elu,
    "relu": jax.nn.relu,
    "exp": jnp.exp,
    "softmax": jax.nn.softmax,
    "cosine": cosine,
    "taylor": taylor,
}


def feature_map_of(name: str | FeatureMap) -> FeatureMap:
    """The map of that name, or the given function.

    Raises:
        ValueError: if the name is unknown.
    """
    if not isinstance(name, str):
        return name
    if name not in FEATURE_MAPS:
        raise ValueError(
            f"feature_map must be a function or one of {', '.join(FEATURE_MAPS)}, "
            f"got {name!r}"
        )
    return FEATURE_MAPS[name]
