"""Softmax attention: jaxml, `jax.nn` and PyTorch, side by side, on whatever is here.

    python -m experiments.bench.attention

On a GPU this is `attention_gpu`, with its own options and its own table: the kernels,
cuDNN and other libraries, in under ten minutes. On a CPU, jaxml in tiles:

One sequence, 8 heads of 64, float32; forward alone and with the gradients of q, k and v.
Rounds alternate between the libraries in one process, medians count. Memory is what XLA
asks for besides inputs and outputs. "jaxml is" says how many times as fast as the peer.

2 CPU cores (AVX-512), shared, jax 0.10.2, torch 2.13.0, 7 rounds, seed 0:

    tokens  mask    what  library    ms     MB  jaxml is
      1024  causal  out   jaxml      46      9      1.0x
                          jax.nn     99     64      2.2x
                          torch      22             0.5x
      1024  causal  grad  jaxml     114     16      1.0x
                          jax.nn    201    102      1.8x
                          torch      57             0.5x
      1024  full    out   jaxml      36      9      1.0x
                          jax.nn     80     64      2.2x
                          torch      23             0.6x
      1024  full    grad  jaxml     118     16      1.0x
                          jax.nn    162    102      1.4x
                          torch      54             0.5x
      4096  causal  out   jaxml     255     31      1.0x
                          jax.nn    978   1024      3.8x
                          torch     128             0.5x
      4096  causal  grad  jaxml     989     55      1.0x
                          jax.nn   3413   1560      3.4x
                          torch     386             0.4x
      4096  full    out   jaxml     380     31      1.0x
                          jax.nn    969   1024      2.5x
                          torch     218             0.6x
      4096  full    grad  jaxml    1457     55      1.0x
                          jax.nn   2985   1560      2.0x
                          torch     811             0.6x

Memory is linear where `jax.nn` is quadratic. PyTorch is ahead by a factor of two: a pass
over 4096 tokens is 34 GFLOP of products, which XLA's CPU backend makes at 70 to 140
GFLOP/s in tiles of any size and PyTorch's oneDNN at 200, and PyTorch writes the rest as
one kernel. With the gradient of a full mask, `jax.nn` loses less, for it keeps the weights
that tiles make again: 7 products of matrices instead of 6. Those 7 are 120 GFLOP, and
nearly all of the time; tiles of half and twice the size came within a tenth of it.
"""

import time
from collections.abc import Callable, Mapping, Sequence
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
    if jax.default_backend() == "gpu":
        return on_gpu(config)
    rng = np.random.default_rng(config.seed)
    rows: dict[str, Mapping[str, float]] = {}
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    print("| tokens | mask | what | library | ms | MB | jaxml is |")
    print("|---|---|---|---|---|---|---|")
    for length in config.lengths:
        shape = (4, 1, length, config.heads, config.dim)
        *qkv, pull = rng.normal(size=shape).astype(np.float32)
        for causal in (True, False):
            for gradient in (False, True):
                runs, memory = ours(qkv, pull if gradient else None, causal)
                if config.peers:
                    runs |= torch_runs(qkv, pull if gradient else None, causal)
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


def on_gpu(config: Config) -> Mapping[str, Mapping[str, float]]:
    """The table of `attention_gpu`, from all of its cases."""
    from experiments.bench import attention_gpu

    speeds = attention_gpu.main(
        attention_gpu.Config(peers=config.peers, seed=config.seed)
    )
    return {name: {"teraflops": speed} for name, speed in speeds.items()}


def ours(
    qkv: Sequence[np.ndarray], pull: np.ndarray | None, causal: bool
) -> tuple[dict[str, Run], dict[str, float]]:
    """Compiled runs of jaxml and `jax.nn`, and the memory of each in megabytes."""
    runs, memory = {}, {}
    arrays = [jnp.asarray(x) for x in (*qkv, pull) if x is not None]
    for name, f in (("jaxml", attention), ("jax.nn", jax.nn.dot_product_attention)):
        out = partial(f, is_causal=causal)
        made = jax.jit(out if pull is None else gradients(out)).lower(*arrays).compile()
        runs[name] = partial(finished, made, *arrays)
        memory[name] = made.memory_analysis().temp_size_in_bytes / 2**20
    return runs, memory


def gradients(f: Callable[..., jax.Array]) -> Callable[..., Any]:
    """Of q, k, v and a gradient of f(q, k, v), those of q, k and v."""
    return lambda *args: jax.vjp(f, *args[:-1])[1](args[-1])


def finished(f: Callable[..., Any], *args: Any) -> None:
    """Runs f to its end."""
    jax.block_until_ready(f(*args))


def torch_runs(
    qkv: Sequence[np.ndarray], pull: np.ndarray | None, causal: bool
) -> dict[str, Run]:
    """The same for PyTorch, if it is installed; its layout is heads first."""
    try:
        import torch
    except ImportError:
        return {}
    q, k, v, *g = (
        torch.tensor(x.swapaxes(1, 2).copy()) for x in (*qkv, pull) if x is not None
    )
    attend = torch.nn.functional.scaled_dot_product_attention

    def out() -> None:
        with torch.no_grad():
            attend(q, k, v, is_causal=causal)

    def grad() -> None:
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        attend(*leaves, is_causal=causal).backward(*g)

    return {"torch": grad if g else out}


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
