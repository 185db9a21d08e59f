"""What `attention` refuses, and what the accepted calls become."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.attention.spec import prepare

Q, K = np.zeros((2, 5, 4, 8), np.float32), np.zeros((2, 7, 2, 8), np.float32)
REFUSED = {
    "one batch": ((Q, K[:1], K[:1]), {}),
    "one length and one number": ((Q, K, K[:, :5]), {}),
    "one dim, got 8 and 4": ((Q, K[..., :4], K), {}),
    "multiple of the key heads, got 4 and 3": (
        (Q, *[np.zeros((2, 7, 3, 8), np.float32)] * 2),
        {},
    ),
    "one dtype": ((Q, K.astype(np.float16), K), {}),
    "must have the axes": ((Q[None], K, K), {}),
    r"bias must broadcast to \(2, 4, 5, 7\)": (
        (Q, K, K),
        {"bias": np.zeros((2, 3, 5, 7), np.float32)},
    ),
    "bias must be floating": ((Q, K, K), {"bias": np.zeros((1, 1, 1, 7), np.int32)}),
    "mask must be bool": ((Q, K, K), {"mask": np.ones((1, 1, 1, 7), np.float32)}),
    "mask must broadcast": ((Q, K, K), {"mask": np.ones((5, 5), bool)}),
    "query_seq_lengths must be 2 integers": (
        (Q, K, K),
        {"query_seq_lengths": np.ones(3, np.int32)},
    ),
    "key_value_seq_lengths must be 2 integers": (
        (Q, K, K),
        {"key_value_seq_lengths": np.ones(2)},
    ),
    r"segment_ids must be integers of shapes \(2, 5\) and \(2, 7\)": (
        (Q, K, K),
        {"segment_ids": np.ones((2, 5), np.int32)},
    ),
    "local_window_size must not be negative": (
        (Q, K, K),
        {"local_window_size": (-1, 2)},
    ),
    "one of top_left, bottom_right or integers": ((Q, K, K), {"causal_offset": "left"}),
    "causal_offset must be one number or 2": (
        (Q, K, K),
        {"causal_offset": np.ones(3, np.int32)},
    ),
    "logits_soft_cap must be positive": ((Q, K, K), {"logits_soft_cap": 0.0}),
    r"dropout_rate must lie in \[0, 1\)": ((Q, K, K), {"dropout_rate": 1.0}),
    "dropout_key must be given": ((Q, K, K), {"dropout_rate": 0.5}),
    "dropout_key must be one key or 2": (
        (Q, K, K),
        {"dropout_rate": 0.5, "dropout_key": jax.random.split(jax.random.key(0), 3)},
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_input_is_refused(message):
    args, options = REFUSED[message]
    with pytest.raises(ValueError, match=message):
        prepare(*args, **options)


def test_defaults_and_words_become_numbers():
    spec, operands, context = prepare(
        Q, K, K, is_causal=True, causal_offset="bottom_right"
    )
    assert (spec.scale, spec.left, spec.right) == (8**-0.5, None, 0)
    assert (operands.groups, context.offset.tolist()) == (2, [2])
    spec, _, _ = prepare(Q, K, K, local_window_size=3, scale=2.0)
    assert (spec.scale, spec.left, spec.right) == (2.0, 3, 3)
    spec, _, _ = prepare(Q, K, K, local_window_size=(1, 4), is_causal=True)
    assert (spec.left, spec.right) == (1, 0)
    hash(spec)


def test_seeds_belong_to_samples():
    """A key per sample gives a sample the same noise in any batch."""
    keys = jax.random.split(jax.random.key(1), 2)
    seeds = lambda q, k, key: (
        prepare(q, k, k, dropout_rate=0.5, dropout_key=key)[2].dropout_seeds
    )
    both, second = seeds(Q, K, keys), seeds(Q[1:], K[1:], keys[1:])
    chex.assert_trees_all_equal(both[1:], second)
    assert (both[0] != both[1]).all()
    one = seeds(Q, K, jax.random.key(1))
    chex.assert_trees_all_equal(one, seeds(Q, K, jax.random.PRNGKey(1)))
    assert (one[0] != one[1]).all()
    assert one.dtype == jnp.uint32
