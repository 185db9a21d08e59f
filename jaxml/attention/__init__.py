"""Attention whose memory is linear in length, and its relatives.

| name | what |
|---|---|
| `attention` | softmax attention, a superset of `jax.nn.dot_product_attention` |
| `explain`, `Plan` | which backend runs, and why |
| `online_softmax` | the softmax-weighted mean in one pass |
"""

from jaxml.attention.dispatch import Plan as Plan
from jaxml.attention.dispatch import attention as attention
from jaxml.attention.dispatch import explain as explain
from jaxml.attention.online_softmax import online_softmax as online_softmax
