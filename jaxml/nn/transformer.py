"""The transformer block: attention and feedforward, each with a residual and a norm.

    pre:   x <- x + attention(norm(x)),    x <- x + mlp(norm(x))
    post:  x <- norm(x + attention(x)),    x <- norm(x + mlp(x))

and, with layer scale, gamma * (attention or mlp) in the place of either, one small factor
per channel. Post-norm is the original. Pre-norm leaves the stream itself untouched, so that
gradients pass from the last layer to the first; it trains without warm-up.

The trap is the end of a pre-norm stack: its stream is not normalised, and wants a last
norm of its own before anything reads it.

Reference: Vaswani et al., "Attention Is All You Need", NeurIPS 2017,
https://arxiv.org/abs/1706.03762 (post, section 3.1); Xiong et al., "On Layer
Normalization in the Transformer Architecture", ICML 2020,
https://arxiv.org/abs/2002.04745 (pre, table 1); Touvron et al., "Going Deeper with Image
Transformers", ICCV 2021, https://arxiv.org/abs/2103.17239 (layer scale, equation 4);
Shazeer, "GLU Variants Improve Transformer", https://arxiv.org/abs/2002.05202 (SwiGLU,
equation 6; here with biases).
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
    """Two dense layers with an exact GELU, or a gate, between them.

    Attributes:
        hidden: width between the layers.
        kind: "gelu", or "swiglu": silu(a) * b, a and b the halves of a first layer of
            twice the width.
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
    kind: str = "gelu"

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool) -> Tokens:
        if self.kind not in ("gelu", "swiglu"):
            raise ValueError(f"kind must be gelu or swiglu, got {self.kind!r}")
        dense = partial(
            Dense,
            kernel_init=nn.initializers.xavier_uniform(),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        dropout = Dropout(self.dropout, axis_name=self.axis_name)
        if self.kind == "gelu":
            y = gelu(dense(self.hidden, name="dense1")(x))
        else:
            gate, y = jnp.split(dense(2 * self.hidden, name="dense1")(x), 2, axis=-1)
            y = nn.silu(gate) * y
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
        layer_scale: where the factors of the branches start; None has none.
        mlp: the `kind` of `Feedforward`.
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
    layer_scale: float | None = None
    epsilon: float = 1e-6
    axis_name: str | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32
    mlp: str = "gelu"

    @nn.compact
    def __call__(
        self,
        x: Tokens,
        *,
        train: bool,
        share: Float[Array, ""] | float = 1.0,
        **options: Any,
    ) -> Tokens:
        """Returns the tokens after the block.

        Args:
            x: the tokens before.
            train: whether there is dropout.
            share: of the rate of stochastic depth, in [0, 1]; it may be traced.
            options: go to the attention function.

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
        mlp = Feedforward(self.hidden, kind=self.mlp, name="mlp", **noise, **kinds)
        for branch, number in ((attend, 1), (mlp, 2)):
            norm = nn.LayerNorm(self.epsilon, name=f"norm{number}", **kinds)
            y = branch(norm(x) if self.norm == "pre" else x, train=train)
            y = path(self._scaled(y, f"scale{number}"), train=train, share=share)
            x = x + y if self.norm == "pre" else norm(x + y)
        return x

    def _scaled(self, y: Tokens, name: str) -> Tokens:
        if self.layer_scale is None:
            return y
        start = nn.initializers.constant(self.layer_scale)
        scale = self.param(name, start, y.shape[-1:], self.param_dtype)
        return y * scale.astype(y.dtype)[None, None]
