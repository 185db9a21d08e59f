"""Linear attention against softmax attention on a CPU, in training and in decoding.

    python -m experiments.bench.linear_attention

One sequence, 8 heads of 64, float32, causal. First the whole sequence at once: linear
attention (elu + 1), softmax attention in tiles, and `jax.nn`. Then one more token after
so many: from the state of linear attention, from a cache of keys, from a ring of 1024
keys, and without either, by attention of the whole sequence anew, which is what the
"up to 4000x" of Katharopoulos et al. (https://arxiv.org/abs/2006.16236) compares with.
Rounds alternate, medians count; "linear is" says how many times as fast as the other.

With `--rounds 3` on 2 CPU cores (AVX-512), shared, jax 0.10.2, seed 0:

    tokens  out by                  ms   linear is   with gradients, ms   linear is
      1024  linear                  13        1.0x                   32        1.0x
            softmax in tiles        41        3.1x                  134        4.2x
            jax.nn                  70        5.4x                  251        7.8x
      4096  linear                  42        1.0x                  161        1.0x
            softmax in tiles       293        7.0x                 1080        6.7x
            jax.nn                 945       22.5x                 4840       30.1x

    tokens  one more token by       ms   linear is
      1024  linear                0.40        1.0x
            cache                  2.0        5.0x
            ring cache of 1024     5.9       14.7x
            softmax anew            81        202x
      4096  linear                0.41        1.0x
            cache                  5.5       13.5x
            ring cache of 1024     1.5        3.7x
            softmax anew           952       2314x
     16384  linear                0.63        1.0x
            cache                  247        390x
            ring cache of 1024     6.0        9.5x
            softmax anew         33400      52814x
     65536  linear                0.48        1.0x
            cache                  228        476x
            ring cache of 1024     2.0        4.2x

A token by linear attention takes as long after 65536 others as after 1024; from a ring of
keys likewise, up to the noise of a shared machine. The plain cache is read whole, and copied
where it is not donated.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.bench.attention import Run, finished, gradients, medians
from jaxml.attention import (
    KVCache,
    LinearState,
    attention,
    decode_attention,
    linear_attention,
    linear_attention_step,
)


@dataclass(frozen=True)
class Config:
    """What is measured, and how often."""

    lengths: tuple[int, ...] = (1024, 4096)
    """Tokens of the sequence in training."""
    decode_lengths: tuple[int, ...] = (1024, 4096, 16384, 65536)
    """Tokens before the one that is decoded."""
    uncached_limit: int = 16384
    """The longest sequence that is computed anew for a token."""
    heads: int = 8
    """Heads, of queries and of keys."""
    dim: int = 64
    """Of a head."""
    rounds: int = 7
    """Repetitions, of which the median is taken."""
    seed: int = 0
    """Of the inputs."""


def main(config: Config) -> Mapping[str, Mapping[str, float]]:
    """Prints two tables, and returns their rows: milliseconds and ratio."""
    rng = np.random.default_rng(config.seed)
    rows: dict[str, Mapping[str, float]] = {}
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    for title, lengths, make in (
        ("out", config.lengths, partial(whole, gradient=False)),
        ("grad", config.lengths, partial(whole, gradient=True)),
        ("token", config.decode_lengths, partial(token, limit=config.uncached_limit)),
    ):
        print(f"\n| tokens | {title} by | ms | linear is |\n|---|---|---|---|")
        for length in lengths:
            shape = (3, 1, length, config.heads, config.dim)
            qkv = jnp.asarray(rng.normal(size=shape), jnp.float32)
            times = medians(make(qkv), config.rounds)
            for name, seconds in times.items():
                ratio = seconds / times["linear"]
                rows[f"{title}_{name}_{length}"] = {"ms": 1e3 * seconds, "times": ratio}
                print(f"| {length} | {name} | {1e3 * seconds:.3g} | {ratio:,.1f}x |")
    return rows


def whole(qkv: jax.Array, *, gradient: bool) -> dict[str, Run]:
    """The sequence at once."""
    functions: dict[str, Callable[..., Any]] = {
        "linear": linear_attention,
        "softmax in tiles": attention,
        "jax.nn": jax.nn.dot_product_attention,
    }
    runs = {}
    for name, f in functions.items():
        causal = partial(f, is_causal=True)
        made = jax.jit(gradients(causal) if gradient else causal)
        runs[name] = partial(finished, made, *qkv)
    return runs


def token(qkv: jax.Array, *, limit: int) -> dict[str, Run]:
    """One token after all of the sequence."""
    _, batch, length, heads, dim = qkv.shape
    new = qkv[:, :, -1:]
    state = LinearState(
        jnp.ones((batch, heads, dim, dim)), jnp.ones((batch, heads, dim))
    )
    before = jnp.full((batch,), length - 1, jnp.int32)
    full = KVCache(qkv[1], qkv[2], before)
    ring = KVCache(qkv[1, :, :1024], qkv[2, :, :1024], before)
    step = jax.jit(linear_attention_step)
    runs = {
        "linear": partial(finished, step, *new[:, :, 0], state),
        "cache": InPlace(decode_attention, new, full),
        "ring cache of 1024": InPlace(
            partial(decode_attention, is_ring=True), new, ring
        ),
    }
    if length <= limit:
        anew = jax.jit(partial(jax.nn.dot_product_attention, is_causal=True))
        runs["softmax anew"] = partial(finished, anew, *qkv)
    return runs


class InPlace:
    """A decoding step whose cache is donated, as in use; its length stays as it is."""

    def __init__(
        self, step: Callable[..., Any], new: jax.Array, cache: KVCache
    ) -> None:
        self.new, self.before = tuple(new), cache.length
        self.cache = jax.tree.map(jnp.copy, cache)
        self.step = jax.jit(step, donate_argnums=3)

    def __call__(self) -> None:
        length = jnp.copy(self.before)
        out, self.cache = self.step(*self.new, self.cache._replace(length=length))
        jax.block_until_ready(out)


if __name__ == "__main__":
    main(tyro.cli(Config))
