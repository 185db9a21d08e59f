"""Attention on a GPU: jaxml's Hopper kernels beside cuDNN and everybody else's.

    python -m experiments.bench.attention_gpu            (on a GPU of compute capability 9.0)
    python -m experiments.bench.attention_gpu --dry-run  (anywhere)

`attention` runs it too, where there is a GPU. In bfloat16, 16384 tokens and 2048 / dim
heads, cut into sequences; then shared keys, documents, windows, biases and masks, which
cuDNN does slowly or not at all, and linear attention. "out" is the forward pass, "grad"
both. Before it is timed, every library's result is compared with cuDNN's, or where that
has none with `chunked`. Rounds alternate between the libraries, medians count. The best
matrix product of the same minute says what the device has to give. Last comes the memory
of both passes over 65536 tokens. It stops by itself before ten minutes, and says what it
left out.

The dry run lowers every program for a GPU, without one, and says how long that took; then
it makes the table from small calls in plain JAX, so that all of this file has run.

With `--dry-run --kinds bias mask linear shared documents window` on 2 shared CPU cores,
jax 0.12: programs of our kernels are lowered in 0.5 to 1.3 CPU-seconds forward, and in 2.0
to 3.2 with the gradients.

Not measured yet: none of the kernels has met a device. What is aimed at: out at dims 64,
128 and 256 at least 0.95 of cuDNN's speed; grad at dim 128 at least 0.90, and at dim 256
twice the 156 TFLOP/s that tokamax's own table has; bias and mask 3 times cuDNN's; unasked
never below 0.98 of the best; 64 MiB beyond inputs and outputs at 65536 tokens; linear
attention 1.5 times the 787 and 2620 us that flash-linear-attention states for this call.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.bench.attention_peers import KINDS, Case, Library, kernel, libraries
from jaxml.attention import attention

Run = Callable[[], Any]


@dataclass(frozen=True)
class Config:
    """What is measured, and how long."""

    tokens: int = 16384
    """Of all sequences together."""
    hidden: int = 2048
    """Heads times their dim."""
    dims: tuple[int, ...] = (128, 64, 256)
    """Of a head."""
    lengths: tuple[int, ...] = (4096, 16384, 1024)
    """Of a sequence."""
    kinds: tuple[str, ...] = KINDS
    """Of calls."""
    memory: int = 65536
    """Tokens of which the memory is told."""
    rounds: int = 10
    """Repetitions, of which the median is taken."""
    calls: int = 5
    """Calls of a repetition."""
    seconds: float = 540
    """After which nothing new is begun."""
    peers: bool = True
    """Whether to run other libraries, if they are installed."""
    dry_run: bool = False
    """Lower all of it for a GPU, run small stand-ins, and measure nothing."""
    seed: int = 0
    """Of the inputs."""


SMOKE = Config(
    tokens=128,
    hidden=128,
    dims=(64,),
    lengths=(128,),
    kinds=("causal",),
    memory=256,
    rounds=1,
    calls=1,
    dry_run=True,
)


def cases(config: Config) -> Iterator[Case]:
    """The plain ones of the first length, those with features, and the other lengths."""
    plain = [
        Case(kind, config.tokens // length, length, *[config.hidden // dim] * 2, dim)
        for length in config.lengths
        for dim in config.dims
        for kind in ("causal", "full")
    ]
    features = [
        Case("bias", 8, 2048, 8, 8, 64),
        Case("mask", 4, 4096, 16, 16, 128),
        Case("linear", 1, 8192, 96, 96, 128),
        Case("shared", 4, 4096, 32, 8, 128),
        Case("documents", 4, 4096, 32, 8, 128),
        Case("window", 1, 16384, 32, 8, 128),
    ]
    first = 2 * len(config.dims)
    every = [*plain[:first], *features, *plain[first:]]
    return (case for case in every if case.kind in config.kinds)


def main(config: Config) -> Mapping[str, float]:
    """Prints a table, and returns TFLOP/s by row; of a dry run, that of small calls."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch is here too
    if jax.default_backend() != "gpu" and not config.dry_run:
        raise SystemExit(
            f"a GPU is needed, or --dry-run, got {jax.default_backend()} without it"
        )
    start, rows, left = time.monotonic(), {}, []
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    size = 256 if config.dry_run else 8192
    ceiling = product_speed(config, size)
    print(f"a product of {size} x {size} matrices makes {ceiling:.1f} TFLOP/s")
    print("| case | what | library | us | TFLOP/s | of cuDNN | error |")
    print("|---|---|---|---|---|---|---|")
    for case in cases(config):
        for gradient in (False, True):
            what = "grad" if gradient else "out"
            if time.monotonic() - start > config.seconds:
                left.append(f"{case} {what}")
                continue
            for row in measured(config, case, gradient):
                print(f"| {case} | {what} | {row} |", flush=True)
                if row.speed is not None:
                    rows[f"{case}, {what}, {row.name}"] = row.speed
    print(f"{config.memory} tokens, grad, jaxml:", temporary_memory(config))
    if left:
        print("left out for want of time:", "; ".join(left))
    return rows


class Row(NamedTuple):
    """What became of a library: a measurement, or words; the rest of a table's line."""

    name: str
    words: str
    speed: float | None = None

    def __str__(self) -> str:
        return f"{self.name} | {self.words}"


def measured(config: Config, case: Case, gradient: bool) -> Iterator[Row]:
    """A row of each library."""
    there = []
    for library in libraries(case, config.peers):
        if library.attend is None:
            yield Row(library.name, library.refusal)
        else:
            there.append(library)
    if config.dry_run:
        yield from lowerings(case, there, gradient)
        case = case._replace(batch=1, length=64, heads=2, kv_heads=1, dim=64)
        there = [x for x in libraries(case, config.peers) if x.stand_in is not None]
    runs, results = compiled(config, case, there, gradient), {}
    for name, run in list(runs.items()):
        try:
            results[name] = [as_numpy(x) for x in jax.tree.leaves(run())]
        except Exception as error:  # a peer that refuses is a result
            yield Row(name, f"refused: {first_line(error)}")
            del runs[name]
    yield from timed(config, case.flops(gradient), runs, results)


def timed(
    config: Config,
    flops: float,
    runs: Mapping[str, Run],
    results: Mapping[str, list[np.ndarray]],
) -> Iterator[Row]:
    """Seconds, speed, and what was computed against one that is trusted."""
    base = next((name for name in ("cudnn", "chunked") if name in results), None)
    seconds = medians(runs, config)
    for name, time_of in seconds.items():
        pairs = zip(results[name], results[base or name], strict=True)
        error = max(np.abs(a - b).max() / np.abs(b).max() for a, b in pairs)
        speed = flops / time_of / 1e12
        of_cudnn = seconds.get("cudnn", float("nan")) / time_of
        words = f"{1e6 * time_of:.0f} | {speed:.0f} | {of_cudnn:.2f} | {error:.0e}"
        if config.dry_run:
            words = f"a small call in its place: error {error:.0e}"
        yield Row(name, words, speed)


def inputs(config: Config, case: Case) -> list[jax.Array]:
    """Of query, key, value and the gradient of the output."""
    rng = np.random.default_rng(config.seed)
    return [
        jnp.asarray(rng.normal(size=x.shape).astype(np.float32), x.dtype)
        for x in types(case)
    ]


def types(case: Case) -> list[jax.ShapeDtypeStruct]:
    """Of the inputs."""
    wide, narrow = (
        jax.ShapeDtypeStruct((case.batch, case.length, n, case.dim), jnp.bfloat16)
        for n in (case.heads, case.kv_heads)
    )
    return [wide, narrow, narrow, wide]


def passes(attend: Callable[..., Any], gradient: bool) -> Callable[..., Any]:
    """Of options that are arrays, q, k, v and a gradient of the output: what is timed."""

    def both(given: Mapping[str, jax.Array], *arrays: jax.Array) -> Any:
        run = partial(attend, **given)
        if not gradient:
            return run(*arrays[:3])
        out, pull = jax.vjp(run, *arrays[:3])
        return out, *pull(arrays[3])

    return both


def arrays_of(attend: Callable[..., Any]) -> dict[str, jax.Array]:
    """Options that are arrays: a program takes them, and does not hold them."""
    options = getattr(attend, "keywords", {})
    return {name: x for name, x in options.items() if isinstance(x, jax.Array)}


def compiled(
    config: Config, case: Case, there: list[Library], gradient: bool
) -> dict[str, Run]:
    """The call of each, all compiled at once: the compilers leave Python's lock for long."""
    prepare = partial(ready, config, inputs(config, case), gradient)
    with ThreadPoolExecutor() as pool:
        runs = list(pool.map(prepare, there))
    return {library.name: run for library, run in zip(there, runs, strict=True)}


def ready(
    config: Config, arrays: list[jax.Array], gradient: bool, library: Library
) -> Run:
    """The library's call, compiled; an error in that comes when it is run."""
    attend = library.stand_in if config.dry_run else library.attend
    if library.is_torch:
        return torch_run(attend, arrays, gradient)
    try:
        given = arrays_of(attend)
        made = jax.jit(passes(attend, gradient)).lower(given, *arrays).compile()
    except Exception as error:
        return partial(fail, error)
    return partial(made, given, *arrays)


def fail(error: Exception) -> None:
    """Raises it."""
    raise error


def lowerings(case: Case, there: list[Library], gradient: bool) -> Iterator[Row]:
    """How long each program of JAX takes to become one for a GPU, at its true size."""
    for library in there:
        if library.is_torch:
            continue
        start = time.process_time()
        try:
            kernels = kernels_of(case, library.attend, gradient)
            seconds = time.process_time() - start
            words = f"lowered in {seconds:.1f} s, {kernels} kernels"
        except Exception as error:
            words = f"not lowered: {first_line(error)}"
        yield Row(library.name, words)


def kernels_of(case: Case, attend: Callable[..., Any], gradient: bool) -> int:
    """How many kernels a GPU's program has."""
    traced = jax.jit(passes(attend, gradient)).trace(arrays_of(attend), *types(case))
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    return text.count("custom_call @mosaic_gpu")


def temporary_memory(config: Config) -> str:
    """Of both passes over one long sequence, besides inputs and outputs."""
    case = Case("causal", 1, config.memory, 16, 16, 128)
    attend = partial(attention, implementation=kernel(), is_causal=True)
    if config.dry_run:
        return f"{kernels_of(case, attend, True)} kernels, not compiled"
    made = jax.jit(passes(attend, True)).lower({}, *types(case)).compile()
    return f"{made.memory_analysis().temp_size_in_bytes / 2**20:.0f} MiB of temporaries"


def torch_run(attend: Any, arrays: list[jax.Array], gradient: bool) -> Run:
    """The same of PyTorch's arrays, where they are."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    q, k, v, pull = (
        torch.tensor(np.asarray(x, np.float32)).to(device).bfloat16() for x in arrays
    )

    def run() -> list[Tensor]:
        if not gradient:
            with torch.no_grad():
                return [Tensor(attend(q, k, v))]
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        out = attend(*leaves)
        grads = torch.autograd.grad(out, leaves, pull)
        return [Tensor(x) for x in (out.detach(), *grads)]

    return run


class Tensor:
    """A PyTorch result that can be waited for and read as JAX's can."""

    def __init__(self, x: Any) -> None:
        self.x = x

    def block_until_ready(self) -> None:
        """Waits for the device."""
        import torch

        if self.x.is_cuda:
            torch.cuda.synchronize()

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.x.float().cpu().numpy()


def as_numpy(x: Any) -> np.ndarray:
    """In float32, whosever it is."""
    return np.asarray(x).astype(np.float32)


def first_line(error: Exception) -> str:
    """What it says, in short."""
    return (str(error) or type(error).__name__).splitlines()[0][:90]


def product_speed(config: Config, size: int) -> float:
    """TFLOP/s of a matrix product of random numbers."""
    x = jax.random.normal(jax.random.key(0), (size, size), jnp.bfloat16)
    multiply = jax.jit(jnp.matmul)
    (seconds,) = medians({"product": partial(multiply, x, x)}, config).values()
    return 2 * size**3 / seconds / 1e12


def medians(runs: Mapping[str, Run], config: Config) -> dict[str, float]:
    """Seconds of a call of each, in alternation."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        jax.block_until_ready(run())  # warms up
    for _ in range(config.rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready([run() for _ in range(config.calls)])
            seconds[name].append((time.perf_counter() - start) / config.calls)
    return {name: median(values) for name, values in seconds.items()}


if __name__ == "__main__":
    main(tyro.cli(Config))
