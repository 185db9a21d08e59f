"""Data parallelism: what travels between the devices, and what that costs.

    python -m experiments.bench.data_parallel

Three questions, for every number of devices. Of the *step* of a perceptron with Adam:
with copies of the state, accumulated over micro-batches, with the state in pieces. Of the
*sum* of one buffer: XLA's all-reduce, or the ring spelled out in messages. Of a *tree* of
small arrays: summed as it is, flattened to one buffer by hand, or one after another.

Columns: collective operations in the compiled program (AR all-reduce, AG all-gather, CP
collective-permute; those that XLA made one count as one), in how many places it multiplies
while it communicates, megabytes that a device sends if each is done by a ring, the least
possible for a sum (2 (p - 1) / p of the bytes), milliseconds of the clock and of all
processors together (medians, rounds alternating), megabytes a device holds in arguments and
temporaries.

Without accelerators the devices are threads of one processor, which shares their work and
its memory: times then compare programs, and do not tell how a step scales. With
`--topology v5e:2x4` the same programs are compiled for a TPU that need not be there
(libtpu must), and only the compiler's decisions are reported.

2 CPU cores, jax 0.10.2, 15 rounds (nothing is hidden there):

    devices  program               collectives  sent  least    ms  core ms  held  temporary
          1  data_parallel         1 AR         0.00   0.00  25.5     26.3  6.85       8.65
          1  accumulated           1 AR         0.00   0.00  42.8     42.7  6.85       5.13
          1  accumulated, at once  1 AR         0.00   0.00  37.5     37.4  6.85       5.13
          1  fsdp                  none         0.00   0.00  25.7     26.1  6.85       8.92
          1  buffer, psum          1 AR         0.00   0.00  0.84     0.84  4.19       0.00
          1  buffer, ring          none         0.00   0.00  0.87     0.94  4.19       0.00
          1  tree, psum            1 AR         0.00   0.00  0.77     0.80  0.13       0.00
          1  tree, flattened       1 AR         0.00   0.00  1.19     1.19  0.13       0.26
          1  tree, in turn         128 AR       0.00   0.00  0.83     0.88  0.13       0.00
          8  data_parallel         1 AR         3.69   3.69  31.0     48.8  6.38       4.21
          8  accumulated           1 AR         3.69   3.69  41.5     69.9  6.38       4.21
          8  accumulated, at once  1 AR         3.69   3.69  38.9     65.5  6.38       4.21
          8  fsdp                  17 AG, 2 AR  5.53   3.69  33.9     49.7  0.86       4.21
          8  buffer, psum          1 AR         7.34   7.34  5.36     7.82  4.19       0.00
          8  buffer, ring          14 CP        7.34   7.34  21.8     34.5  4.19       4.19
          8  tree, psum            1 AR         0.23   0.23  22.3     30.8  0.13       0.00
          8  tree, flattened       1 AR         0.23   0.23  5.79     7.80  0.13       0.26
          8  tree, in turn         128 AR       0.23   0.23  23.5     33.5  0.13       0.00

One all-reduce carries the 18 gradients and the metrics, and no byte more than the ring's
floor. The ring in messages sends the same bytes at a quarter of psum's speed: between
threads of one machine there are no links to keep busy, and its 14 messages are 14 meetings.
State in pieces takes 1/7.4 of the memory (small arrays stay whole) at the speed of copies.
On this backend a sum costs per array, even in one all-reduce: the tree of 128 takes longer
than one buffer. A TPU has no such cost.

TPU v5e, 2x4, compiled with libtpu 0.0.51, `--width 4096 --batch-size 4096`, without options
and with `--options` `HIDING`:

    program               collectives   hidden      sent  least   held  temporary
    data_parallel         8 AR          0, then 6    940    940   1619  226, then 628
    accumulated           8 AR          0            940    940   1619  828
    accumulated, at once  8 AR          0            940    940   1619  825
    fsdp                  17 AG, 10 AR  7           1175    940    210  543
    buffer, psum          1 AR          0           7.34   7.34   4.19  0
    buffer, ring          14 CP         1           7.34   7.34   4.19  0.29

The combiner stops at its threshold, so that a gradient of 537 MB goes in eight pieces; with
the options six of them travel while the product of the layer below is computed. FSDP's
gathers are hidden without being asked.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxml.compose import accumulated
from jaxml.method import Method
from jaxml.parallel import DATA_AXIS, data_mesh, fsdp_sharding, ring_all_reduce
from jaxml.parallel.data_parallel import program as data_parallel_program
from jaxml.parallel.fsdp import program as fsdp_program
from jaxml.train import gradient_step, init_state

MB = 1e6


@dataclass(frozen=True)
class Config:
    """What is measured, and how often."""

    devices: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of devices; those that are not there are left out."""
    width: int = 256
    """Of the perceptron's layers."""
    layers: int = 8
    """Of the perceptron."""
    batch_size: int = 512
    """Samples per step, over all devices."""
    micro_batches: int = 4
    """Of the accumulated step."""
    buffer: int = 2**20
    """Float32 numbers in the buffer that is summed."""
    leaves: int = 128
    """Arrays in the tree that is summed, of 256 numbers each."""
    rounds: int = 15
    """Repetitions, of which the median is taken."""
    topology: str = ""
    """Compile for this TPU topology, and run nothing."""
    options: tuple[str, ...] = ()
    """Compiler options that are set to true, such as `HIDING`."""


HIDING = (
    "xla_enable_async_all_reduce",
    "xla_tpu_enable_data_parallel_all_reduce_opt",
    "xla_tpu_enable_async_collective_fusion_fuse_all_reduce",
)
"""What a TPU v5e needs to sum the gradient of one layer while it computes the next."""

SMOKE = Config((1, 2), 16, 2, 16, 2, 64, 3, 1)


class Case(NamedTuple):
    """A jitted program, how its arguments lie, and the bytes it has to sum."""

    program: Any
    shapes: tuple[Any, ...]
    summed: int


def main(config: Config) -> Mapping[str, float]:
    """Prints a table, and returns its numbers by name."""
    if config.topology:
        from jax.experimental import topologies

        target = topologies.get_topology_desc(config.topology, "tpu").devices
    else:
        target = jax.devices()
    counts = [n for n in config.devices if n <= len(target)]
    print(f"{target[0].device_kind}, jax {jax.__version__}")
    print(
        "| devices | program | collectives | hidden | sent MB | least MB "
        "| ms | core ms | held MB | temporary MB |\n" + "|---" * 10 + "|"
    )
    options = dict.fromkeys(config.options, "true")
    results = {}
    for n in counts:
        mesh = data_mesh(target[:n])
        compiled = {
            name: (case, case.program.lower(*case.shapes).compile(options))
            for name, case in (steps(config, mesh) | sums(config, mesh)).items()
        }
        times = {} if config.topology else measure(compiled, config.rounds)
        for name, (case, program) in compiled.items():
            row = described(program, case, n) | times.get(name, {})
            results |= {f"{name}_{n}/{key}": value for key, value in row.items()}
            print(line(n, name, row, collectives(program.as_text())))
    return results


def perceptron(config: Config) -> Method:
    """A regression of enough arrays to be worth combining."""
    layers = [
        f for _ in range(config.layers) for f in (nn.Dense(config.width), nn.relu)
    ]
    net = nn.Sequential([*layers, nn.Dense(1)])

    def loss(params, model_state, batch, key):
        value = jnp.mean(jnp.square(net.apply(params, batch["x"])[:, 0] - batch["y"]))
        return value, (model_state, {"loss": value})

    return Method(lambda key, b: (net.init(key, b["x"]), {}), loss, lambda *_: None)


def steps(config: Config, mesh: Mesh) -> dict[str, Case]:
    """One training step, in the forms that the library has."""
    optimizer, key = optax.adam(1e-3), jax.random.key(0)
    method = perceptron(config)
    batch = {
        "x": jax.ShapeDtypeStruct((config.batch_size, config.width), jnp.float32),
        "y": jax.ShapeDtypeStruct((config.batch_size,), jnp.float32),
    }
    state = jax.eval_shape(partial(init_state, method, optimizer), key, batch)
    num_bytes = sum(4 * x.size for x in jax.tree.leaves(state.params))
    batch = laid_out(batch, NamedSharding(mesh, P(DATA_AXIS)))
    copies = laid_out(state, NamedSharding(mesh, P()))
    pieces = laid_out(state, fsdp_sharding(state, mesh, min_size=0))

    def step(method: Method) -> Any:
        return gradient_step(method, optimizer, key, DATA_AXIS)

    split = partial(accumulated, method, config.micro_batches, DATA_AXIS)
    return {
        "data_parallel": Case(
            data_parallel_program(step(method), mesh), (copies, batch), num_bytes
        ),
        "accumulated": Case(
            data_parallel_program(step(split()), mesh), (copies, batch), num_bytes
        ),
        "accumulated, gradients at once": Case(
            data_parallel_program(step(split(recompute=False)), mesh),
            (copies, batch),
            num_bytes,
        ),
        "fsdp": Case(
            fsdp_program(step(method), mesh, min_size=0), (pieces, batch), num_bytes
        ),
    }


def sums(config: Config, mesh: Mesh) -> dict[str, Case]:
    """A sum over the devices: of one buffer, and of a tree of small arrays."""
    n, along = mesh.size, NamedSharding(mesh, P(DATA_AXIS))
    buffer = jax.ShapeDtypeStruct((n, config.buffer), jnp.float32, sharding=along)
    small = jax.ShapeDtypeStruct((n, 256), jnp.float32, sharding=along)
    tree = [small] * config.leaves

    def case(reduce: Callable[[Any], Any], rows: Any) -> Case:
        def local(rows: Any) -> Any:
            return reduce(jax.tree.map(lambda x: x[0], rows))

        mapped = jax.shard_map(local, mesh=mesh, in_specs=P(DATA_AXIS), out_specs=P())
        num_bytes = sum(4 * x.size // n for x in jax.tree.leaves(rows))
        return Case(jax.jit(mapped), (rows,), num_bytes)

    psum, ring = (partial(f, axis_name=DATA_AXIS) for f in (lax.psum, ring_all_reduce))

    def flat(rows: Any) -> Any:
        buffer, unravel = ravel_pytree(rows)
        return unravel(psum(buffer))

    def in_turn(rows: Any) -> Any:
        # Each sum waits for the one before, so that none can be combined.
        done = [psum(rows[0])]
        for x in rows[1:]:
            done.append(psum(x + 0 * done[-1]))
        return done

    return {
        "buffer, psum": case(psum, buffer),
        "buffer, ring": case(ring, buffer),
        "tree, psum": case(psum, tree),
        "tree, flattened": case(flat, tree),
        "tree, in turn": case(in_turn, tree),
    }


def laid_out(tree: Any, sharding: Any) -> Any:
    """Shapes with the sharding, one for all or one for each."""
    if isinstance(sharding, NamedSharding):
        sharding = jax.tree.map(lambda _: sharding, tree)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, sharding
    )


def collectives(text: str) -> Iterator[tuple[str, int]]:
    """(kind, bytes of the result) of every collective in a compiled program.

    One in several parts, a start with what runs meanwhile and an end, is found by its
    start, whose result holds its operand as well.
    """
    kinds = "all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all"
    ends = re.findall(r"%async-collective-done[.\d]* = .*?calls=(%[\w.-]+)", text)
    for name, body in computations(text).items():
        if name in ends or name.startswith("%async_collective_fusion"):
            continue
        for found in re.finditer(rf"= (.*?) ({kinds})(-start)?\(", body):
            shapes = re.findall(r"(\w+?)(\d+)\[([\d,]*)\]", found[1])
            sizes = [
                int(bits) // 8 * int(np.prod([int(n) for n in dims.split(",") if n]))
                for kind, bits, dims in shapes
            ]
            if found[3] and found[2] in ("all-gather", "collective-permute"):
                sizes = sizes[1:2]
            yield found[2], sum(sizes)


def hidden(text: str) -> int:
    """The number of places where a compiled program multiplies while it communicates.

    On a TPU that is a fusion of both; elsewhere arithmetic between start and end.
    """
    product = r" (?:convolution|dot)\("
    fused = [
        body
        for name, body in computations(text).items()
        if name.startswith("%async_collective_fusion") and re.search(product, body)
    ]
    between = re.findall(
        r"= .*? (?:all-reduce|all-gather|collective-permute)-start\((?s:.*?)-done\(",
        text,
    )
    return len(fused) + sum(
        bool(re.search(product + r"| fusion\(", span)) for span in between
    )


def computations(text: str) -> dict[str, str]:
    """The bodies of the functions of a compiled program, by name."""
    return {
        body.lstrip().split(" ", 1)[0]: body
        for body in text.split("\n}\n")
        if body.strip()
    }


def described(program: Any, case: Case, n: int) -> dict[str, float]:
    """What the compiler made of a program on n devices."""
    share = (n - 1) / n
    factor = {
        "all-reduce": 2 * share,
        "all-gather": share,
        "reduce-scatter": n - 1,
        "collective-permute": 1,
        "all-to-all": share,
    }
    found = list(collectives(program.as_text()))
    memory = program.memory_analysis()
    return {
        "collectives": len(found),
        "hidden": hidden(program.as_text()),
        "sent": sum(factor[kind] * size for kind, size in found) / MB,
        "least": 2 * share * case.summed / MB,
        "held": memory.argument_size_in_bytes / MB,
        "temporary": memory.temp_size_in_bytes / MB,
    }


def measure(
    compiled: Mapping[str, tuple[Case, Any]], rounds: int
) -> dict[str, dict[str, float]]:
    """Milliseconds of the clock and of the processors, medians over rounds."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in compiled}
    args = {name: made(case.shapes) for name, (case, _) in compiled.items()}
    for _ in range(rounds + 1):
        for name, (case, program) in compiled.items():
            wall, core = time.perf_counter(), time.process_time()
            out = jax.block_until_ready(program(*args[name]))
            spent = time.perf_counter() - wall, time.process_time() - core
            times[name].append(spent)
            if len(case.shapes) == 2:  # a step: its state was donated
                args[name] = (out[0], args[name][1])
    return {
        name: {
            "ms": 1e3 * median(wall for wall, _ in spent[1:]),
            "core_ms": 1e3 * median(core for _, core in spent[1:]),
        }
        for name, spent in times.items()
    }


def made(shapes: Any) -> Any:
    """Arrays of these shapes and layouts."""

    def array(x: jax.ShapeDtypeStruct) -> jax.Array:
        return jax.device_put(np.full(x.shape, 0.01, x.dtype), x.sharding)

    return jax.tree.map(array, shapes)


def line(
    n: int, name: str, row: Mapping[str, float], found: Iterator[tuple[str, int]]
) -> str:
    """A row of the table."""
    kinds = [kind for kind, _ in found]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds)))
    numbers = [f"{row['hidden']}"] + [
        f"{row[key]:.2f}" if key in row else "-"
        for key in ("sent", "least", "ms", "core_ms", "held", "temporary")
    ]
    return f"| {n} | {name} | {counts or 'none'} | " + " | ".join(numbers) + " |"


if __name__ == "__main__":
    arguments = tyro.cli(Config)
    # Has an effect only where the processor is the device, and before it is used.
    jax.config.update("jax_num_cpu_devices", max(arguments.devices))
    main(arguments)
