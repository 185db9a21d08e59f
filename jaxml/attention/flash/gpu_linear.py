"""Causal linear attention on Hopper: one pass over the tokens, the state in registers.

    out_i = sum_{j <= i} (q_i . k_j) v_j

A block walks over the chunks of one head. Inside a chunk the sum is a masked product;
what lies before it is the state S = sum k_j v_j^T, float32 in registers, and rounded in
shared memory where the next chunk multiplies with it. Each warpgroup owns 64 columns of v
and of S, so that none waits for another.

The function is linear in q, in k and in v, and each of its gradients is the same function
of others, the last two against the direction of time:

    dq = f(do, v, k),   dk = f(v, do, q) reversed,   dv = f(k, q, do) reversed

So one kernel is all there is, and its derivatives have derivatives.

Where batch x heads would leave processors idle, the sequence is cut into parts whose
states come first, from plain products, and start the walk of each.

The trap is the state's rounding: q S multiplies it in 16 bits, as it does k and v.

Reference: Katharopoulos et al., "Transformers are RNNs", ICML 2020,
https://arxiv.org/abs/2006.16236 (equations 13 to 15 for the gradients); Hua et al.,
"Transformer Quality in Linear Time", ICML 2022, https://arxiv.org/abs/2202.10447 (chunks).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxml.kernels.hopper import (
    WIDTH,
    add_product,
    buffer,
    call,
    load,
    product,
    turned,
    zeros,
)
from jaxml.kernels.rings import in_roles
from jaxml.kernels.shapes import like, padded, unpadded
from jaxml.typing import Array, Float

CHUNK = 64  # tokens
STAGES = 2  # chunks in flight
BLOCKS = 132  # processors of a Hopper GPU
MOST = 256  # features, and columns of v: four warpgroups
REGISTERS = {1: (232, 40), 2: (232, 40), 3: (152, 40), 4: (112, 32)}  # by columns / 64


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def causal_sums(
    q: Float[Array, "B T N F"],
    k: Float[Array, "B T K F"],
    v: Float[Array, "B T K V"],
    reverse: bool = False,
    interpret: Any = None,
) -> Float[Array, "B T N V"]:
    """Sum over j <= i of (q_i . k_j) v_j, or over j >= i, in float32.

    Args:
        q: features, in bfloat16 or float16.
        k: features of as many heads, or fewer, each shared by a group.
        v: of as many heads as k.
        reverse: against the direction of time.
        interpret: what runs it without a GPU.
    """
    groups = q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(x, groups, axis=2) for x in (k, v)) if groups > 1 else (k, v)
    shape = (*q.shape[:3], v.shape[3])
    parts = _parts(*q.shape[:3])
    q, k, v = (padded(padded(x, 1, CHUNK * parts), 3, WIDTH) for x in (q, k, v))
    if reverse:
        q, k, v = (x[:, ::-1] for x in (q, k, v))
    q, k, v = (x.reshape(-1, x.shape[1] // parts, *x.shape[2:]) for x in (q, k, v))
    out = _sums(q, k, v, _states(k, v, parts), interpret)
    out = out.reshape(shape[0], -1, *out.shape[2:])
    return unpadded(out[:, ::-1] if reverse else out, shape)


def _fwd(q: Array, k: Array, v: Array, reverse: bool, interpret: Any) -> Any:
    return causal_sums(q, k, v, reverse, interpret), (q, k, v)


def _bwd(reverse: bool, interpret: Any, kept: Any, d_out: Array) -> Any:
    q, k, v = kept
    groups = q.shape[2] // k.shape[2]
    d_out = d_out.astype(q.dtype)
    wide_k, wide_v = (jnp.repeat(x, groups, axis=2) for x in (k, v))

    def of_group(x: Array, like: Array) -> Array:
        x = x.reshape(*like.shape[:3], groups, -1).sum(axis=3)
        return x.astype(like.dtype)

    dq = causal_sums(d_out, v, k, reverse, interpret)
    dk = causal_sums(wide_v, d_out, q, not reverse, interpret)
    dv = causal_sums(wide_k, q, d_out, not reverse, interpret)
    return dq.astype(q.dtype), of_group(dk, k), of_group(dv, v)


causal_sums.defvjp(_fwd, _bwd)


def _parts(batch: int, length: int, heads: int) -> int:
    """Of a sequence: enough to fill the GPU, each of several chunks."""
    return max(1, min(-(-BLOCKS // (batch * heads)), length // (8 * CHUNK)))


def _states(k: Array, v: Array, parts: int) -> Array | None:
    """What lies before each part, [batch x parts, heads, features, columns]."""
    if parts == 1:
        return None
    own = jnp.einsum("btnf,btnv->bnfv", k, v, preferred_element_type=jnp.float32)
    own = own.reshape(-1, parts, *own.shape[1:])
    return (jnp.cumsum(own, axis=1) - own).reshape(-1, *own.shape[2:])


def _sums(q: Array, k: Array, v: Array, states: Array | None, interpret: Any) -> Array:
    """Of whole chunks."""
    batch, length, heads, features = q.shape
    columns, dtype = v.shape[3], q.dtype
    warpgroups = columns // WIDTH
    ring = (STAGES, CHUNK)
    (out,) = call(
        partial(_kernel, bool(interpret)),
        ((q, k, v), states),
        [like((q, k, v), (batch, length, heads, columns), jnp.float32)],
        {
            "q_ring": buffer(*ring, features, dtype=dtype),
            "k_ring": buffer(*ring, features, dtype=dtype),
            "v_ring": buffer(STAGES, warpgroups, CHUNK, WIDTH, dtype=dtype),
            "state": buffer(warpgroups, features, WIDTH, dtype=dtype),
            "stage": buffer(warpgroups, CHUNK, CHUNK, dtype=dtype)
            if interpret
            else None,
            "chunk_ready": plgpu.Barrier(
                num_arrivals=2 + warpgroups, num_barriers=STAGES
            ),
            "chunk_free": plgpu.Barrier(num_arrivals=warpgroups, num_barriers=STAGES),
        },
        batch * heads,
        warpgroups,
        interpret,
    )
    return out


def _kernel(
    is_interpreted: bool,
    arrays: tuple[Any, Any, Any],
    states: Any,
    results: Any,
    smem: dict[str, Any],
) -> None:
    """A block: one head of one sample."""
    q, k, v = arrays
    length, heads, columns = q.shape[1], q.shape[2], v.shape[3]
    block = lax.axis_index("block")
    b, h = lax.div(block, heads), lax.rem(block, heads)
    warpgroups, count = columns // WIDTH, length // CHUNK

    def compute(number: Any) -> None:
        _walk(is_interpreted, (b, h), count, number, states, results[0], smem)

    def load_chunks() -> None:
        def fetch(n: Any, carry: None) -> None:
            slot, place = lax.rem(n, STAGES), (b, pl.ds(n * CHUNK, CHUNK), h)
            ready = smem["chunk_ready"].at[slot]

            @pl.when(n >= STAGES)
            def wait() -> None:
                plgpu.barrier_wait(smem["chunk_free"].at[slot])

            for name, ref in (("q_ring", q), ("k_ring", k)):
                plgpu.copy_gmem_to_smem(ref.at[place], smem[name].at[slot], ready)
            for w in range(warpgroups):
                mine = v.at[(*place, pl.ds(w * WIDTH, WIDTH))]
                plgpu.copy_gmem_to_smem(mine, smem["v_ring"].at[slot, w], ready)
            return carry

        lax.fori_loop(0, count, fetch, None)

    in_roles(warpgroups, compute, load_chunks, REGISTERS)


def _walk(
    is_interpreted: bool,
    head: tuple[Any, Any],
    count: int,
    warpgroup: Any,
    states: Any,
    out: Any,
    smem: dict[str, Any],
) -> None:
    """A warpgroup: its columns of all chunks."""
    rounded = smem["state"].at[warpgroup]
    stage = smem["stage"].at[warpgroup] if is_interpreted else None
    features, dtype = rounded.shape[0], smem["q_ring"].dtype
    mine = pl.ds(warpgroup * WIDTH, WIDTH)

    def remember(state: Array) -> None:
        rounded[...] = state.astype(dtype)
        plgpu.commit_smem()

    def index(axis: int) -> Array:
        shape, where = (CHUNK, CHUNK), plgpu.Layout.WGMMA
        return plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=where)

    def step(n: Any, state: Array) -> Array:
        slot = lax.rem(n, STAGES)
        plgpu.barrier_wait(smem["chunk_ready"].at[slot])
        q, k = smem["q_ring"].at[slot], smem["k_ring"].at[slot]
        v = smem["v_ring"].at[slot, warpgroup]
        weights = product(q, turned(k), CHUNK, CHUNK)
        weights = jnp.where(index(0) >= index(1), weights, 0.0).astype(dtype)
        sums = product(q, rounded, CHUNK, WIDTH)
        sums = add_product(sums, weights, v, stage)
        state = state + product(turned(k), v, features, WIDTH)
        plgpu.barrier_arrive(smem["chunk_free"].at[slot])
        remember(state)
        b, h = head
        out.at[b, pl.ds(n * CHUNK, CHUNK), h, mine][...] = sums
        return state

    state = zeros(features, WIDTH)
    if states is not None:
        there = states.at[(*head, slice(None), mine)]
        # The sum forgets along which axes of a mesh what is loaded differs.
        state = state + load(there, plgpu.Layout.WGMMA)
    remember(state)
    lax.fori_loop(0, count, step, state)
