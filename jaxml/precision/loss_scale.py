"""Loss scaling: multiply the loss, divide the gradient, skip the step that overflows.

A gradient below 2^-25 is zero in float16. The loss is multiplied by S before it is
differentiated, so that every gradient is, and divided out again in float32:

    g = grad(S * L) / S,    all of g finite:  update;  after every N clean ones  S <- 2 S
                            otherwise:        no update;                         S <- S / 2

The decision is one for all devices, and a skipped step leaves parameters, optimizer (its
step count and so its schedules) and model state as they were. Division comes first of
all, so that clipping sees true gradients.

The trap is a count: S grows *on* the N-th clean step, not one step later.

Reference: Micikevicius et al., "Mixed Precision Training", ICLR 2018,
https://arxiv.org/abs/1710.03740 (section 3.2); intervals and factors are those of
PyTorch's GradScaler, https://docs.pytorch.org/docs/stable/amp.html, which has neither
`min_scale` nor `max_scale`.
"""

import math
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from jaxml.export import export
from jaxml.typing import Array, Bool, Float


@export("precision.all_finite", since="0.1")
def all_finite(tree: Any, axis_name: str | None = None) -> Bool[Array, ""]:
    """Whether no number of the tree is NaN or infinite, on any device.

    Args:
        tree: arrays; of integers only is always finite.
        axis_name: mesh axis over which all devices come to one decision, or None.
    """
    leaves = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]
    finite = jnp.all(jnp.stack(leaves)) if leaves else jnp.array(True)
    if axis_name is None:
        return finite
    return lax.pmin(finite.astype(jnp.int32), axis_name) == 1


@export("precision.StaticLossScale", since="0.1")
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StaticLossScale:
    """A loss scale that stays as it is; `create` makes one.

    An overflow skips the step; `fit` stops there, for it would come again.

    Attributes:
        scale: S, a float32 scalar.
    """

    scale: Any

    @classmethod
    def create(cls, scale: float) -> "StaticLossScale":
        """S = `scale`; a power of two rounds nothing.

        Raises:
            ValueError: if it is not positive and finite.
        """
        _check_scales(scale=scale)
        return cls(jnp.asarray(scale, jnp.float32))

    @property
    def bounds(self) -> Float[Array, "2"]:
        """The smallest and largest that S can become."""
        return jnp.stack([self.scale, self.scale])

    def scale_loss(self, loss: Float[Array, ""]) -> Float[Array, ""]:
        """S times the loss, in float32."""
        return _times(loss, self.scale)

    def unscale(self, grads: Any) -> Any:
        """The gradients divided by S, in float32 or wider."""
        return jax.tree.map(lambda g: _over(g, self.scale), grads)

    def adjust(self, is_finite: Bool[Array, ""]) -> "StaticLossScale":
        """The same."""
        del is_finite
        return self


@export("precision.DynamicLossScale", since="0.1")
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DynamicLossScale:
    """A loss scale that looks for the largest S without overflow; `create` makes one.

    Attributes:
        scale: S, a float32 scalar.
        clean_steps: finite steps since S last changed, an int32 scalar.
        growth_interval, growth_factor, backoff_factor, min_scale, max_scale: see `create`.
            They are no arrays: a continued run may change them.
    """

    scale: Any
    clean_steps: Any
    growth_interval: int = field(metadata={"static": True})
    growth_factor: float = field(metadata={"static": True})
    backoff_factor: float = field(metadata={"static": True})
    min_scale: float = field(metadata={"static": True})
    max_scale: float = field(metadata={"static": True})

    @classmethod
    def create(
        cls,
        initial_scale: float = 2.0**16,
        *,
        growth_interval: int = 2000,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        min_scale: float = 1.0,
        max_scale: float = 2.0**24,
    ) -> "DynamicLossScale":
        """The scale before the first step.

        Args:
            initial_scale: the first S.
            growth_interval: finite steps in a row after which S grows.
            growth_factor: by which it grows, above 1.
            backoff_factor: by which it shrinks at an overflow, in (0, 1).
            min_scale: S does not fall below; an overflow here is divergence, and `fit`
                stops.
            max_scale: S does not rise above.

        Raises:
            ValueError: if one of them is out of its range.
        """
        _check_scales(min_scale=min_scale, scale=initial_scale, max_scale=max_scale)
        if growth_interval < 1:
            raise ValueError(f"growth_interval must be positive, got {growth_interval}")
        if not 1 < growth_factor < math.inf:
            raise ValueError(f"growth_factor must be above 1, got {growth_factor}")
        if not 0 < backoff_factor < 1:
            raise ValueError(f"backoff_factor must lie in (0, 1), got {backoff_factor}")
        return cls(
            jnp.asarray(initial_scale, jnp.float32),
            jnp.zeros((), jnp.int32),
            growth_interval,
            growth_factor,
            backoff_factor,
            min_scale,
            max_scale,
        )

    @property
    def bounds(self) -> Float[Array, "2"]:
        """The smallest and largest that S can become."""
        return jnp.asarray([self.min_scale, self.max_scale], jnp.float32)

    def scale_loss(self, loss: Float[Array, ""]) -> Float[Array, ""]:
        """S times the loss, in float32."""
        return _times(loss, self.scale)

    def unscale(self, grads: Any) -> Any:
        """The gradients divided by S, in float32 or wider."""
        return jax.tree.map(lambda g: _over(g, self.scale), grads)

    def adjust(self, is_finite: Bool[Array, ""]) -> "DynamicLossScale":
        """The scale for the next step, given whether this one's gradients were finite."""
        clean = self.clean_steps + 1
        grows = clean >= self.growth_interval
        larger = jnp.minimum(self.scale * self.growth_factor, self.max_scale)
        smaller = jnp.maximum(self.scale * self.backoff_factor, self.min_scale)
        kept = jnp.where(grows, larger, self.scale)
        return DynamicLossScale(
            jnp.where(is_finite, kept, smaller),
            jnp.where(is_finite & ~grows, clean, 0),
            self.growth_interval,
            self.growth_factor,
            self.backoff_factor,
            self.min_scale,
            self.max_scale,
        )


LossScale: TypeAlias = StaticLossScale | DynamicLossScale


def _times(x: Array, scale: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32)) * scale


def _over(x: Array, scale: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32)) / scale


def _check_scales(**scales: float) -> None:
    """Each must be positive and finite, and they must be in order."""
    for name, value in scales.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")
    if list(scales.values()) != sorted(scales.values()):
        listing = ", ".join(f"{name} {value:g}" for name, value in scales.items())
        raise ValueError(f"the scales must be in rising order, got {listing}")
