"""Multi-head attention as a module: four linear maps around any attention function.

    out = attention(x W_q, y W_k, y W_v) W_o,    of each head, y = x or a context

The function is an argument, `attention=`: softmax attention in tiles by default, linear
attention, a ring over devices, or anything else of that shape (q, k, v, **options).

The trap is initialisation: the one matrix that makes q, k and v is drawn as three square
ones, not as one wide one.

Reference: Vaswani et al., "Attention Is All You Need", NeurIPS 2017,
https://arxiv.org/abs/1706.03762 (section 3.2.2); Ainslie et al., "GQA", EMNLP 2023,
https://arxiv.org/abs/2305.13245 (fewer heads of keys).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxml.attention import attention
from jaxml.export import export
from jaxml.nn.dense import Dense
from jaxml.nn.dropout import Dropout
from jaxml.typing import Array, Float

# Fan-in alone: Xavier of the square matrices that stand side by side.
square = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


@export("nn.MultiHeadAttention", since="0.1")
class MultiHeadAttention(nn.Module):
    """Attention of a sequence to itself, or to a context.

    Parameters: `qkv` in this order where queries and keys come from one sequence and in
    equal numbers of heads, else `q` and `kv`; and `out`.

    Attributes:
        heads: of queries; they divide the width.
        kv_heads: of keys and values, shared by groups of query heads; None, as many.
        attention: a function (q, k, v, **options) of [batch, tokens, heads, dim].
        dropout: rate after the last map.
        axis_name: mesh axis the batch is split over; only dropout looks at it.
        dtype: of computation; None takes the widest of input and parameters.
        param_dtype: of the parameters.
    """

    heads: int
    kv_heads: int | None = None
    attention: Callable[..., Array] = attention
    dropout: float = 0.0
    axis_name: str | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch tokens dim"],
        context: Float[Array, "batch keys context_dim"] | None = None,
        *,
        train: bool,
        **options: Any,
    ) -> Float[Array, "batch tokens dim"]:
        """Returns [batch, tokens, dim]; `options` go to the attention function.

        Raises:
            ValueError: if the heads do not divide the width, or each other.
        """
        width, kv_heads = x.shape[-1], self.kv_heads or self.heads
        if width % self.heads or self.heads % kv_heads:
            raise ValueError(
                "heads must divide width and kv_heads heads, "
                f"got {self.heads}, {width} and {kv_heads}"
            )
        dense = partial(Dense, dtype=self.dtype, param_dtype=self.param_dtype)
        size = width // self.heads

        def project(y: Array, heads: tuple[int, ...], name: str) -> Array:
            features = size * heads[0] * heads[1]
            y = dense(features, kernel_init=square, name=name)(y)
            return jnp.moveaxis(y.reshape(*y.shape[:2], *heads, size), 2, 0)

        if context is None and kv_heads == self.heads:
            q, k, v = project(x, (3, self.heads), "qkv")
        else:
            (q,) = project(x, (1, self.heads), "q")
            k, v = project(x if context is None else context, (2, kv_heads), "kv")
        y = self.attention(q, k, v, **options).reshape(x.shape)
        xavier = nn.initializers.xavier_uniform()
        y = dense(width, kernel_init=xavier, name="out")(y)
        return Dropout(self.dropout, axis_name=self.axis_name)(y, train=train)
