"""Multi-layer perceptron with batch normalisation, the usual projection head."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.nn.initializers import Initializer

from jaxml.export import export
from jaxml.nn.dense import Dense
from jaxml.nn.norm import BatchNorm
from jaxml.typing import Array, Float


@export("nn.Mlp", since="0.1")
class Mlp(nn.Module):
    """Dense layers, each but the last followed by batch norm and ReLU.

    A dense layer that is normalised has no bias of its own. The heads of the papers:

        SimCLR      Mlp([2048, 128], normalize_last=True, last_bias=False)
        MoCo v2     Mlp([2048, 128], normalize=False)
        BYOL        Mlp([4096, 256])                        projector and predictor
        SimSiam     Mlp([2048] * 3, normalize_last=True, last_scale=False,
                        last_bias=False)                    projector
                    Mlp([512, 2048])                        predictor
        VICReg      Mlp([8192] * 3, last_bias=False)        Barlow Twins alike
        DINO        Mlp([2048, 2048, 256], normalize=False, activation=gelu)

    Attributes:
        widths: output width of every layer.
        normalize: batch-normalise the hidden layers.
        normalize_last: batch-normalise the last layer's output.
        last_scale: that last batch norm has a learned scale.
        last_bias: the last layer adds a learned bias, of its batch norm if it has one.
        kernel_init: of the dense layers.
        norm: makes the normalisation; `functools.partial(BatchNorm, momentum=0.01)`
            changes it.
        axis_name: mesh axis over which batch statistics are shared.
        dtype: of computation; None takes the widest of input and parameters.
        param_dtype: of the parameters.
        activation: in the place of ReLU.
    """

    widths: Sequence[int]
    normalize: bool = True
    normalize_last: bool = False
    last_scale: bool = True
    last_bias: bool = True
    kernel_init: Initializer = nn.initializers.lecun_normal()
    norm: Callable[..., nn.Module] = BatchNorm
    axis_name: str | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32
    activation: Callable[[Array], Array] = nn.relu

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch features"], *, train: bool
    ) -> Float[Array, "batch out"]:
        last = len(self.widths) - 1
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        for i, width in enumerate(self.widths):
            normalize = self.normalize if i < last else self.normalize_last
            bias = i < last or self.last_bias
            x = Dense(
                width,
                use_bias=bias and not normalize,
                kernel_init=self.kernel_init,
                **kinds,
            )(x)
            if normalize:
                x = self.norm(
                    use_scale=i < last or self.last_scale,
                    use_bias=bias,
                    axis_name=self.axis_name,
                    **kinds,
                )(x, train=train)
            if i < last:
                x = self.activation(x)
        return x
