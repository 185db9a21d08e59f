"""Every size beside every option: random calls drawn from the whole matrix of them.

A few are drawn here each time, always the same; as many as one likes by

    JAXML_EXAMPLES=500 python -m pytest tests/attention/test_sizes.py
"""

import os

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np

from jaxml.attention.chunked import chunked
from jaxml.attention.tiles import Tiles
from tests.attention.conftest import (
    assert_errors_are_at_most_twice_those_of_plain_attention,
    random_call,
)

LENGTHS = st.sampled_from([1, 7, 64, 65, 127, 128, 129, 192, 513, 1024])
DIMS = st.sampled_from([16, 32, 64, 80, 96, 128, 192, 256])
EXAMPLES = int(os.environ.get("JAXML_EXAMPLES", "5"))


@st.composite
def calls(draw):
    """Arguments of `random_call`, and tiles to cut it into."""
    queries, keys, dim = draw(LENGTHS), draw(LENGTHS), draw(DIMS)
    batch, groups = draw(st.sampled_from([1, 2])), draw(st.sampled_from([1, 4, 8]))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    heads = max(4, groups)
    options = {
        "rng": rng,
        "batch": batch,
        "queries": queries,
        "keys": keys,
        "heads": heads,
        "kv_heads": heads // groups,
        "dim": dim,
        "value_dim": draw(st.one_of(st.just(dim), DIMS)),
        "dtype": draw(st.sampled_from([jnp.float32, jnp.bfloat16, jnp.float16])),
    }
    logits = (batch, heads, queries, keys)

    def some(name, values):
        if draw(st.booleans()):
            options[name] = draw(values)

    shapes = st.tuples(*(st.sampled_from([1, n]) for n in logits))
    lengths = st.lists(st.integers(0, keys), min_size=batch, max_size=batch)
    offsets = st.lists(st.integers(-keys, keys), min_size=batch, max_size=batch)
    some("is_causal", st.just(True))
    corners = st.sampled_from(["top_left", "bottom_right"])
    some("causal_offset", st.one_of(corners, offsets.map(np.array)))
    sizes = st.one_of(st.none(), st.integers(0, keys))
    some("local_window_size", st.tuples(sizes, sizes))
    some("logits_soft_cap", st.sampled_from([0.5, 5.0]))
    some("key_value_seq_lengths", lengths.map(np.array))
    some("mask", shapes)
    some("bias", shapes)
    if "bias" in options and draw(st.booleans()):  # -inf hides, like a mask
        bias = rng.normal(size=options["bias"])
        hidden = rng.random(bias.shape) < 0.2
        options["bias"] = jnp.asarray(np.where(hidden, -np.inf, bias), options["dtype"])
    if draw(st.booleans()):
        ids = (np.sort(rng.integers(0, 4, (batch, n))) for n in (queries, keys))
        options["segment_ids"] = tuple(jnp.asarray(x, jnp.int32) for x in ids)
    if options["dtype"] == jnp.float32:
        options["scale_of_inputs"] = draw(st.sampled_from([1.0, 30.0]))
    if draw(st.integers(0, 3)) == 0:
        options |= {"dropout_rate": 0.2, "dropout_key": jax.random.key(1)}
    cut = draw(st.sampled_from([None, (64, 64), (128, 32), (40, 128)]))
    return options, cut


@hypothesis.settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(hypothesis.HealthCheck),
)
@hypothesis.given(calls())
def test_any_call_is_as_exact_as_plain_attention(drawn):
    options, cut = drawn
    spec, operands, context = random_call(**options)
    tiles = None if cut is None else Tiles(operands.groups, *cut)

    def run(*args):
        return chunked(*args, tiles=tiles)

    assert_errors_are_at_most_twice_those_of_plain_attention(
        run, spec, operands, context
    )
