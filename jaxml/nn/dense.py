"""A dense layer that multiplies flat rows, whatever stands before the last axis.

    y = x W + b,    x [..., in],  W [in, out]

The same as flax's, faster to differentiate on a CPU: there the gradient of W over several
leading axes is a product whose operand XLA first transposes in memory, over one axis it
is not. Accelerators merge the axes themselves. `experiments/bench/train_step.py` has the
figures.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax.nn.initializers import Initializer

from jaxml.export import export
from jaxml.typing import Array, Float


@export("nn.Dense", since="0.1")
class Dense(nn.Module):
    """A linear map of the last axis; parameters `kernel` [in, out] and `bias` [out].

    Attributes:
        features: width of the output.
        use_bias: add a learned bias.
        kernel_init: of the kernel.
        dtype: of computation; None takes the widest of input and parameters.
        param_dtype: of the parameters.
    """

    features: int
    use_bias: bool = True
    kernel_init: Initializer = nn.initializers.lecun_normal()
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*rest features"]) -> Float[Array, "*rest out"]:
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = None
        if self.use_bias:
            zeros = nn.initializers.zeros
            bias = self.param("bias", zeros, shape[1:], self.param_dtype)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = x.reshape(-1, shape[0]) @ kernel
        if bias is not None:
            y += bias[None]
        return y.reshape(*x.shape[:-1], self.features)
