"""Linear attention against softmax attention on a CPU, in training and in decoding.

    python -m experiments.bench.linear_attention

One sequence, 8 heads of 64, float32. First the whole sequence at once, causal and not,
and its gradients: linear attention (elu + 1), softmax attention in tiles, and `jax.nn`.
Then one more token after so many: from the state of linear attention, from a cache of
keys, from a ring of 1024 keys, and without either, by attention of the whole sequence
anew, which is what the "up to 4000x" of Katharopoulos et al.
(https://arxiv.org/abs/2006.16236) compares with. Rounds alternate, medians count; "linear
is" says how many times as fast as the other.

With `--rounds 3` on 2 CPU cores (AVX-512), shared, jax 0.10.2, seed 0, a run for either
table:

                                  causal              full
    tokens  what  by              ms   linear is      ms   linear is
      1024  out   linear          13        1.0x     8.2        1.0x
                  in tiles        51        4.0x      47        5.7x
                  jax.nn          99        7.8x      76        9.3x
      1024  grad  linear          29        1.0x      15        1.0x
                  in tiles        96        3.3x      86        5.6x
                  jax.nn         198        6.9x     168       11.0x
      4096  out   linear          44        1.0x      30        1.0x
                  in tiles       260        5.9x     485       16.5x
                  jax.nn         977       22.1x    1190       40.5x
      4096  grad  linear         144        1.0x     119        1.0x
                  in tiles      1390        9.6x    1550       13.0x
                  jax.nn        4620       32.1x    3250       27.3x

    tokens  one more token by       ms   linear is
      1024  linear                0.55        1.0x
            cache                  2.0        3.6x
            ring cache of 1024     2.1        3.8x
            softmax anew            61        112x
      4096  linear                0.48        1.0x
            cache                  6.1       12.7x
            ring cache of 1024     2.2        4.6x
            softmax anew           979       2037x
     16384  linear                0.81        1.0x
            cache                  373        462x
            ring cache of 1024     1.7        2.2x
            softmax anew         25600      31720x
     65536  linear                0.52        1.0x
            cache                  175        337x
            ring cache of 1024     2.7        5.1x

A token by linear attention takes as long after 65536 others as after 1024; from a ring of
keys likewise, up to the noise of a shared machine. The plain cache is read whole, and copied
where it is not donated. What short times hold is less arithmetic (a hundredth of the
softmax's) than copies of the operands and the first touch of fresh memory.
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
    parts: list[tuple[str, tuple[int, ...], Callable[..., dict[str, Run]]]] = []
    for causal in (True, False):
        for gradient in (False, True):
            title = f"{('full', 'causal')[causal]} {('out', 'grad')[gradient]}"
            make = partial(whole, is_causal=causal, gradient=gradient)
            parts.append((title, config.lengths, make))
    make = partial(token, limit=config.uncached_limit)
    parts.append(("token", config.decode_lengths, make))
    for title, lengths, make in parts:
        print(f"\n| tokens | {title} by | ms | linear is |\n|---|---|---|---|")
        for length in lengths:
            shape = (4, 1, length, config.heads, config.dim)
            arrays = jnp.asarray(rng.normal(size=shape), jnp.float32)
            times = medians(make(*arrays), config.rounds)
            for name, seconds in times.items():
                ratio = seconds / times["linear"]
                rows[f"{title}_{name}_{length}".replace(" ", "_")] = {
                    "ms": 1e3 * seconds,
                    "times": ratio,
                }
                print(f"| {length} | {name} | {1e3 * seconds:.3g} | {ratio:,.1f}x |")
    return rows


def whole(*qkvg: jax.Array, is_causal: bool, gradient: bool) -> dict[str, Run]:
    """The sequence at once; the last array is a gradient of the output."""
    functions: dict[str, Callable[..., Any]] = {
        "linear": linear_attention,
        "softmax in tiles": attention,
        "jax.nn": jax.nn.dot_product_attention,
    }
    runs = {}
    for name, f in functions.items():
        masked = partial(f, is_causal=is_causal)
        made = jax.jit(gradients(masked) if gradient else masked)
        runs[name] = partial(finished, made, *qkvg[: 4 if gradient else 3])
    return runs


def token(*qkvg: jax.Array, limit: int) -> dict[str, Run]:
    """One token after all of the sequence."""
    qkv = jnp.stack(qkvg[:3])
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
