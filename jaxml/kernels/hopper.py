"""What the Hopper kernels are made of: buffers, products, vectors along them, the call.

Products are `wgmma`, asynchronous, from shared memory or with the left side in registers,
into float32 registers. `gpu_walk` says who makes them when, `gpu_logits` what becomes of
those of queries and keys.

The interpreter knows neither a product into an accumulator that is not empty nor one
from registers. `add_product` does, for it alone, the same by way of a `stage` in shared
memory; that is the only line that a device and the interpreter do not have in common.

Reference: Shah et al., "FlashAttention-3", NeurIPS 2024,
https://arxiv.org/abs/2407.08608 (sections 3.1 and 3.2).
"""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxml.kernels.shapes import axes_of, varying
from jaxml.typing import Array

WIDTH = 64  # 16-bit numbers in a row of the 128-byte swizzle

# jax 0.10 asks for an index beside the ref; later it is deprecated, then gone.
INDEX = inspect.signature(plgpu.load).parameters.get("idx")
NEEDS_INDEX = INDEX is not None and INDEX.default is inspect.Parameter.empty


def buffer(*shape: int, dtype: Any) -> Any:
    """Shared memory that a product can read: the last axis in rows of 128 bytes."""
    transforms = (plgpu.TilingTransform((8, WIDTH)), plgpu.SwizzleTransform(128))
    return plgpu.SMEM(shape, dtype, transforms=transforms)


def turned(ref: Any) -> Any:
    """A matrix in shared memory, transposed without a copy."""
    return ref.transpose((1, 0))


def product(a: Any, b: Any, rows: int, columns: int, between: Any = None) -> Array:
    """The product a b; `between` runs while it is under way."""

    def run(acc: Any) -> Array:
        plgpu.wgmma(acc, a, b)
        if between is not None:
            between()
        return acc[...]

    return pl.run_scoped(run, plgpu.ACC((rows, columns), jnp.float32))


def add_product(total: Array, a: Array, b: Any, stage: Any = None) -> Array:
    """The sum total + a b, with a in registers."""
    if stage is not None:
        stage[...] = a
        plgpu.commit_smem()
        return total + product(stage, b, *total.shape)

    def run(acc: Any) -> None:
        plgpu.wgmma(acc, a, b)

    return pl.run_state(run)(plgpu.ACC.init(total))


def add_product_beside(
    total: Array, a: Array, b: Any, c: Any, d: Any, shape: tuple[int, int], stage: Any
) -> tuple[Array, Array]:
    """(total + a b, c d), both under way at once."""
    if stage is not None:
        return add_product(total, a, b, stage), product(c, d, *shape)

    def run(refs: Any) -> None:
        plgpu.wgmma(refs[0], a, b)
        plgpu.wgmma(refs[1], c, d)

    return pl.run_state(run)((plgpu.ACC.init(total), plgpu.ACC.init(zeros(*shape))))


def add_products(
    totals: list[Array], sides: list[Array], b: Any, stage: Any
) -> list[Array]:
    """Each total + a b with its own a in registers, all under way at once."""
    if stage is not None:
        pairs = zip(totals, sides, strict=True)
        return [add_product(total, a, b, stage) for total, a in pairs]

    def run(refs: Any) -> None:
        for ref, a in zip(refs, sides, strict=True):
            plgpu.wgmma(ref, a, b)

    return pl.run_state(run)([plgpu.ACC.init(total) for total in totals])


def zeros(*shape: int) -> Array:
    """A sum that begins, in the layout of products."""
    return plgpu.layout_cast(jnp.zeros(shape, jnp.float32), plgpu.Layout.WGMMA)


def per_row(value: float, rows: int) -> Array:
    """A number for each row of a product."""
    full = jnp.full((rows,), value, jnp.float32)
    return plgpu.layout_cast(full, plgpu.Layout.WGMMA.reduce(1))


def along(x: Array, shape: tuple[int, int], axis: int) -> Array:
    """A vector repeated over the other axis."""
    return lax.broadcast_in_dim(x, shape, [axis])


def load(ref: Any, layout: Any) -> Array:
    """Into registers, from any memory and in any order."""
    index = {"idx": ()} if NEEDS_INDEX else {}
    return plgpu.load(ref, **index, layout=layout, optimized=False)


def vector(ref: Any, axis: int) -> Array:
    """A vector that lies along an axis of a product."""
    layout = plgpu.Layout.WGMMA.reduce(1 - axis)
    return load(ref, layout)


def call(
    kernel: Any,
    inputs: Any,
    results: list[Any],
    scratch: dict[str, Any],
    blocks: int,
    warpgroups: int,
    interpret: Any,
) -> list[Array]:
    """A kernel over so many blocks of so many warpgroups that compute and one that loads.

    `kernel` gets the inputs as they were given, with refs in place of arrays, the refs of
    the results, and those of the scratch by name; None stays None.
    """
    arrays, tree = jax.tree.flatten(inputs)
    used = {name: x for name, x in scratch.items() if x is not None}

    def body(*refs: Any) -> None:
        ends = len(arrays), len(arrays) + len(results)
        given = jax.tree.unflatten(tree, refs[: ends[0]])
        named = dict(zip(used, refs[ends[1] :], strict=True))
        kernel(*given, refs[ends[0] : ends[1]], dict.fromkeys(scratch) | named)

    made = plgpu.kernel(
        body,
        out_type=results,
        scratch_types=list(used.values()),
        grid=(blocks,),
        grid_names=("block",),
        num_threads=warpgroups + 1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=interpret,
    )(*arrays)
    axes = axes_of(inputs)
    return [varying(x, axes) for x in made]  # which the kernel itself forgets
