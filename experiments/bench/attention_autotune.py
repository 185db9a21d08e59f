"""The best cut of attention's Hopper kernels on this GPU, written where they look for it.

    python -m experiments.bench.attention_autotune            (on a GPU)
    python -m experiments.bench.attention_autotune --dry-run  (anywhere)

For each row of `jaxml.attention.flash.tables`, causal and full, every candidate of each
kernel is timed on 16384 tokens in sequences of 4096 and the fastest kept. A candidate
that does not fit into shared memory, or spills so that it does not compile, is left out.
The file also says what both passes reach together, and cuDNN beside them: by that the
dispatcher chooses. Rows that the file has and a run has not stay. It is
`jaxml/attention/flash/tuned/<device>.json`.

The dry run lowers every candidate for a GPU, and says which fit and how long that took;
it times nothing and writes nothing.

Not measured yet: no Hopper GPU was at hand, and there is no file.
"""

import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxml.attention.flash import gpu_forward, tables
from jaxml.attention.flash.gpu_backward_keys import owning_keys
from jaxml.attention.flash.gpu_backward_queries import owning_queries
from jaxml.attention.flash.tables import (
    DIMS,
    Backward,
    Entry,
    Forward,
    Pass,
)
from jaxml.attention.spec import prepare


@dataclass(frozen=True)
class Config:
    """What is tried, and how often."""

    dims: tuple[int, ...] = DIMS
    """Rows of the table."""
    length: int = 4096
    """Of a sequence."""
    tokens: int = 16384
    """Of all sequences together."""
    hidden: int = 2048
    """Heads times their dim."""
    rounds: int = 10
    """Repetitions, of which the median is taken."""
    seconds: float = 540
    """After which rows are left as they are."""
    candidates: int = 100
    """Of each kernel at the most, the first of all."""
    write: bool = True
    """Whether to write the file."""
    dry_run: bool = False
    """Lower the candidates for a GPU, and no more."""


FORWARD = [
    Forward(64, block_k, stages, warpgroups)
    for block_k, stages, warpgroups in itertools.product((64, 128, 192), (2, 3), (2, 3))
]
IN_FLIGHT = ((1, 0), (2, 1), (2, 0), (3, 0))  # tiles that are needed first, and second
KEYS = [
    Pass(block_q, 64, stages, 2, split, late)
    for block_q, (stages, late), split in itertools.product(
        (64, 128), IN_FLIGHT[1:], (False, True)
    )
]
QUERIES = [
    Pass(64, block_k, stages, warpgroups, late_stages=late)
    for block_k, (stages, late), warpgroups in itertools.product(
        (64, 128), IN_FLIGHT, (1, 2)
    )
]
SMOKE = Config(
    dims=(128,), length=256, tokens=256, hidden=128, candidates=1, dry_run=True
)


def main(config: Config) -> Mapping[str, float]:
    """Prints each winner, writes the file, and returns TFLOP/s by row."""
    if jax.default_backend() != "gpu" and not config.dry_run:
        raise SystemExit(
            f"a GPU is needed, or --dry-run, got {jax.default_backend()} without it"
        )
    device = jax.devices()[0].device_kind
    start, rows, speeds = time.monotonic(), dict(tables.tuned(device)), {}
    for dim, causal in itertools.product(config.dims, (True, False)):
        if time.monotonic() - start > config.seconds:
            print(f"dim {dim} is left as it was, for want of time")
            continue
        rows[dim, causal] = entry = tuned(config, dim, causal)
        speeds[f"{dim} {'causal' if causal else 'full'}"] = entry.speed or 0.0
        print(dim, "causal" if causal else "full", entry, flush=True)
    encoded = [tables.encoded(*key, entry) for key, entry in sorted(rows.items())]
    made = {"device": device, "jax": jax.__version__, "rows": encoded}
    if config.write and not config.dry_run:
        path = tables.file_of(device)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(made, indent=1) + "\n")
        print("written to", path)
    return speeds


def tuned(config: Config, dim: int, causal: bool) -> Entry:
    """The best of each kernel, and what they reach together."""
    heads, batch = config.hidden // dim, config.tokens // config.length
    shape = (batch, config.length, heads, dim)
    rng = np.random.default_rng(0)
    *qkv, pull = (
        jax.ShapeDtypeStruct(shape, jnp.bfloat16)
        if config.dry_run
        else jnp.asarray(rng.normal(size=shape).astype(np.float32), jnp.bfloat16)
        for _ in range(4)
    )

    def forward(cut: Forward, *qkv: jax.Array) -> Any:
        return gpu_forward.forward(*prepare(*qkv, is_causal=causal), config=cut)[0]

    def backward(kernel: Any, cut: Pass, *arrays: jax.Array) -> Any:
        *qkv, out, lse, d_out = arrays
        call = prepare(*qkv, is_causal=causal)
        return kernel(*call, (out, lse), (d_out, jnp.zeros_like(lse)), cut, None)

    def cudnn(cut: None, *arrays: jax.Array) -> Any:
        kwargs = {"is_causal": causal, "implementation": "cudnn"}
        attend = partial(jax.nn.dot_product_attention, **kwargs)
        out, pull = jax.vjp(attend, *arrays[:3])
        return out, *pull(arrays[-1])

    first, t1 = best(config, FORWARD, forward, qkv)
    run = jax.jit(partial(forward, first))
    arrays = [*qkv, *(run.eval_shape(*qkv) if config.dry_run else run(*qkv)), pull]
    keys, t2 = best(config, KEYS, partial(backward, owning_keys), arrays)
    queries, t3 = best(config, QUERIES, partial(backward, owning_queries), arrays)
    flops = 3.5 * 4 * batch * heads * config.length**2 * dim / (1 + causal) / 1e12
    speed, peer = flops / (t1 + t2 + t3), None
    if not config.dry_run:
        peer = flops / best(config, [None], cudnn, arrays)[1]
    return Entry(first, Backward(keys, queries), speed, peer)


def best(
    config: Config, cuts: Sequence[Any], run: Callable[..., Any], arrays: Sequence[Any]
) -> tuple[Any, float]:
    """The fastest of those that compile, and its seconds; of a dry run, those to lower."""
    times, cuts = {}, cuts[: config.candidates]
    with ThreadPoolExecutor() as pool:  # the compilers leave Python's lock for long
        made = list(pool.map(lambda cut: program(config, run, cut, arrays), cuts))
    for cut, compiled in zip(cuts, made, strict=True):
        try:
            times[cut] = compiled()
        except Exception as error:  # too much memory, too many registers
            print(f"  {cut}: {str(error).splitlines()[0][:90]}")
    if not times:
        raise RuntimeError("some candidate must compile, got none")
    winner = min(times, key=lambda cut: times[cut])
    return winner, times[winner]


def program(
    config: Config, run: Callable[..., Any], cut: Any, arrays: Sequence[Any]
) -> Callable[[], float]:
    """What gives the seconds of a candidate, or raises what its compilation raised."""
    traced, start = partial(jax.jit(partial(run, cut)).trace, *arrays), time.monotonic()
    try:
        if not config.dry_run:
            return partial(timed, config, traced().lower().compile(), arrays)
        traced().lower(lowering_platforms=("cuda",))
        seconds = time.monotonic() - start
    except Exception as error:
        return partial(fail, error)
    print(f"  {cut}: lowered in {seconds:.1f} s")
    return lambda: seconds


def fail(error: Exception) -> float:
    """Raises it."""
    raise error


def timed(config: Config, run: Callable[..., Any], arrays: Sequence[Any]) -> float:
    """Median seconds of a call."""
    seconds = []
    jax.block_until_ready(run(*arrays))
    for _ in range(config.rounds):
        start = time.perf_counter()
        jax.block_until_ready([run(*arrays) for _ in range(5)])
        seconds.append((time.perf_counter() - start) / 5)
    return median(seconds)


if __name__ == "__main__":
    main(tyro.cli(Config))
