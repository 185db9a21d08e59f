"""Exact sums of floating-point numbers: integers whose sum no order can change.

Numbers are multiplied by a power of two and rounded to integers so that no sum of them
overflows. Addition is then associative: the same bits for any order of the rows, any
number of devices, prefix sums by any algorithm, and `total - left` is the right side.

    q_i = round(x_i 2^s),   s the largest with sum |q_i| < 2^bits

With 31 bits, a sum of n numbers errs by about sqrt(n) 2^-32 of sum |x_i|: float32's own
error; with 62 bits (inside `jax.enable_x64(True)`) by less than float64's.

The trap: the scale itself must not depend on the order, so it comes from a maximum and
from integers.

Reference: Demmel and Nguyen, "Fast Reproducible Floating-Point Summation", ARITH 2013,
https://doi.org/10.1109/ARITH.2013.9; for gradients of trees, Shi et al., "Quantized
Training of Gradient Boosting Decision Trees", NeurIPS 2022,
https://arxiv.org/abs/2207.09682 (here rounding is to nearest, with all 31 bits).
"""

from typing import Any

import jax.numpy as jnp
from jax import lax

from jaxml.export import export
from jaxml.typing import Array, Float, Int

COARSE = 30
"""Bits of the coarse sum that finds the scale."""


@export("trees.fixed_point.power_of_two", since="0.1")
def power_of_two(
    exponent: Int[Array, "..."], dtype: Any = jnp.float32
) -> Float[Array, "..."]:
    """2^exponent, exactly; exponents are clamped to those of normal numbers.

    >>> float(power_of_two(jnp.int32(-3)))
    0.125
    """
    if dtype == jnp.float32:
        bits = (jnp.clip(exponent, -126, 127) + 127).astype(jnp.int32) << 23
        return lax.bitcast_convert_type(bits, jnp.float32)
    bits = (jnp.clip(exponent, -1022, 1023) + 1023).astype(jnp.int64) << 52
    return lax.bitcast_convert_type(bits, jnp.float64)


@export("trees.fixed_point.exponent_above", since="0.1")
def exponent_above(x: Float[Array, "..."]) -> Int[Array, "..."]:
    """The least e with |x| < 2^e, for float32 x; -126 at zero and among subnormals.

    >>> exponent_above(jnp.array([1.0, 0.75, -4.0])).tolist()
    [1, 0, 3]
    """
    bits = lax.bitcast_convert_type(jnp.abs(x).astype(jnp.float32), jnp.int32)
    return (bits >> 23) - 126


@export("trees.fixed_point.quantize", since="0.1")
def quantize(
    x: Float[Array, "channels rows"], axis_name: str | None = None
) -> tuple[Int[Array, "channels rows"], Int[Array, " channels"]]:
    """Integers q and exponents s with x = q 2^-s nearly, and every sum of q in int32.

    Args:
        x: float32 numbers, finite.
        axis_name: mesh axis over which the rows are split; the scale is common.

    >>> q, s = quantize(jnp.array([[0.5, -0.25]]))
    >>> (q / 2.0 ** s).tolist()
    [[0.5, -0.25]]
    """
    n = jnp.int32(x.shape[1])
    peak = jnp.max(jnp.abs(x), axis=1, initial=0.0)
    if axis_name is not None:
        n, peak = lax.psum(n, axis_name), lax.pmax(peak, axis_name)
    # First a coarse sum that cannot overflow: every |x| counts as less than 2^room.
    room = COARSE - exponent_above(n.astype(jnp.float32))
    coarse = jnp.minimum(room - exponent_above(peak), 126)
    steps = jnp.ceil(jnp.abs(x) * power_of_two(coarse)[:, None]).astype(jnp.int32)
    total = jnp.sum(steps, axis=1)
    if axis_name is not None:
        total = lax.psum(total, axis_name)
    # sum |x| <= total 2^-coarse; rounding adds at most n / 2 < 2^29.
    exponent = jnp.minimum(coarse + 30 - exponent_above(total.astype(jnp.float32)), 126)
    q = jnp.round(x * power_of_two(exponent)[:, None]).astype(jnp.int32)
    return q, exponent


@export("trees.fixed_point.quantize_wide", since="0.1")
def quantize_wide(
    x: Float[Array, "channels rows"], axis_name: str | None = None
) -> tuple[Int[Array, "channels rows"], Int[Array, " channels"]]:
    """As `quantize`, in int64; to be called inside `jax.enable_x64(True)`."""
    n = x.shape[1]
    peak = jnp.max(jnp.abs(x), axis=1, initial=0.0)
    if axis_name is not None:
        n, peak = n * lax.axis_size(axis_name), lax.pmax(peak, axis_name)
    exponent = 62 - n.bit_length() - exponent_above(peak)
    # Beyond 200 bits below one there is nothing that a float32 could hold.
    exponent = jnp.minimum(exponent, 200)
    scaled = x.astype(jnp.float64) * power_of_two(exponent, jnp.float64)[:, None]
    return jnp.round(scaled).astype(jnp.int64), exponent


@export("trees.fixed_point.snap", since="0.1")
def snap(x: Float[Array, "channels rows"]) -> Float[Array, "channels rows"]:
    """The nearest numbers on a grid on which float64 adds all rows without rounding.

    For float32 numbers, to be called inside `jax.enable_x64(True)`. Whole numbers are
    kept, as long as their sum is below 2^52; others err by 2^-52 of rows times the peak.

    >>> with jax.enable_x64(True):
    ...     snap(jnp.array([[1.0, 2.5, -3.0]], jnp.float32)).tolist()
    [[1.0, 2.5, -3.0]]
    """
    peak = jnp.max(jnp.abs(x), axis=1, initial=0.0)
    exponent = jnp.minimum(52 - x.shape[1].bit_length() - exponent_above(peak), 200)
    grid = power_of_two(exponent, jnp.float64)[:, None]
    return jnp.round(x.astype(jnp.float64) * grid) / grid


@export("trees.fixed_point.exact_sum", since="0.1")
def exact_sum(
    x: Float[Array, "channels rows"], axis_name: str | None = None
) -> Float[Array, " channels"]:
    """The sum over all rows, in float64; to be called inside `jax.enable_x64(True)`.

    >>> with jax.enable_x64(True):
    ...     exact_sum(jnp.array([[1e8, 1.0, -1e8]], jnp.float32)).tolist()
    [1.0]
    """
    q, exponent = quantize_wide(x, axis_name)
    total = jnp.sum(q, axis=1)
    if axis_name is not None:
        total = lax.psum(total, axis_name)
    return total * power_of_two(-exponent, jnp.float64)
