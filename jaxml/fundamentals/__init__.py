"""The fundamentals under everything else, each small enough to be read in one sitting.

| module | what |
|---|---|
| `autograd` | define-by-run differentiation as in PyTorch: `Tensor`, `backward`, `no_grad` |
| `backward` | its engine: the graph that operations leave, and the way back through it |
| `dual` | forward mode: dual numbers, `jvp` |
| `perceptron` | `fit`, `predict`; its bound; averaged, and with kernels |
| `stochastic_approximation` | means one sample at a time, Robbins-Monro, Kiefer-Wolfowitz, SPSA |

How a tape and `jax.grad` differ stands in `autograd_and_jax_grad.md`, beside this file; pictures
are drawn by `experiments/fundamentals`.
"""
