"""Softmax attention on a CPU: jaxml in tiles, `jax.nn` and PyTorch, side by side.

    python -m experiments.bench.attention

One sequence, 8 heads of 64, float32; forward alone and with the gradients of q, k and v.
Rounds alternate between the libraries in one process, medians count. Memory is what XLA
asks for besides inputs and outputs. "jaxml is" says how many times as fast as the peer.

2 CPU cores (AVX-512), jax 0.10.2, torch 2.13.0, 7 rounds, seed 0:

    tokens  mask    what  library    ms     MB  jaxml is
      1024  causal  out   jaxml      29      9      1.0x
                          jax.nn     62     64      2.1x
                          torch      16             0.6x
      1024  causal  grad  jaxml     181     16      1.0x
                          jax.nn    366    130      2.0x
                          torch     135             0.7x
      1024  full    out   jaxml      51      9      1.0x
                          jax.nn    119     64      2.3x
                          torch      28             0.5x
      1024  full    grad  jaxml     126     16      1.0x
                          jax.nn    273    130      2.2x
                          torch      64             0.5x
      4096  causal  out   jaxml     301     31      1.0x
                          jax.nn   1040   1024      3.5x
                          torch     163             0.5x
      4096  causal  grad  jaxml    1349     56      1.0x
                          jax.nn   6030   2056      4.5x
                          torch     704             0.5x
      4096  full    out   jaxml     499     31      1.0x
                          jax.nn   1376   1024      2.8x
                          torch     286             0.6x
      4096  full    grad  jaxml    1783     56      1.0x
                          jax.nn   5524   2056      3.1x
                          torch    1138             0.6x

Memory is linear where `jax.nn` is quadratic. PyTorch is ahead by a factor of two: a pass
over 4096 tokens is 34 GFLOP of products, which XLA's CPU backend makes at 100 to 140
GFLOP/s in tiles of this size and PyTorch's oneDNN at 200, and PyTorch writes the rest as
one kernel. With the gradient of a full mask, `jax.nn` loses less, for it keeps the weights
that tiles make again: 7 products of matrices instead of 6.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxml.attention import attention

Run = Callable[[], Any]


@dataclass(frozen=True)
class Config:
    """What is measured, and how often."""

    lengths: tuple[int, ...] = (1024, 4096)
    """Tokens of the sequence."""
    heads: int = 8
    """Heads, of queries and of keys."""
    dim: int = 64
    """Of a head."""
    rounds: int = 7
    """Repetitions, of which the median is taken."""
    peers: bool = True
    """Whether to run PyTorch, if it is installed."""
    seed: int = 0
    """Of the inputs."""


def main(config: Config) -> Mapping[str, Mapping[str, float]]:
    """Prints a table, and returns its rows: milliseconds, megabytes and ratio."""
    rng = np.random.default_rng(config.seed)
    rows: dict[str, Mapping[str, float]] = {}
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    print("| tokens | mask | what | library | ms | MB | jaxml is |")
    print("|---|---|---|---|---|---|---|")
    for length in config.lengths:
        shape = (3, 1, length, config.heads, config.dim)
        qkv = rng.normal(size=shape).astype(np.float32)
        for causal in (True, False):
            for gradient in (False, True):
                runs, memory = ours(qkv, causal, gradient)
                if config.peers:
                    runs |= torch_runs(qkv, causal, gradient)
                times = medians(runs, config.rounds)
                mask, what = ("full", "causal")[causal], ("out", "grad")[gradient]
                for name, seconds in times.items():
                    ratio = seconds / times["jaxml"]
                    megabytes = memory.get(name, float("nan"))
                    rows[f"{name}_{length}_{mask}_{what}"] = {
                        "ms": 1e3 * seconds,
                        "megabytes": megabytes,
                        "times": ratio,
                    }
                    print(
                        f"| {length} | {mask} | {what} | {name} | {1e3 * seconds:.0f} "
                        f"| {megabytes:.0f} | {ratio:.1f}x |",
                        flush=True,
                    )
    return rows


def ours(
    qkv: np.ndarray, causal: bool, gradient: bool
) -> tuple[dict[str, Run], dict[str, float]]:
    """Compiled runs of jaxml and `jax.nn`, and the memory of each in megabytes."""
    runs, memory = {}, {}
    arrays = [jnp.asarray(x) for x in qkv]
    for name, f in (("jaxml", attention), ("jax.nn", jax.nn.dot_product_attention)):
        out = partial(f, is_causal=causal)
        made = jax.jit(gradients(out) if gradient else out).lower(*arrays).compile()
        runs[name] = partial(finished, made, *arrays)
        memory[name] = made.memory_analysis().temp_size_in_bytes / 2**20
    return runs, memory


def gradients(f: Callable[..., jax.Array]) -> Callable[..., Any]:
    """The gradients of the sum of squares of f, for q, k and v."""
    return jax.grad(lambda *qkv: jnp.sum(f(*qkv) ** 2), argnums=(0, 1, 2))


def finished(f: Callable[..., Any], *args: Any) -> None:
    """Runs f to its end."""
    jax.block_until_ready(f(*args))


def torch_runs(qkv: np.ndarray, causal: bool, gradient: bool) -> dict[str, Run]:
    """The same for PyTorch, if it is installed; its layout is heads first."""
    try:
        import torch
    except ImportError:
        return {}
    q, k, v = (torch.tensor(x.swapaxes(1, 2).copy()) for x in qkv)
    attend = torch.nn.functional.scaled_dot_product_attention

    def out() -> None:
        with torch.no_grad():
            attend(q, k, v, is_causal=causal)

    def grad() -> None:
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        (attend(*leaves, is_causal=causal) ** 2).sum().backward()

    return {"torch": grad if gradient else out}


def medians(runs: Mapping[str, Run], rounds: int) -> dict[str, float]:
    """Seconds of each, in alternation."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()  # compiles, warms up
    for _ in range(rounds):
        for name, run in runs.items():
            time.sleep(0.25)  # threads of the run before may spin for a while
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in seconds.items()}


if __name__ == "__main__":
    main(tyro.cli(Config))
