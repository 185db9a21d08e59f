"""Stochastic approximation: finding what can only be measured with noise.

A mean can be computed from all samples at once, or one sample at a time,

    m_n = m_{n-1} + (x_n - m_{n-1}) / n,

which is the same number. Robbins and Monro saw the general form: the root of g, of which
only noisy values can be had, is the limit of

    theta_{n+1} = theta_n - a_n (g(theta_n) + noise),   sum a_n = inf,  sum a_n^2 < inf.

The first condition lets it go anywhere, the second lets the noise die out. With g the
gradient of a loss this is stochastic gradient descent; where only values of the loss can be
had, Kiefer and Wolfowitz take differences over a width c_n (2 d of them in d dimensions),
and SPSA moves along a random direction (2 in all). The best rate 1/n needs the right step
size a_n = A^{-1} / n; Polyak and Ruppert take larger steps, a_n ~ n^{-p} with 1/2 < p < 1,
and average the path: that is optimal whatever the constant,

    sqrt(n) (mean of theta - theta*) -> Normal(0, A^{-1} S A^{-T}),

A being the slope of g at its root and S the covariance of the noise. The trap is an
exponential moving average, which is neither: its noise never dies out.

Reference: Robbins and Monro, "A Stochastic Approximation Method", Annals of Mathematical
Statistics 1951, https://doi.org/10.1214/aoms/1177729586; Kiefer and Wolfowitz 1952,
https://doi.org/10.1214/aoms/1177729392; Dvoretzky 1956 (theorem 1); Spall 1992,
https://doi.org/10.1109/9.119632 (equation 2.2); Polyak and Juditsky, SIAM J. Control Optim.
1992, https://doi.org/10.1137/0330046 (theorem 2); Welford, Technometrics 1962.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxml.export import export
from jaxml.typing import Array, Float, PRNGKeyArray

Number = float | int
StepSize = Callable[[Any], Any]
"""n = 1, 2, ... -> a_n."""
Measure = Callable[[PRNGKeyArray, Array], Array]
"""(key, theta) -> a noisy value at theta."""
Slope = Callable[[PRNGKeyArray, Array, Array], Array]
"""(key, theta, n) -> which way to go from theta, in its shape."""


@export("fundamentals.stochastic_approximation.power_steps", since="0.1")
def power_steps(scale: Number, power: Number = 1, shift: Number = 0) -> StepSize:
    """a_n = scale / (n + shift)^power."""
    return lambda n: scale / (n + shift) ** power


HARMONIC = power_steps(1.0)
SPALL_STEPS, SPALL_WIDTH = power_steps(1.0, 0.602), power_steps(1.0, 0.101)
CUBE_ROOT = power_steps(1.0, 1 / 3)


@export("fundamentals.stochastic_approximation.incremental_mean", since="0.1")
def incremental_mean(samples: Float[Array, "n *dims"]) -> Float[Array, "n *dims"]:
    """The mean of the first 1, 2, ..., n samples, one at a time.

    Raises:
        ValueError: if there is no sample.
    """
    means, _ = welford(samples)
    return means


@export("fundamentals.stochastic_approximation.welford", since="0.1")
def welford(
    samples: Float[Array, "n *dims"],
) -> tuple[Float[Array, "n *dims"], Float[Array, "n *dims"]]:
    """Running means and variances, without cancellation however far the mean is from 0.

    The sum of squared deviations grows by (x - m_{n-1}) (x - m_n).

    Returns:
        Of the first 1, ..., n samples the means, and the variances with n - 1 below, NaN
        for one sample.

    Raises:
        ValueError: if there is no sample.
    """
    if not samples.ndim or not len(samples):
        raise ValueError(f"samples must be [n, ...] with n > 0, got {samples.shape}")

    def add(carry: tuple[Array, Array], item: tuple[Array, Array]) -> Any:
        mean, squares = carry
        n, x = item
        gap = x - mean
        mean = mean + gap / n
        squares = squares + gap * (x - mean)
        return (mean, squares), (mean, squares / (n - 1))

    zero = jnp.zeros_like(samples[0])
    counts = jnp.arange(1, len(samples) + 1, dtype=samples.dtype)
    _, (means, variances) = jax.lax.scan(add, (zero, zero), (counts, samples))
    return means, variances


@export("fundamentals.stochastic_approximation.robbins_monro", since="0.1")
def robbins_monro(
    measure: Measure,
    start: Float[Array, "*dims"],
    num_steps: int,
    key: PRNGKeyArray,
    step_size: StepSize = HARMONIC,
) -> Float[Array, "num_steps *dims"]:
    """The path towards a root of g, of which `measure` gives noisy values.

    Stochastic gradient descent if they are gradients. Map it over keys for many chains.

    Args:
        measure: (key, theta) -> g(theta) + noise, in the shape of theta.
        start: theta_1.
        num_steps: number of measurements.
        key: of all measurements.
        step_size: a_n.

    Returns:
        theta_2, theta_3, ...

    Raises:
        ValueError: if there is no step, or a measurement has another shape.
    """
    slope = lambda key, theta, n: measure(key, theta)  # noqa: E731
    return _path(slope, start, num_steps, key, step_size)


@export("fundamentals.stochastic_approximation.kiefer_wolfowitz", since="0.1")
def kiefer_wolfowitz(
    measure: Measure,
    start: Float[Array, " dims"],
    num_steps: int,
    key: PRNGKeyArray,
    step_size: StepSize = HARMONIC,
    width: StepSize = CUBE_ROOT,
) -> Float[Array, "num_steps dims"]:
    """The path towards a minimum, from noisy values of the loss at 2 d places each step.

    Args:
        measure: (key, theta) -> loss(theta) + noise.
        start: theta_1, a vector.
        num_steps: number of steps.
        key: of all measurements, each with noise of its own.
        step_size: a_n.
        width: c_n, on either side; sum a_n c_n and sum (a_n / c_n)^2 must be finite.

    Raises:
        ValueError: as `robbins_monro`.
    """
    axes = lambda _, theta: jnp.eye(len(theta), dtype=theta.dtype)  # noqa: E731
    slope = _slope_along(axes, measure, width)
    return _path(slope, start, num_steps, key, step_size)


@export("fundamentals.stochastic_approximation.spsa", since="0.1")
def spsa(
    measure: Measure,
    start: Float[Array, " dims"],
    num_steps: int,
    key: PRNGKeyArray,
    step_size: StepSize = SPALL_STEPS,
    width: StepSize = SPALL_WIDTH,
) -> Float[Array, "num_steps dims"]:
    """As `kiefer_wolfowitz`, from two values each step whatever the dimension.

    All coordinates move at once by plus or minus c_n, at random; the powers are those that
    Spall recommends for short runs.

    Raises:
        ValueError: as `robbins_monro`.
    """

    def signs(key: PRNGKeyArray, theta: Array) -> Array:
        return jax.random.rademacher(key, (1, len(theta)), theta.dtype)

    return _path(_slope_along(signs, measure, width), start, num_steps, key, step_size)


def _slope_along(
    directions: Callable[[PRNGKeyArray, Array], Array],
    measure: Measure,
    width: StepSize,
) -> Slope:
    """sum_d d (loss(theta + c d) - loss(theta - c d)) / (2 c) over directions [k, dims]."""

    def slope(key: PRNGKeyArray, theta: Array, n: Array) -> Array:
        direction_key, noise_key = jax.random.split(key)
        rows = directions(direction_key, theta)
        ahead, behind = jax.random.split(noise_key, (2, len(rows)))
        value, c = jax.vmap(measure), width(n)
        gaps = value(ahead, theta[None] + c * rows) - value(
            behind, theta[None] - c * rows
        )
        return (gaps / (2 * c)) @ rows

    return slope


def _path(
    slope: Slope, start: Array, num_steps: int, key: PRNGKeyArray, step_size: StepSize
) -> Array:
    """Every place of theta <- theta - a_n slope(key_n, theta, n)."""
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    start = jnp.asarray(start)

    def step(theta: Any, n: Any) -> Any:
        found = slope(jax.random.fold_in(key, n.astype(jnp.int32)), theta, n)
        if found.shape != theta.shape:
            raise ValueError(
                f"a measurement must have shape {theta.shape}, got {found.shape}"
            )
        theta = (theta - step_size(n) * found).astype(theta.dtype)
        return theta, theta

    numbers = jnp.arange(1, num_steps + 1, dtype=jnp.float32)
    return jax.lax.scan(step, start, numbers)[1]


@export("fundamentals.stochastic_approximation.polyak_ruppert", since="0.1")
def polyak_ruppert(
    path: Float[Array, "n *dims"], burn_in: int = 0
) -> Float[Array, "m *dims"]:
    """The running mean of a path, without its first `burn_in` places.

    Raises:
        ValueError: if nothing remains.
    """
    if not 0 <= burn_in < len(path):
        raise ValueError(f"burn_in must be in [0, {len(path)}), got {burn_in}")
    return incremental_mean(path[burn_in:])


@export("fundamentals.stochastic_approximation.Conditions", since="0.1")
class Conditions(NamedTuple):
    """Whether the conditions for convergence hold.

    Attributes:
        steps_reach: sum a_n is infinite.
        steps_vanish: sum a_n^2 is finite.
        noise_vanishes: sum b_n^2 is finite.
    """

    steps_reach: bool
    steps_vanish: bool
    noise_vanishes: bool

    @property
    def hold(self) -> bool:
        """All of them."""
        return all(self)


@export("fundamentals.stochastic_approximation.dvoretzky_conditions", since="0.1")
def dvoretzky_conditions(
    step_size: StepSize, noise_size: StepSize | None = None
) -> Conditions:
    """Dvoretzky's conditions for w_{n+1} = (1 - a_n) w_n + b_n e_n to go to zero.

    e_n is noise of mean zero, given the past, and bounded variance; that cannot be seen in
    the sequences, and is up to the caller. For Robbins and Monro's procedure b_n = a_n.

    The series are judged by Cauchy's condensation, sum a_n ~ sum 2^k a(2^k), twice if the
    first leaves it open: right for sequences like c n^-p (log n)^-q, and no proof for others.

    Args:
        step_size: n -> a_n, for floats up to 1e300.
        noise_size: n -> b_n; a_n by default.

    Raises:
        ValueError: if a term is negative or not finite.

    >>> dvoretzky_conditions(power_steps(1.0, 0.5))
    Conditions(steps_reach=True, steps_vanish=False, noise_vanishes=False)
    """
    noise_size = noise_size or step_size
    return Conditions(
        steps_reach=not _converges(step_size),
        steps_vanish=_converges(lambda n: step_size(n) ** 2),
        noise_vanishes=_converges(lambda n: noise_size(n) ** 2),
    )


def _converges(term: StepSize) -> bool:
    """Whether the sum of a sequence's terms is finite."""

    def log_condensed(k: int) -> float:
        value = float(term(2.0**k))
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"terms must be finite and not negative, got {value}")
        return k * math.log(2) + math.log(value) if value else -math.inf

    near, far = 300, 480
    values = {k: log_condensed(k) for k in (near, far)}
    if values[far] == -math.inf:
        return True
    slope = (values[far] - values[near]) / (far - near)  # -(p - 1) log 2 for n^-p
    # What a power of the logarithm adds to the slope is at most q log(far / near) / gap.
    if abs(slope) > 0.05:
        return slope < 0
    power = -(values[far] - values[near]) / math.log(far / near)  # k^-power
    return power > 1 + 1e-6
