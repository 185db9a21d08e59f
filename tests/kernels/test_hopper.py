"""Products from registers and a ring of buffers, lowered, and interpreted in one kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxml.kernels import hopper
from jaxml.kernels.rings import feed, guards, in_roles, part_of, slot_of
from jaxml.kernels.shapes import like
from tests.kernels.conftest import lowered

SIZE = hopper.WIDTH
STEPS, STAGES, WARPGROUPS = 5, 2, 2


def sums_of_products(a, b, interpret=None):
    """Of two warpgroups: sum over steps of a b, and of twice a b, [2, 2, 64, 64]."""

    def kernel(a, b, results, smem):
        def compute(number):
            stage = part_of(smem, number, "stage")["stage"]

            def step(n, sums):
                slot = slot_of(smem, "a", n)
                plgpu.barrier_wait(smem["a_ready"].at[slot])
                side = hopper.load(smem["a_ring"].at[slot, number], plgpu.Layout.WGMMA)
                sides = [side, (2 * side.astype(jnp.float32)).astype(side.dtype)]
                sums = hopper.add_products(sums, sides, smem["b_ring"].at[slot], stage)
                plgpu.barrier_arrive(smem["a_free"].at[slot])
                return sums

            empty = [hopper.zeros(SIZE, SIZE)] * 2
            for i, total in enumerate(lax.fori_loop(0, STEPS, step, empty)):
                results[0].at[number, i][...] = total

        def load():
            feed(smem, STEPS, lambda n: {"a": {"a": a.at[n], "b": b.at[n]}})

        in_roles(WARPGROUPS, compute, load)

    ring = {
        "a_ring": hopper.buffer(STAGES, WARPGROUPS, SIZE, SIZE, dtype=a.dtype),
        "b_ring": hopper.buffer(STAGES, SIZE, SIZE, dtype=a.dtype),
        "stage": hopper.buffer(WARPGROUPS, SIZE, SIZE, dtype=a.dtype)
        if interpret
        else None,
        **guards("a", STAGES, WARPGROUPS, copies=2),
    }
    out = like(a, (WARPGROUPS, 2, SIZE, SIZE), jnp.float32)
    return hopper.call(kernel, (a, b), [out], ring, 1, WARPGROUPS, interpret)[0]


SHAPES = (STEPS, WARPGROUPS, SIZE, SIZE), (STEPS, SIZE, SIZE)


def test_it_lowers_for_a_gpu():
    args = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in SHAPES)
    text = lowered("cuda", sums_of_products, *args)
    assert text.count("custom_call @mosaic_gpu") == 1


@pytest.mark.skipif(
    jax.__version_info__ < (0, 12), reason="its interpreter is not there"
)
def test_each_warpgroup_sums_its_own_products(rng):
    how = plgpu.InterpretGPUParams(detect_races=True)
    a, b = (rng.integers(-4, 5, size=shape).astype(np.float32) for shape in SHAPES)
    half = jnp.asarray(a, jnp.bfloat16), jnp.asarray(b, jnp.bfloat16)
    actual = sums_of_products(*half, how)
    once = np.einsum("snij,sjk->nik", a, b)
    np.testing.assert_array_equal(actual, np.stack((once, 2 * once), axis=1))
