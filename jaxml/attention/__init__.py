"""Attention whose memory is linear in length, and its relatives.

| name | what |
|---|---|
| `attention` | softmax attention, a superset of `jax.nn.dot_product_attention` |
| `explain`, `Plan` | which backend runs, and why |
| `online_softmax` | the softmax-weighted mean in one pass |
| `linear_attention`, `linear_attention_step` | kernels of features: linear time, a state |
| `efficient_attention` | a softmax over features and one over keys |
"""

from jaxml.attention.dispatch import Plan as Plan
from jaxml.attention.dispatch import attention as attention
from jaxml.attention.dispatch import explain as explain
from jaxml.attention.efficient import efficient_attention as efficient_attention
from jaxml.attention.linear import LinearState as LinearState
from jaxml.attention.linear import linear_attention as linear_attention
from jaxml.attention.linear import linear_attention_step as linear_attention_step
from jaxml.attention.online_softmax import online_softmax as online_softmax
