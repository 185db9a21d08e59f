"""What kernels are given, against the call that it was made from."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.attention.flash import arrange
from jaxml.attention.flash.schedule import Sizes
from jaxml.kernels.shapes import unpadded

SIZES = Sizes(queries=37, keys=53, block_q=16, block_k=32)


@pytest.mark.parametrize(
    "options, masked",
    [
        ({"keys": 64}, False),
        ({"keys": 64, "bias": (1, 4, 1, 64)}, False),  # it hides by itself
        ({"keys": 53}, True),
        ({"keys": 64, "is_causal": True}, True),
        ({"keys": 64, "local_window_size": (3, None)}, True),
        ({"keys": 64, "query_seq_lengths": np.array([3, 4])}, True),
        ({"keys": 64, "key_value_seq_lengths": np.array([3, 4])}, True),
        (
            {"keys": 64, "segment_ids": (np.ones((2, 37), int), np.ones((2, 64), int))},
            1,
        ),
    ],
)
def test_a_mask_where_anything_may_be_hidden(call, options, masked):
    spec, operands, context = call(**options)
    sizes = SIZES._replace(keys=options["keys"])
    layout = arrange.layout_of(spec, operands, context, sizes)
    assert layout.masked == bool(masked)
    assert layout.groups == 2
    assert layout.has_segments == ("segment_ids" in options)


@pytest.mark.parametrize(
    "bias, mask, kind, shape",
    [
        (None, None, None, None),
        ((2, 4, 37, 53), None, "tile", (2, 4, 48, 64)),
        ((1, 4, 1, 53), None, "keys", (1, 4, 1, 64)),
        ((2, 1, 37, 1), None, "queries", (2, 1, 48, 1)),
        ((2, 1, 1, 1), None, "queries", (2, 1, 48, 1)),
        (None, (1, 1, 37, 1), "queries", (1, 1, 48, 1)),
        ((1, 4, 1, 53), (2, 1, 37, 1), "tile", (2, 4, 48, 64)),
    ],
)
def test_bias_and_mask_become_one_bias(call, bias, mask, kind, shape):
    _, operands, context = call(bias=bias, mask=mask)
    made = arrange.bias_and_mask(operands, context, SIZES)
    assert arrange.kind_of(made) == kind
    if kind is None:
        assert made is None
        return
    assert made.shape == shape
    whole = (2, 4, 37, 53)
    expected = (
        np.zeros(whole) if bias is None else np.broadcast_to(operands.bias, whole)
    )
    if mask is not None:
        expected = np.where(np.broadcast_to(context.mask, whole), expected, -np.inf)
    inside = unpadded(made, (2, 4, 37, 53))
    np.testing.assert_array_equal(np.broadcast_to(inside, whole), np.float32(expected))


def test_limits_of_every_sample(call):
    """No further than there are any, and none where nothing ends inside a tile."""
    lengths = {
        "query_seq_lengths": np.array([40, 3]),
        "key_value_seq_lengths": np.array([5, 60]),
    }
    _, _, context = call(causal_offset=np.array([2, -1]), **lengths)
    made = arrange.limits_table(context, SIZES).tolist()
    assert made == [[2, 37, 5], [-1, 3, 53]]
    _, _, context = call()
    assert arrange.limits_table(context, SIZES).tolist() == [[0, arrange.NEVER, 53]]
    whole = SIZES._replace(keys=64)
    _, _, context = call(keys=64)
    made = arrange.limits_table(context, whole).tolist()
    assert made == [[0, arrange.NEVER, arrange.NEVER]]


def test_statistics_lie_along_queries(rng):
    out, d_out = np.float32(rng.normal(size=(2, 2, 37, 4, 5)))
    d_lse = np.float32(rng.normal(size=(2, 37, 4)))
    wide, delta = arrange.delta_of(jnp.bfloat16(out), (d_out, d_lse), 16)
    assert wide.dtype == jnp.bfloat16
    rounded = (np.float64(jnp.bfloat16(x).astype(jnp.float32)) for x in (out, d_out))
    expected = (np.multiply(*rounded).sum(-1) - d_lse).swapaxes(1, 2)
    chex.assert_shape(delta, (2, 4, 48))
    np.testing.assert_allclose(delta[..., :37], expected, rtol=1e-5, atol=1e-5)
    assert not delta[..., 37:].any()
    lse = jnp.where(d_lse > 0, d_lse, -jnp.inf)
    made = arrange.safe_lse(lse, 16)
    chex.assert_shape(made, (2, 4, 48))
    np.testing.assert_array_equal(
        made[..., :37].swapaxes(1, 2), np.where(d_lse > 0, d_lse, np.float32(1e30))
    )
    # From which every weight is 0, and not inf or nan.
    assert not jnp.exp(-jnp.inf - made[made > 1e29]).any()
    assert not jnp.exp(88.0 - made[made > 1e29]).any()
