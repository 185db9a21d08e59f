"""Which numbers are stored, computed and returned in which dtype.

    name              parameters   computation   outputs    loss scale
    float32           float32      float32       float32    no
    mixed_float16     float32      float16       float32    needed
    mixed_bfloat16    float32      bfloat16      float32    no
    pure_bfloat16     bfloat16     bfloat16      float32    no

float16 has 11 bits of precision and ends at 65504 and 2^-24: gradients fall out of it at
the lower end, and a loss scale holds them in. bfloat16 has float32's range and 8 bits.

The trap of `pure_bfloat16`: an update smaller than 2^-9 of its parameter is rounded away,
step after step. Give it an optimizer wrapped in `stochastic_rounding`, which also keeps
the optimizer's own averages in float32; in bfloat16 Adam's second moment never decays.

Reference: Micikevicius et al., "Mixed Precision Training", ICLR 2018,
https://arxiv.org/abs/1710.03740 (section 3); Kalamkar et al., "A Study of BFLOAT16 for Deep
Learning Training", https://arxiv.org/abs/1905.12322. Outputs and metrics of the pure
policy are float32 here: a loss of 2.31 is 2.3125 in bfloat16.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxml.export import export


@export("precision.Policy", since="0.1")
@dataclass(frozen=True)
class Policy:
    """Three floating dtypes. Casting leaves integers, booleans and keys as they are.

    Attributes:
        param_dtype: in which parameters are stored and updated.
        compute_dtype: in which the loss and the predictions are computed.
        output_dtype: of the loss, the metrics and the predictions.

    Raises:
        ValueError: if one of them is not floating.

    >>> Policy("float32", "bfloat16", "float32") == policy("mixed_bfloat16")
    True
    """

    param_dtype: Any
    compute_dtype: Any
    output_dtype: Any

    def __post_init__(self) -> None:
        for name in ("param_dtype", "compute_dtype", "output_dtype"):
            dtype = jnp.dtype(getattr(self, name))
            if not jnp.issubdtype(dtype, jnp.floating):
                raise ValueError(f"{name} must be a floating dtype, got {dtype}")
            object.__setattr__(self, name, dtype)

    def cast_to_param(self, tree: Any) -> Any:
        """Floating arrays in `param_dtype`."""
        return cast(tree, self.param_dtype)

    def cast_to_compute(self, tree: Any) -> Any:
        """Floating arrays in `compute_dtype`."""
        return cast(tree, self.compute_dtype)

    def cast_to_output(self, tree: Any) -> Any:
        """Floating arrays in `output_dtype`."""
        return cast(tree, self.output_dtype)

    @property
    def needs_loss_scale(self) -> bool:
        """Whether gradients can fall below what the computation can hold."""
        return bool(jnp.finfo(self.compute_dtype).minexp > jnp.finfo("bfloat16").minexp)


_POLICIES = {
    "float32": Policy("float32", "float32", "float32"),
    "mixed_float16": Policy("float32", "float16", "float32"),
    "mixed_bfloat16": Policy("float32", "bfloat16", "float32"),
    "pure_bfloat16": Policy("bfloat16", "bfloat16", "float32"),
}


@export("precision.policy", since="0.1")
def policy(name: str) -> Policy:
    """One of the usual policies: the table at the head of this module.

    Raises:
        ValueError: if no policy has the name.

    >>> policy("mixed_float16").compute_dtype
    dtype('float16')
    """
    if name not in _POLICIES:
        names = ", ".join(_POLICIES)
        raise ValueError(f"the policy must be one of {names}, got {name!r}")
    return _POLICIES[name]


def cast(tree: Any, dtype: Any) -> Any:
    """The tree with its floating arrays in `dtype`; those that are stay the same object."""
    return _map_floating(lambda x: x if x.dtype == dtype else x.astype(dtype), tree)


def cast_like(tree: Any, like: Any, what: str) -> Any:
    """The tree with its floating arrays in the dtypes they have in `like`.

    Raises:
        ValueError: if `like` has another structure; `what` says of what.
    """
    structures = [str(jax.tree.structure(t)) for t in (like, tree)]
    if structures[0] != structures[1]:
        before, after = structures
        raise ValueError(
            f"{what} must keep its structure over a step, got {before}, then {after}"
        )
    return jax.tree.map(
        lambda x, old: cast(x, old.dtype) if _is_floating(old) else x, tree, like
    )


def _map_floating(f: Callable[[Any], Any], tree: Any) -> Any:
    return jax.tree.map(lambda x: f(x) if _is_floating(x) else x, tree)


def _is_floating(x: Any) -> bool:
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)
