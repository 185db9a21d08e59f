"""The transformer block: attention and feedforward, each with a residual and a norm.

    pre:   x <- x + attention(norm(x)),    x <- x + mlp(norm(x))
    post:  x <- norm(x + attention(x)),    x <- norm(x + mlp(x))

Post-norm is the original. Pre-norm leaves the stream itself untouched, so that gradients
pass from the last layer to the first; it trains without warm-up.

The trap is the end of a pre-norm stack: its stream is not normalised, and wants a last
norm of its own before anything reads it.

Reference: Vaswani et al., "Attention Is All You Need", NeurIPS 2017,
https://arxiv.org/abs/1706.03762 (post, section 3.1); Xiong et al., "On Layer
Normalization in the Transformer Architecture", ICML 2020,
https://arxiv.org/abs/2002.04745 (pre, table 1).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxml.attention import attention
from jaxml.export import export
from jaxml.nn.activations import gelu
from jaxml.nn.attention import MultiHeadAttention
from jaxml.nn.dense import Dense
from jaxml.nn.dropout import Dropout
from jaxml.typing import Array, Float

Tokens = Float[Array, "batch tokens dim"]


@export("nn.Feedforward", since="0.1")
class Feedforward(nn.Module):
    """Two dense layers with an exact GELU between them.

    Attributes:
        hidden: width between the layers.
        dropout: rate after either layer.
        axis_name: mesh axis the batch is split over; only dropout looks at it.
        dtype: of computation; None takes the widest of input and parameters.
        param_dtype: of the parameters.
    """

    hidden: int
    dropout: float = 0.0
    axis_name: str | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool) -> Tokens:
        dense = partial(
            Dense,
            kernel_init=nn.initializers.xavier_uniform(),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        dropout = Dropout(self.dropout, axis_name=self.axis_name)
        y = gelu(dense(self.hidden, name="dense1")(x))
        y = dense(x.shape[-1], name="dense2")(dropout(y, train=train))
        return dropout(y, train=train)


@export("nn.TransformerBlock", since="0.1")
class TransformerBlock(nn.Module):
    """Attention and feedforward, normalised before or after.

    Attributes:
        heads: of attention; they divide the width.
        hidden: width of the feedforward layers.
        attention: a function (q, k, v, **options), see `MultiHeadAttention`.
        norm: "pre" or "post".
        kv_heads: heads of keys and values; None, as many as of queries.
        dropout: rate after every dense layer but those of q, k and v.
        drop_path: rate of stochastic depth of either branch.
        epsilon: of the layer norms.
        axis_name: mesh axis the batch is split over; only dropout looks at it.
        dtype: of computation; None takes the widest of input and parameters.
        param_dtype: of the parameters.
    """

    heads: int
    hidden: int
    attention: Callable[..., Array] = attention
    norm: str = "pre"
    kv_heads: int | None = None
    dropout: float = 0.0
    drop_path: float = 0.0
    epsilon: float = 1e-6
    axis_name: str | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool, **options: Any) -> Tokens:
        """Returns the tokens after the block; `options` go to the attention function.

        Raises:
            ValueError: if `norm` is neither "pre" nor "post".
        """
        if self.norm not in ("pre", "post"):
            raise ValueError(f"norm must be pre or post, got {self.norm!r}")
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        noise = {"dropout": self.dropout, "axis_name": self.axis_name}
        path = Dropout(self.drop_path, per_sample=True, axis_name=self.axis_name)
        attend = partial(
            MultiHeadAttention(
                self.heads,
                self.kv_heads,
                self.attention,
                name="attention",
                **noise,
                **kinds,
            ),
            **options,
        )
        mlp = Feedforward(self.hidden, name="mlp", **noise, **kinds)
        for branch, name in ((attend, "norm1"), (mlp, "norm2")):
            norm = nn.LayerNorm(self.epsilon, name=name, **kinds)
            if self.norm == "pre":
                x = x + path(branch(norm(x), train=train), train=train)
            else:
                x = norm(x + path(branch(x, train=train), train=train))
        return x
