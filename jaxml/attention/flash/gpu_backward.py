"""Flash attention on Hopper, backward: two kernels, and the same bits every time.

One owns keys and walks over queries, one owns queries and walks over keys. Two make the
logits twice, 7 products in place of 5, and in exchange no sum crosses blocks, so none
depends on their order.

Reference: Dao et al., "FlashAttention", NeurIPS 2022, https://arxiv.org/abs/2205.14135
(algorithm 4); Shah et al., "FlashAttention-3", NeurIPS 2024,
https://arxiv.org/abs/2407.08608 (appendix B.1). Theirs sums dq with atomics, in any order.
"""

from typing import Any

from jaxml.attention.flash.gpu_backward_keys import owning_keys
from jaxml.attention.flash.gpu_backward_queries import owning_queries
from jaxml.attention.flash.tables import Backward
from jaxml.attention.spec import Context, Operands, Spec
from jaxml.kernels.shapes import unpadded
from jaxml.typing import Array


def backward(
    spec: Spec,
    operands: Operands,
    context: Context,
    results: tuple[Array, Array],
    saved: tuple[()],
    changes: tuple[Array, Array],
    *,
    config: Backward,
    interpret: Any = None,
) -> tuple[Array, Array, Array]:
    """Gradients of query, key and value."""
    del saved
    call_of = spec, operands, context, results, changes
    dk, dv = owning_keys(*call_of, config.keys, interpret)
    dq = owning_queries(*call_of, config.queries, interpret)
    return tuple(
        unpadded(x, of.shape) for x, of in zip((dq, dk, dv), operands[:3], strict=True)
    )
