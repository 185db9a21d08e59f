"""Kernels behind `jaxml.attention`: nothing here is called by name but `attention` itself.

| file | what | tests/attention/flash |
|---|---|---|
| `schedule` | which tiles are visited, by every backend in every pass | `test_schedule` |
| `arrange` | masks and statistics as kernels read them | `test_arrange` |
| `rule` | the derivative of a pair of kernels, to any order | `test_rule` |
| `backends` | the pairs by name, what each says against a call | `test_backends` |
| `tables` | how Hopper kernels are cut, and what was measured | `test_tables` |
| `gpu_walk` | Hopper: which block does what, in which order | `test_gpu_walk` |
| `gpu_logits` | Hopper: what is added to a tile and what is hidden | `test_gpu` |
| `gpu_forward` | Hopper, forward | `test_gpu` |
| `gpu_backward`, `gpu_weights` | Hopper, backward: both kernels, what they share | `test_gpu` |
| `gpu_backward_keys`, `gpu_backward_queries` | the one for dk and dv; for dq | `test_gpu` |
| `gpu_linear` | causal linear attention on Hopper | `test_gpu_linear` |
| `tpu`, `tpu_backward` | TPU | `test_tpu` |
| `cudnn` | NVIDIA's, through `jax.nn` | `test_cudnn` |

What a device alone can say is in `tests/gpu`, and has not been said yet: no kernel of
ours has met one. `python -m experiments.bench.attention` measures, on a Hopper GPU.
"""
