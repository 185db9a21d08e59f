"""Activations, from the perceptron's threshold to the gates of language models.

Those that `jax.nn` has are used from there: sigmoid, tanh, relu, relu6, leaky_relu, elu,
selu, celu, gelu, silu, mish, softplus, soft_sign and the hard variants. Here are the others:

    step        1 where x > 0, else 0       the threshold; its gradient is a choice
    sign        -1, 0 or 1                  likewise
    rrelu       x or a x, a at random       a ~ U(1/8, 1/3) in training, 11/48 after it
    swish       x sigmoid(beta x)           SiLU at beta = 1, ReLU for large beta
    relu_squared  max(x, 0)^2
    maxout      max of k linear maps        any convex function, in the limit
    gated       a(x W) * (x V)              GLU, ReGLU, GEGLU, SwiGLU, bilinear by a

The trap is what happens in between: the derivative of a threshold is zero almost
everywhere, and a network behind it learns nothing. `step` and `sign` take the derivative of
something else in its place, straight through or smooth.

Reference: Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016,
https://arxiv.org/abs/1606.08415; Bengio et al., "Estimating or Propagating Gradients
Through Stochastic Neurons for Conditional Computation", 2013,
https://arxiv.org/abs/1308.3432 (straight through); Xu et al., 2015,
https://arxiv.org/abs/1505.00853 (RReLU, equation 3); Ramachandran et al., 2017,
https://arxiv.org/abs/1710.05941 (Swish); So et al., 2021, https://arxiv.org/abs/2109.08668
(squared ReLU); Goodfellow et al., 2013, https://arxiv.org/abs/1302.4389 (maxout, section
3); Shazeer, 2020, https://arxiv.org/abs/2002.05202 (equation 5, the gated ones); He et
al., 2015, https://arxiv.org/abs/1502.01852 (equation 1, PReLU).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxml.export import export
from jaxml.typing import Array, Float, PRNGKeyArray

Scalar = Float[Array, ""] | float | int
Activation = Callable[[Array], Array]

SLOPES: dict[str, Activation] = {
    "none": jnp.zeros_like,
    "straight_through": jnp.ones_like,
    "clipped": lambda x: (jnp.abs(x) <= 1).astype(x.dtype),
    "sigmoid": lambda x: jax.nn.sigmoid(x) * jax.nn.sigmoid(-x),
    "triangle": lambda x: jnp.maximum(1 - jnp.abs(x), 0),
    "arctan": lambda x: 1 / (1 + jnp.square(jnp.pi * x)),
}
"""What may stand for the derivative of a threshold."""


@export("nn.step", since="0.1")
def step(x: Float[Array, "*shape"], slope: str = "none") -> Float[Array, "*shape"]:
    """The perceptron's threshold: 1 where x > 0, else 0.

    Args:
        x: any numbers.
        slope: what stands for the derivative, one of "none" (zero, the true one),
            "straight_through" (one), "clipped" (one in [-1, 1]), "sigmoid", "triangle" and
            "arctan".

    Raises:
        ValueError: if the slope is unknown.
    """
    return _threshold(x, _checked(slope), False)


@export("nn.sign", since="0.1")
def sign(x: Float[Array, "*shape"], slope: str = "none") -> Float[Array, "*shape"]:
    """-1, 0 or 1, with twice the slope of `step`, of which it is twice, less one.

    But for "straight_through" and "clipped", which are those of binarised networks: one.
    """
    return _threshold(x, _checked(slope), True)


def _checked(slope: str) -> str:
    if slope not in SLOPES:
        raise ValueError(f"slope must be one of {', '.join(SLOPES)}, got {slope!r}")
    return slope


@partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _threshold(x: Array, slope: str, has_sign: bool) -> Array:
    return jnp.sign(x) if has_sign else jnp.heaviside(x, jnp.zeros((), x.dtype))


@_threshold.defjvp
def _threshold_jvp(
    slope: str, has_sign: bool, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    ((x,), (tangent,)) = primals, tangents
    smooth = slope not in ("straight_through", "clipped")
    factor = 2 if has_sign and smooth else 1
    return _threshold(x, slope, has_sign), factor * SLOPES[slope](x) * tangent


@export("nn.rrelu", since="0.1")
def rrelu(
    x: Float[Array, "*shape"],
    key: PRNGKeyArray | None = None,
    *,
    lower: Scalar = 1 / 8,
    upper: Scalar = 1 / 3,
) -> Float[Array, "*shape"]:
    """Leaky ReLU whose slope is drawn for every entry; without a key it is the mean."""
    slope = jnp.asarray((lower + upper) / 2, x.dtype)
    if key is not None:
        slope = jax.random.uniform(key, x.shape, x.dtype, lower, upper)
    return jnp.where(x >= 0, x, slope * x)


@export("nn.swish", since="0.1")
def swish(x: Float[Array, "*shape"], beta: Scalar = 1) -> Float[Array, "*shape"]:
    """X sigmoid(beta x); beta may be learned."""
    return x * jax.nn.sigmoid(jnp.asarray(beta, x.dtype) * x)


@export("nn.relu_squared", since="0.1")
def relu_squared(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """max(x, 0)^2."""
    return jnp.square(jax.nn.relu(x))


@export("nn.maxout", since="0.1")
def maxout(
    x: Float[Array, "*batch features"], pieces: int
) -> Float[Array, "*batch units"]:
    """The largest of every `pieces` neighbours among the features.

    Raises:
        ValueError: unless `pieces` divides the number of features.
    """
    if pieces < 1 or x.shape[-1] % pieces:
        raise ValueError(f"pieces must divide {x.shape[-1]} features, got {pieces}")
    return jnp.max(x.reshape(*x.shape[:-1], -1, pieces), axis=-1)


@export("nn.gated", since="0.1")
def gated(
    x: Float[Array, "*batch features"], activation: Activation = jax.nn.sigmoid
) -> Float[Array, "*batch half"]:
    """The first half of the features, activated, times the second.

    GLU with the sigmoid, ReGLU with ReLU, GEGLU with `gelu`, SwiGLU with `jax.nn.silu`,
    bilinear with `jax.nn.identity`. (`jax.nn.glu` and PyTorch activate the second half.)

    Raises:
        ValueError: unless the number of features is even.
    """
    if x.shape[-1] % 2:
        raise ValueError(f"the number of features must be even, got {x.shape[-1]}")
    first, second = jnp.split(x, 2, axis=-1)
    return activation(first) * second


@export("nn.PReLU", since="0.1")
class PReLU(nn.Module):
    """Leaky ReLU whose slope is learned, one for each channel or one for all.

    No weight decay should touch it: that would push it towards ReLU (section 2.1).

    Attributes:
        per_channel: whether every channel has its own.
        start: the slope at first.
        param_dtype: of the slopes.
    """

    per_channel: bool = True
    start: float = 0.25
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch channels"]) -> Float[Array, "..."]:
        shape = x.shape[-1:] if self.per_channel else (1,)
        initial = nn.initializers.constant(self.start)
        slope = self.param("slope", initial, shape, self.param_dtype).astype(x.dtype)
        slope = slope.reshape((1,) * (x.ndim - 1) + shape)
        return jnp.where(x >= 0, x, slope * x)


@export("nn.gelu", since="0.1")
@jax.custom_jvp
def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The exact GELU, x Phi(x), Phi being the standard normal's distribution function.

    Equal to `jax.nn.gelu(x, approximate=False)`, but with its derivative spelled out: that
    of the error function is refused inside `shard_map` by jax 0.12.

    Reference: Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016,
    https://arxiv.org/abs/1606.08415 (equation 1).
    """
    return x * _phi(x)


@gelu.defjvp
def _gelu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    ((x,), (tangent,)) = primals, tangents
    share = _phi(x)
    density = jnp.exp(-jnp.square(x) / 2) * jnp.asarray(
        1 / math.sqrt(2 * math.pi), x.dtype
    )
    return x * share, (share + x * density) * tangent


def _phi(x: Array) -> Array:
    # erfc keeps the relative accuracy of the left tail, where 1 + erf would cancel.
    return lax.erfc(-x * jnp.asarray(math.sqrt(0.5), x.dtype)) / 2
