"""Batch normalisation over the global batch, however many devices hold it.

Each channel is normalised with the mean and variance of the batch in training, and with
their running averages in evaluation:

    y = scale * (x - mean) / sqrt(var + epsilon) + bias
    running <- (1 - momentum) * running + momentum * batch statistic.

Under `axis_name` every device reports the moments of its part, one gather brings them
together, and they are merged as in Chan et al.; sums are of data shifted near their mean,
so a mean ten thousand deviations from zero does no harm. `num_groups` splits the *global*
batch into consecutive groups with statistics of their own (ghost or split batch norm):
the result is the same on any number of devices, and `num_groups` equal to that number is
the local, unsynchronised batch norm.

The trap: `momentum` is torch's, the weight of the new batch (flax's 0.9 is 0.1 here); and
as in torch the running variance is unbiased while the batch is normalised by the biased.

Reference: Ioffe and Szegedy, "Batch Normalization", ICML 2015,
https://arxiv.org/abs/1502.03167 (algorithms 1 and 2); Hoffer et al., "Train longer,
generalize better", NeurIPS 2017, https://arxiv.org/abs/1705.08741 (algorithm 1; here the
running averages take the mean over the groups in one step, not one group after another);
Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample
Variances", COMPSTAT 1982 (equation 2.1).
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jax.nn.initializers import Initializer

from jaxml.export import export
from jaxml.parallel.collectives import all_gather
from jaxml.typing import Array, Float


@export("nn.BatchNorm", since="0.1")
class BatchNorm(nn.Module):
    """Batch norm of the last axis; statistics and arithmetic are float32 or wider.

    Attributes:
        momentum: weight of the new batch in the running averages (torch's convention).
        epsilon: added to the variance.
        use_scale: multiply by a learned scale.
        use_bias: add a learned bias.
        scale_init: zeros make a residual branch start as nothing.
        num_groups: parts of the global batch, each normalised on its own in training.
        axis_name: mesh axis the batch is split over, or None.
        dtype: of the output; None keeps that of the input.
        param_dtype: of scale and bias.
    """

    momentum: float = 0.1
    epsilon: float = 1e-5
    use_scale: bool = True
    use_bias: bool = True
    scale_init: Initializer = nn.initializers.ones
    num_groups: int = 1
    axis_name: str | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch *space channels"], *, train: bool
    ) -> Float[Array, "batch *space channels"]:
        """Normalises `x`; in training it also moves the running averages.

        Raises:
            ValueError: in training, if a group holds a single value per channel, or if
                batch, devices and groups do not divide.
        """
        channels = x.shape[-1:]
        wide_dtype = jnp.promote_types(self.param_dtype, jnp.float32)
        running_mean = self.variable(
            "batch_stats", "mean", jnp.zeros, channels, wide_dtype
        )
        running_var = self.variable(
            "batch_stats", "var", jnp.ones, channels, wide_dtype
        )
        wide = jnp.asarray(x, jnp.promote_types(x.dtype, wide_dtype))
        if train and not self.is_initializing():
            y, moments, batch_mean, batch_var = _batch_moments(
                wide, self.num_groups, self.axis_name
            )
            for running, value in (running_mean, batch_mean), (running_var, batch_var):
                change = self.momentum * (value - running.value)
                running.value += change.astype(wide_dtype)
        else:
            y = wide[None]
            moments = jnp.stack([running_mean.value, running_var.value])[None]

        # From here on y is [groups, batch / groups, *space, channels].
        def along(v: Array) -> Array:
            return v.reshape(-1, *(1,) * (y.ndim - 2), *channels)

        gain = lax.rsqrt(along(moments[:, 1]) + self.epsilon)
        if self.use_scale:
            scale = self.param("scale", self.scale_init, channels, self.param_dtype)
            gain *= along(scale)
        y = (y - along(moments[:, 0])) * gain
        if self.use_bias:
            zeros = nn.initializers.zeros
            y += along(self.param("bias", zeros, channels, self.param_dtype))
        return y.reshape(x.shape).astype(x.dtype if self.dtype is None else self.dtype)


@export("nn.FrozenBatchNorm", since="0.1")
class FrozenBatchNorm(nn.Module):
    """Batch norm that is but a fixed scale and shift, as detectors fine-tune with.

        y = scale * (x - mean) / sqrt(var + epsilon) + bias

    All four are in `batch_stats`, which no optimizer sees; a trained `BatchNorm` has scale
    and bias among its parameters, from where they move. Takes the same arguments as
    `BatchNorm`, so that it can stand in its place; what has no meaning here is not read.

    Attributes:
        epsilon: added to the variance; 1e-5 as torchvision's `FrozenBatchNorm2d`.
        momentum: not read.
        scale_init: not read: the scale starts at one.
        axis_name: not read: nothing is shared.
        dtype: of the output; None keeps that of the input.
        param_dtype: not read: the four are float32.
    """

    epsilon: float = 1e-5
    momentum: float = 0.0
    scale_init: Initializer = nn.initializers.ones
    axis_name: str | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch *space channels"], *, train: bool
    ) -> Float[Array, "batch *space channels"]:
        """Scales and shifts `x`, in training as in evaluation."""
        del train
        channels = x.shape[-1:]
        names = {
            "scale": jnp.ones,
            "bias": jnp.zeros,
            "mean": jnp.zeros,
            "var": jnp.ones,
        }
        scale, bias, mean, var = (
            self.variable("batch_stats", name, make, channels, jnp.float32).value
            for name, make in names.items()
        )
        gain = scale * lax.rsqrt(var + self.epsilon)
        wide = jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32))
        along = (1,) * (x.ndim - 1) + channels
        y = wide * gain.reshape(along) + (bias - mean * gain).reshape(along)
        return y.astype(x.dtype if self.dtype is None else self.dtype)


def _batch_moments(
    x: Array, num_groups: int, axis_name: str | None
) -> tuple[Array, Array, Array, Array]:
    """Returns local groups of `x`, their moments, and what the running averages get."""
    devices = 1 if axis_name is None else lax.axis_size(axis_name)
    local = max(num_groups // devices, 1)
    if len(x) % local or (num_groups % devices and devices % num_groups):
        raise ValueError(
            "num_groups must divide the global batch, and the number of devices or the "
            f"reverse, got {num_groups} groups of {devices} x {len(x)} samples"
        )
    count = devices * x[..., 0].size // num_groups
    if count == 1:
        raise ValueError(
            "batch norm needs more than one value per channel and group in training, "
            f"got input {x.shape} on {devices} devices in {num_groups} groups"
        )
    x = x.reshape(local, -1, *x.shape[1:])
    moments = _moments(x)
    everywhere = all_gather(moments, axis_name)
    merged = _merged(everywhere.reshape(num_groups, -1, *moments.shape[1:]))
    mean, var = jnp.mean(merged, axis=0)
    if num_groups < devices:  # a group spans devices: mine is one of the merged
        mine = lax.axis_index(axis_name) * num_groups // devices
        moments = lax.dynamic_index_in_dim(merged, mine)
    return x, moments, mean, var * (count / (count - 1))


def _moments(x: Array) -> Array:
    """Mean and variance [groups, 2, channels] of x [groups, size, *space, channels].

    One pass over x shifted by the mean of its first sixteenth. That mean lies at most
    sqrt(15) deviations from the whole's, so the difference of squares loses four bits
    at worst, wherever the data lie; and being exact for any shift, it may be held
    constant in derivatives.
    """
    axes = tuple(range(1, x.ndim - 1))
    some = x[:, : -(-x.shape[1] // 16)]
    near = lax.stop_gradient(jnp.mean(some, axes, keepdims=True))
    offset = jnp.mean(x - near, axes)
    var = jnp.mean(jnp.square(x - near), axes) - jnp.square(offset)
    mean = near.reshape(offset.shape) + offset
    return jnp.stack([mean, jnp.maximum(var, 0)], axis=1)


def _merged(moments: Array) -> Array:
    """Means and variances [groups, parts, 2, channels] of equal parts, made one."""
    mean, var = moments[:, :, 0], moments[:, :, 1]
    centre = jnp.mean(mean, axis=1, keepdims=True)
    var = jnp.mean(var + jnp.square(mean - centre), axis=1)
    return jnp.stack([centre[:, 0], var], axis=1)
