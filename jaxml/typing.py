"""The words used in signatures throughout jaxml."""

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, Integer, Key, PRNGKeyArray, UInt8, UInt32

__all__ = [
    "Array",
    "Bool",
    "Float",
    "Int",
    "Integer",
    "Key",
    "PRNGKeyArray",
    "UInt8",
    "UInt32",
]

Array = jax.Array | np.ndarray  # NumPy is welcome outside jit
