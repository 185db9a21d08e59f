"""Linear attention against its quadratic form, and as a recurrence."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxml.attention import LinearState, linear_attention, linear_attention_step
from jaxml.attention.feature_maps import FEATURE_MAPS
from jaxml.parallel import data_mesh


def linear_numpy(q, k, v, phi, sees, *, normalize=True):
    """The definition with its matrix of weights, in float64; `sees` is [B, T, S]."""
    groups = q.shape[2] // k.shape[2]
    q, k = (np.float64(phi(jnp.asarray(x))) for x in (q, k))
    k, v = (np.repeat(np.float64(x), groups, axis=2) for x in (k, v))
    weights = np.einsum("btnf,bsnf->bnts", q, k) * sees[:, None]
    total = weights.sum(-1, keepdims=True)
    if normalize:
        weights = np.divide(
            weights, total, out=np.zeros_like(weights), where=total != 0
        )
    return np.einsum("bnts,bsnv->btnv", weights, v)


@pytest.fixture
def qkv(rng):
    def make(queries=21, keys=21, heads=4, kv_heads=2, dim=4, value_dim=3):
        shapes = (
            (queries, heads, dim),
            (keys, kv_heads, dim),
            (keys, kv_heads, value_dim),
        )
        return [np.float32(rng.normal(size=(2, *shape))) for shape in shapes]

    return make


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("name", FEATURE_MAPS)
def test_every_feature_map_is_its_quadratic_form(qkv, name, is_causal):
    q, k, v = qkv()
    actual = linear_attention(
        q, k, v, feature_map=name, is_causal=is_causal, chunk_size=8
    )
    sees = np.tri(21) if is_causal else np.ones((21, 21))
    expected = linear_numpy(q, k, v, FEATURE_MAPS[name], sees[None])
    chex.assert_trees_all_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_weights_are_what_the_names_say(rng):
    """1 + cos, and the exponential to second order."""
    q, k = np.float32(rng.normal(size=(2, 5)))
    weight = lambda name: FEATURE_MAPS[name](q) @ FEATURE_MAPS[name](k)
    cos = q @ k / np.linalg.norm(q) / np.linalg.norm(k)
    chex.assert_trees_all_close(weight("cosine"), 1 + cos, rtol=1e-5)
    chex.assert_trees_all_close(
        weight("taylor"), 1 + q @ k + (q @ k) ** 2 / 2, rtol=1e-4
    )
    chex.assert_trees_all_close(
        weight("elu"),
        sum(
            (max(x, 0) + min(np.exp(x), 1)) * (max(y, 0) + min(np.exp(y), 1))
            for x, y in zip(q, k, strict=True)
        ),
        rtol=1e-5,
    )


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9])
@pytest.mark.parametrize("normalize", [True, False])
def test_any_length_of_the_chunk(qkv, length, normalize):
    q, k, v = qkv(length, length)
    options = {"is_causal": True, "normalize": normalize}
    actual = linear_attention(q, k, v, chunk_size=8, **options)
    sees = np.tri(length)[None]
    expected = linear_numpy(q, k, v, FEATURE_MAPS["elu"], sees, normalize=normalize)
    chex.assert_trees_all_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("is_causal", [False, True])
def test_segments_are_runs(qkv, is_causal):
    """Each run alone gives the same; a number that comes again is another run."""
    q, k, v = qkv()
    ids = np.array([[3] * 5 + [1] * 9 + [3] * 7, [0] * 8 + [2] * 8 + [7] * 5])
    run = np.cumsum(np.diff(ids, axis=1, prepend=ids[:, :1]) != 0, axis=1)
    sees = run[:, :, None] == run[:, None, :]
    sees = sees & (np.tri(21, dtype=bool) if is_causal else True)
    actual = linear_attention(
        q, k, v, is_causal=is_causal, segment_ids=jnp.asarray(ids), chunk_size=4
    )
    expected = linear_numpy(q, k, v, FEATURE_MAPS["elu"], sees)
    chex.assert_trees_all_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_lengths_hide_keys_and_their_gradient(qkv):
    q, k, v = qkv(5)
    lengths = jnp.array([0, 13])
    sees = np.arange(21)[None, None] < np.asarray(lengths)[:, None, None]
    f = lambda k: linear_attention(q, k, v, key_value_seq_lengths=lengths)
    expected = linear_numpy(q, k, v, FEATURE_MAPS["elu"], sees)
    chex.assert_trees_all_close(f(k), expected, rtol=1e-4, atol=1e-5)
    grad = jax.grad(lambda k: jnp.sum(f(k) ** 2))(k)
    chex.assert_tree_all_finite(grad)
    assert not grad[0].any()
    assert not grad[1, 13:].any()
    assert grad[1, :13].any()


@pytest.mark.parametrize("with_segments", [False, True])
def test_a_state_carries_on(qkv, with_segments):
    """A sequence in two pieces, cut inside a chunk and inside a run, is the whole."""
    q, k, v = qkv()
    ids = jnp.asarray(np.repeat([[0, 1, 2], [4, 4, 5]], 7, axis=1))

    def run(piece, state=None):
        segments = ids[:, piece] if with_segments else None
        return linear_attention(
            q[:, piece],
            k[:, piece],
            v[:, piece],
            is_causal=True,
            chunk_size=4,
            segment_ids=segments,
            initial_state=state,
            return_state=True,
        )

    whole, last = run(slice(0, 21))
    first, state = run(slice(0, 11))
    second, end = run(slice(11, 21), state)
    pieces = jnp.concatenate([first, second], axis=1)
    chex.assert_trees_all_close((pieces, end), (whole, last), rtol=1e-4, atol=1e-5)


def test_a_state_is_seen_by_all_where_nothing_is_causal(qkv):
    q, k, v = qkv()
    state = linear_attention(q[:, :9], k[:, :9], v[:, :9], return_state=True)[1]
    rest = linear_attention(
        q, k[:, 9:], v[:, 9:], initial_state=state, return_state=True
    )
    whole = linear_attention(q, k, v, return_state=True)
    chex.assert_trees_all_close(rest, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("normalize", [True, False])
def test_decoding_is_the_parallel_form(qkv, normalize):
    q, k, v = qkv(12, 12)
    options = {"feature_map": "relu", "normalize": normalize}
    whole, end = linear_attention(
        q, k, v, is_causal=True, return_state=True, chunk_size=5, **options
    )
    _, state = linear_attention(
        q[:, :4], k[:, :4], v[:, :4], is_causal=True, return_state=True, **options
    )
    step = jax.jit(
        lambda q, k, v, state: linear_attention_step(q, k, v, state, **options)
    )
    for t in range(4, 12):
        out, state = step(q[:, t], k[:, t], v[:, t], state)
        chex.assert_trees_all_close(out, whole[:, t], rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(state, end, rtol=1e-4, atol=1e-5)


def test_causality(qkv):
    """No query depends on a later key, by autodiff."""
    q, k, v = qkv(9, 9, heads=2)

    def sensitivity(x):
        return jnp.abs(
            jax.jacobian(
                lambda x: linear_attention(q, x, v, is_causal=True, chunk_size=4)
            )(x)
        )

    by_time = sensitivity(k).sum(axis=(0, 2, 3, 4, 6, 7))
    assert not np.triu(by_time, 1).any()
    assert np.diag(by_time)[1:].all()  # the first weight is one, whatever its key


@pytest.mark.parametrize("is_causal", [False, True])
def test_derivatives_of_any_order(qkv, is_causal):
    q, k, v = qkv(7, 7, heads=2, dim=3)
    sees = jnp.asarray(np.tri(7) if is_causal else np.ones((7, 7)), jnp.float32)

    def plain(q, k, v):
        q, k = jax.nn.elu(q) + 1, jax.nn.elu(k) + 1
        weights = jnp.einsum("btnf,bsnf->bnts", q, k) * sees[None, None]
        weights = weights / jnp.sum(weights, -1, keepdims=True)
        return jnp.sum(jnp.sin(jnp.einsum("bnts,bsnv->btnv", weights, v)))

    def chunks(q, k, v):
        return jnp.sum(
            jnp.sin(linear_attention(q, k, v, is_causal=is_causal, chunk_size=4))
        )

    along = tuple(np.float32(x) for x in qkv(7, 7, heads=2, dim=3))
    for order in (1, 2):
        f, g = chunks, plain
        for _ in range(order - 1):
            f, g = (lambda *x, h=h: jax.jvp(h, x, along)[1] for h in (f, g))
        actual, expected = (jax.jit(jax.grad(h, (0, 1, 2)))(q, k, v) for h in (f, g))
        chex.assert_trees_all_close(actual, expected, rtol=1e-3, atol=1e-4)


def test_memory_and_work_are_linear():
    def cost(length):
        x = jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32)
        f = lambda *x: jnp.sum(linear_attention(*x, is_causal=True) ** 2)
        made = jax.jit(jax.grad(f, (0, 1, 2))).lower(x, x, x).compile()
        return made.memory_analysis().temp_size_in_bytes, 7 * length * 2 * 16 * 4

    temporary, whole = cost(2**16)
    assert temporary <= 2 * whole


def test_half_precision_sums_in_float32():
    ones = jnp.ones((1, 4096, 1, 1), jnp.bfloat16)
    out, state = linear_attention(ones, ones, ones, is_causal=True, return_state=True)
    assert out.dtype == jnp.bfloat16
    assert state.products.dtype == state.normalizer.dtype == jnp.float32
    chex.assert_trees_all_close(state.normalizer, jnp.full((1, 1, 1), 8192.0))
    chex.assert_trees_all_equal(out, ones)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("has_segments", [False, True])
def test_samples_on_several_devices(rng, is_causal, has_segments):
    q, k, v = np.float32(rng.normal(size=(3, 8, 10, 2, 4)))
    ids = jnp.asarray(np.sort(rng.integers(0, 3, (8, 10)), axis=1))

    def f(q, k, v, ids):
        ids = ids if has_segments else None
        options = {"is_causal": is_causal, "segment_ids": ids, "chunk_size": 4}
        return linear_attention(q, k, v, **options)

    split = jax.shard_map(f, mesh=data_mesh(), in_specs=P("data"), out_specs=P("data"))
    chex.assert_trees_all_close(
        split(q, k, v, ids), f(q, k, v, ids), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("is_causal", [False, True])
def test_no_token_leaves_the_state_as_it_is(is_causal):
    x = jnp.ones((2, 0, 1, 3))
    before = LinearState(jnp.ones((2, 1, 3, 3)), jnp.ones((2, 1, 3)), jnp.array([4, 5]))
    out, after = linear_attention(
        x,
        x,
        x,
        is_causal=is_causal,
        segment_ids=jnp.zeros((2, 0), jnp.int32),
        initial_state=before,
        return_state=True,
    )
    assert out.shape == x.shape
    chex.assert_trees_all_equal(after, before)


def test_weights_of_zero_give_zero():
    x = -jnp.ones((1, 3, 1, 2))
    f = lambda x: jnp.sum(linear_attention(x, x, x, feature_map="relu"))
    value, grad = jax.value_and_grad(f)(x)
    assert value == 0
    chex.assert_tree_all_finite(grad)


def test_bad_input_is_refused():
    x = jnp.ones((2, 5, 4, 3))
    with pytest.raises(ValueError, match=r"one of elu, relu, .* got 'gelu'"):
        linear_attention(x, x, x, feature_map="gelu")
    with pytest.raises(ValueError, match="one length if causal"):
        linear_attention(x[:, :3], x, x, is_causal=True)
    with pytest.raises(ValueError, match="multiple of the key's"):
        linear_attention(x, x[:, :, :3], x[:, :, :3])
    with pytest.raises(ValueError, match="chunk_size must be positive"):
        linear_attention(x, x, x, chunk_size=0)
    state = LinearState(jnp.zeros((2, 4, 3, 3)), jnp.zeros((2, 4, 3)))
    with pytest.raises(ValueError, match="must know its segment"):
        linear_attention(
            x,
            x,
            x,
            is_causal=True,
            initial_state=state,
            segment_ids=jnp.zeros((2, 5), jnp.int32),
        )
