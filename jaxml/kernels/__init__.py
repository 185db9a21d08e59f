"""What kernels are made of, whatever they compute.

| file | what | tested in |
|---|---|---|
| `devices` | the accelerator that is here, the interpreter that stands in for it | `tests/kernels` |
| `shapes` | padding, the types of results inside `shard_map` | `tests/kernels` |
| `hopper` | buffers, products, the call of a Hopper kernel | `tests/kernels` |
| `rings` | who computes, who loads, the ring of buffers between | `tests/kernels` |

The kernels of attention are in `jaxml.attention.flash`, that of trees is
`jaxml.trees.gpu_histogram`.
"""
