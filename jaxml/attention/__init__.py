"""Attention whose memory is linear in length, and its relatives.

| name | what |
|---|---|
| `attention` | softmax attention, a superset of `jax.nn.dot_product_attention` |
| `attention_weights` | its weights, to be looked at |
| `explain`, `Plan` | which backend runs, and why |
| `online_softmax` | the softmax-weighted mean in one pass |
| `decode_attention`, `KVCache` | new tokens against the keys of all before them |
| `ring_attention`, `zigzag`, `unzigzag` | a sequence over devices, its keys in a circle |
| `ulysses_attention` | a sequence over devices, by exchange of tokens for heads |
| `linear_attention`, `linear_attention_step` | kernels of features: linear time, a state |
| `efficient_attention` | a softmax over features and one over keys |
"""

from jaxml.attention.decode import KVCache as KVCache
from jaxml.attention.decode import decode_attention as decode_attention
from jaxml.attention.dispatch import Plan as Plan
from jaxml.attention.dispatch import attention as attention
from jaxml.attention.dispatch import attention_weights as attention_weights
from jaxml.attention.dispatch import explain as explain
from jaxml.attention.efficient import efficient_attention as efficient_attention
from jaxml.attention.linear import LinearState as LinearState
from jaxml.attention.linear import linear_attention as linear_attention
from jaxml.attention.linear import linear_attention_step as linear_attention_step
from jaxml.attention.online_softmax import online_softmax as online_softmax
from jaxml.attention.ring import ring_attention as ring_attention
from jaxml.attention.ring import unzigzag as unzigzag
from jaxml.attention.ring import zigzag as zigzag
from jaxml.attention.ulysses import ulysses_attention as ulysses_attention
