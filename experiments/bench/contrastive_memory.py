"""Memory and time of contrastive losses: similarities stored, or made block by block.

    python -m experiments.bench.contrastive_memory

One loss and its gradient for n pairs of vectors, in float32. `stored` writes the n x n
similarities (2n x 2n for NT-Xent) into memory, as the losses of lightly, open_clip and
big_vision do; `blockwise` is `jaxml.losses.blockwise_similarity`. Memory is XLA's own
account of temporary buffers, which does not need the program to be run; times are medians
of alternating rounds, for the sizes that fit. Measured with the command above on two cores
of an AMD EPYC that were shared with other work, JAX 0.10.2:

    loss      pairs    stored, GiB   blockwise, GiB   time, blockwise / stored
    nt_xent    4096          0.524            0.039   0.93
    clip       4096          0.188            0.025   1.16
    sigmoid    4096          0.188            0.023   1.21
    nt_xent   32768         32.190            0.260
    clip      32768         12.001            0.081
    sigmoid   32768         12.000            0.079
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import jax
import jax.numpy as jnp
import optax
import tyro

from jaxml.losses import blockwise_similarity, nt_xent, nt_xent_logits
from jaxml.typing import Array, Float

Loss = Callable[[Array, Array], Float[Array, ""]]
TEMPERATURE = 0.1


@dataclass(frozen=True)
class Config:
    """What is measured."""

    sizes: tuple[int, ...] = (4096, 32768)
    """Numbers of pairs whose memory is asked for."""
    timed: tuple[int, ...] = (256, 1024, 4096)
    """Numbers of pairs that are run."""
    dim: int = 512
    """Length of the vectors."""
    chunk: int = 1024
    """Rows and columns of a block."""
    rounds: int = 5
    """Repetitions, of which the median is taken."""
    out: Path = Path("runs/bench_contrastive_memory")
    """Unused: the figures are printed."""


SMOKE = Config(sizes=(64,), timed=(64,), dim=8, chunk=16, rounds=1)


def losses(chunk: int) -> Mapping[str, tuple[Loss, Loss]]:
    """Of each loss both ways: (stored, blockwise)."""
    blocks = partial(blockwise_similarity, chunk=chunk)

    def nt_xent_stored(x: Array, y: Array) -> Array:
        logits, partners = nt_xent_logits(x, y, TEMPERATURE)
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels
        return jnp.mean(cross_entropy(logits, partners))

    def clip_stored(x: Array, y: Array) -> Array:
        s = x @ y.T / TEMPERATURE
        both = jax.nn.logsumexp(s, axis=0) + jax.nn.logsumexp(s, axis=1)
        return jnp.mean(both / 2 - jnp.diag(s))

    def clip_blockwise(x: Array, y: Array) -> Array:
        met = blocks(x, y, x_scale=1 / TEMPERATURE, both=True)
        return jnp.mean((met.rows + met.columns) / 2 - _diagonal(x, y))

    def sigmoid_stored(x: Array, y: Array) -> Array:
        s = x @ y.T / TEMPERATURE
        return jnp.mean(jnp.sum(jax.nn.softplus(s), axis=1) - jnp.diag(s))

    def sigmoid_blockwise(x: Array, y: Array) -> Array:
        met = blocks(x, y, x_scale=1 / TEMPERATURE, reduce="softplus")
        return jnp.mean(met.rows - _diagonal(x, y))

    return {
        "nt_xent": (
            nt_xent_stored,
            partial(nt_xent, temperature=TEMPERATURE, chunk=chunk),
        ),
        "clip": (clip_stored, clip_blockwise),
        "sigmoid": (sigmoid_stored, sigmoid_blockwise),
    }


def _diagonal(x: Array, y: Array) -> Array:
    return jnp.sum(x * y, axis=1) / TEMPERATURE


def compile_loss(loss: Loss, n: int, dim: int) -> jax.stages.Compiled:
    """The loss with its gradient, for n pairs."""
    shape = jax.ShapeDtypeStruct((n, dim), jnp.float32)
    return jax.jit(jax.value_and_grad(loss, (0, 1))).lower(shape, shape).compile()


def main(config: Config) -> Mapping[str, float]:
    """Prints two tables; returns gibibytes, and milliseconds, by name."""
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, dim {config.dim}")
    print("\n| loss | pairs | stored, GiB | blockwise, GiB | times less |")
    print("|---|---|---|---|---|")
    rows: dict[str, float] = {}
    for n in config.sizes:
        for name, pair in losses(config.chunk).items():
            stored, blockwise = (
                compile_loss(f, n, config.dim).memory_analysis().temp_size_in_bytes
                / 2**30
                for f in pair
            )
            rows[f"{name}_{n}/stored_gib"] = stored
            rows[f"{name}_{n}/blockwise_gib"] = blockwise
            ratio = stored / max(blockwise, 1e-9)
            print(f"| {name} | {n} | {stored:.3f} | {blockwise:.3f} | {ratio:.1f} |")
    print("\n| loss | pairs | stored, ms | blockwise, ms | blockwise / stored |")
    print("|---|---|---|---|---|")
    for n in config.timed:
        for name, pair in losses(config.chunk).items():
            stored, blockwise = times(pair, n, config)
            rows[f"{name}_{n}/stored_ms"] = stored
            rows[f"{name}_{n}/blockwise_ms"] = blockwise
            ratio = blockwise / stored
            print(f"| {name} | {n} | {stored:.1f} | {blockwise:.1f} | {ratio:.2f} |")
    return rows


def times(pair: tuple[Loss, Loss], n: int, config: Config) -> list[float]:
    """Milliseconds of both, medians of alternating rounds."""
    x, y = jax.random.normal(jax.random.key(0), (2, n, config.dim)) / config.dim**0.5
    compiled = [compile_loss(f, n, config.dim) for f in pair]
    for f in compiled:
        jax.block_until_ready(f(x, y))
    taken: list[list[float]] = [[], []]
    for _ in range(config.rounds):
        for f, seconds in zip(compiled, taken, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(f(x, y))
            seconds.append(time.perf_counter() - start)
    return [1e3 * median(seconds) for seconds in taken]


if __name__ == "__main__":
    main(tyro.cli(Config))
