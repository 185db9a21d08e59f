"""The Hopper kernels: every row of the table lowered, every feature interpreted.

Of `gpu`, `gpu_logits`, `gpu_weights`, `gpu_forward`, `gpu_backward` and the two kernels
that it is made of, `gpu_backward_keys` and `gpu_backward_queries`.

The interpreter runs them on a CPU with simulated shared memory, barriers and copies, and
looks for races between warpgroups. It needs jax 0.12.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxml.attention.flash import gpu_backward, gpu_forward, tables
from jaxml.attention.flash.rule import Kernels, flash
from jaxml.attention.flash.tables import SPLIT, STARTS, Backward, Forward, Pass
from tests.attention.conftest import (
    assert_errors_are_at_most_twice_those_of_plain_attention,
)
from tests.attention.flash.conftest import gradients, types
from tests.kernels.conftest import in_shards, lowered


def kernels(forward, backward, interpret=None):
    return Kernels(
        partial(gpu_forward.forward, config=forward, interpret=interpret),
        partial(gpu_backward.backward, config=backward, interpret=interpret),
    )


def on_gpu(entry):
    """Gradients by the kernels of a row, as a GPU would run them."""
    return partial(gradients, kernels(entry.forward, entry.backward))


def count(f, *args):
    return lowered("cuda", f, *args).count("custom_call @mosaic_gpu")


GIVEN = {
    64: {"segment_ids": ((2, 500), jnp.int32)},
    128: {"bias": ((2, 1, 500, 500), jnp.bfloat16)},
    192: {"bias": ((1, 4, 1, 500), jnp.float32), "mask": ((2, 1, 500, 1), jnp.bool_)},
    256: {"key_value_seq_lengths": ((2,), jnp.int32)},
}
ROWS = {f"{dim}": (dim, entry) for dim, entry in STARTS.items()} | {
    f"{path.stem} {dim} {causal}": (dim, entry)
    for path in tables.TUNED.glob("*.json")
    for (dim, causal), entry in tables.tuned(path.stem).items()
}


@pytest.mark.parametrize("name", ROWS)
def test_every_row_lowers_with_all_it_needs(name):
    """Forward and backward, three kernels, with the most that each may be asked for.

    The compiler checks layouts, dtypes and shared memory here; registers are the driver's
    business. Another jax than the one installed runs these tests so:

        pip install --target FOLDER jax==0.11.2 jaxlib==0.11.2
        PYTHONPATH=FOLDER python -m pytest tests/attention/flash
    """
    dim, entry = ROWS[name]
    given = {n: jax.ShapeDtypeStruct(*x) for n, x in GIVEN[dim].items()}
    options = {"is_causal": dim != 192, "logits_soft_cap": 5.0 if dim == 128 else None}
    dtype = jnp.float16 if dim == 256 else jnp.bfloat16
    sizes = types(500, 500, dim, dim, dtype)
    assert count(partial(on_gpu(entry), **options), *sizes, given) == 3


@pytest.mark.parametrize("name", ROWS)
def test_every_row_lowers_under_vmap_and_shard_map(name):
    """Forward and backward again: a batch of calls is one kernel, and so is a shard."""
    dim, entry = ROWS[name]
    f = partial(on_gpu(entry), given={}, is_causal=True)
    batched = types(256, 256, dim, dim - 24, batch=(3, 2))
    assert count(jax.vmap(f), *batched) == 3
    x = jax.ShapeDtypeStruct((2, 256, 8, dim), jnp.bfloat16)
    assert count(in_shards(f), x, x, x) == 3


def test_too_much_shared_memory_is_an_error_here_and_now():
    entry = STARTS[256]._replace(forward=Forward(64, 128, 3, 2))
    with pytest.raises(ValueError, match="shared memory"):
        count(partial(on_gpu(entry), given={}), *types(512, 512, 256, 256))


@pytest.mark.skipif(
    (0, 11) <= jax.__version_info__ < (0, 12),
    reason="jax 0.11 numbers the kernels of a process: the same only in a fresh one",
)
def test_a_program_is_the_same_text_each_time():
    """So that a compilation cache finds it, in this process or another."""
    sizes = types(200, 200, 64, 64)
    # From functions that are new, as in another process.
    first, second = (
        lowered("cuda", partial(on_gpu(STARTS[64]), given={}), *sizes) for _ in range(2)
    )
    assert first == second


SMALL = Forward(64, 64, 2, 2), Backward(Pass(64, 64, 2, 2), Pass(64, 64, 2, 2))
# Small tiles, so that there are several; none of the lengths is a multiple of one.
CASES = {
    "causal, shared keys": (
        {"queries": 140, "keys": 140, "is_causal": True, "kv_heads": 1},
        *SMALL,
    ),
    "three warpgroups, soft cap, window, segments": (
        {
            "queries": 70,
            "keys": 100,
            "logits_soft_cap": 1.5,
            "local_window_size": (40, 30),
            "segment_ids": (np.arange(70)[None] // 60, np.arange(100)[None] // 50),
            "heads": 1,
        },
        Forward(64, 64, 2, 3),
        Backward(Pass(64, 64, 2, 1), Pass(64, 64, 2, 1)),
    ),
    "split, whole bias, lengths": (
        {
            "queries": 70,
            "keys": 100,
            "dim": 72,
            "value_dim": 20,
            "bias": (1, 2, 70, 100),
            "key_value_seq_lengths": np.array([80]),
        },
        Forward(64, 64, 2, 1),
        Backward(SPLIT, Pass(64, 64, 2, 2, late_stages=1)),
    ),
}


@pytest.fixture
def races():
    """Whether the interpreter has seen a race; its state is fresh before and after."""
    if jax.__version_info__ < (0, 12):
        pytest.skip("the interpreter of GPU kernels needs jax 0.12")
    from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call as state

    state.reset_gpu_interpret_mode_state()
    yield lambda: state.get_races().races_found
    state.reset_gpu_interpret_mode_state()


@pytest.mark.parametrize("name", CASES)
def test_errors_are_at_most_twice_those_of_plain_attention(call, races, name):
    options, *cuts = CASES[name]
    sizes = {"batch": 1, "heads": 2, "kv_heads": 1, "dtype": jnp.bfloat16}
    spec, operands, context = call(**(sizes | options))
    how = plgpu.InterpretGPUParams(detect_races=True)
    run = partial(flash, kernels(*cuts, interpret=how))
    assert_errors_are_at_most_twice_those_of_plain_attention(
        run, spec, operands, context
    )
    assert not races()
