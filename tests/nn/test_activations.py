"""Activations against `jax.nn`, PyTorch's edge points, and gradients on eight devices.

`golden/activations.npz` is PyTorch's word on 15 points from minus infinity to NaN, written by
`python -m tests.oracle.write_golden_activations`. We agree but for what `DIFFERENT` lists; an
entry that no longer differs fails, so that the list stays true.
"""

from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxml.nn.activations import (
    SLOPES,
    PReLU,
    gated,
    gelu,
    maxout,
    relu_squared,
    rrelu,
    sign,
    step,
    swish,
)
from jaxml.parallel import data_mesh

GOLDEN = Path(__file__).parent / "golden/activations.npz"
OURS = {
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "leaky_relu": jax.nn.leaky_relu,
    "prelu": lambda x: PReLU(False).apply({"params": {"slope": jnp.full(1, 0.25)}}, x),
    "rrelu": rrelu,
    "elu": jax.nn.elu,
    "selu": jax.nn.selu,
    "celu": jax.nn.celu,
    "gelu": gelu,
    "gelu_tanh": jax.nn.gelu,
    "silu": jax.nn.silu,
    "swish": swish,
    "mish": jax.nn.mish,
    "softplus": jax.nn.softplus,
    "soft_sign": jax.nn.soft_sign,
    "log_sigmoid": jax.nn.log_sigmoid,
    "hard_tanh": jax.nn.hard_tanh,
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "hard_silu": jax.nn.hard_silu,
    "relu_squared": relu_squared,
    "sign": sign,
    "step": step,
}
ZEROS = [("slope", "-0.0"), ("slope", "0.0")]
NAN = [("slope", "nan")]  # torch lets a gradient through or not; NaN or 0 here
DIFFERENT = {
    **dict.fromkeys(("relu", "relu6", "elu", "selu", "celu"), NAN),
    **dict.fromkeys(("hard_silu", "relu_squared"), NAN),
    **dict.fromkeys(
        ("leaky_relu", "prelu", "rrelu"), ZEROS
    ),  # 1 here, the left one there
    "hard_tanh": [("slope", "-1.0"), ("slope", "1.0")],  # 1 here, 0 there
    "gelu": [("value", "inf")],  # inf here, NaN there
    "sign": [("value", "nan")],  # NaN here, 0 there
    "step": [("value", "nan")],  # likewise
}


def test_edge_points_are_pytorchs_but_for_what_is_listed():
    golden = np.load(GOLDEN)
    assert set(golden) == {"points", *OURS}
    points = golden["points"]

    @jax.jit
    def tables(x):
        pairs = {name: jax.vjp(function, x) for name, function in OURS.items()}
        return {name: (y, *pull(jnp.ones_like(y))) for name, (y, pull) in pairs.items()}

    found = {}
    for name, pair in tables(jnp.asarray(points)).items():
        same = np.isclose(pair, golden[name], rtol=1e-5, atol=1e-5, equal_nan=True)
        apart = [
            (kind, str(point))
            for kind, row in zip(("value", "slope"), same, strict=True)
            for point, ok in zip(points, row, strict=True)
            if not ok
        ]
        if apart:
            found[name] = apart
    assert found == DIFFERENT


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_gelu_is_that_of_jax(dtype):
    x = jnp.asarray(np.linspace(-9, 9, 181), dtype)
    theirs = lambda x: jax.nn.gelu(x, approximate=False)
    tolerance = 1e-6 if dtype == jnp.float32 else 2e-2
    assert gelu(x).dtype == dtype
    for ours, exact in [
        (gelu, theirs),
        (jax.vmap(jax.grad(gelu)), jax.vmap(jax.grad(theirs))),
    ]:
        chex.assert_trees_all_close(
            ours(x).astype(np.float32),
            exact(x.astype(np.float32)),
            rtol=tolerance,
            atol=tolerance,
        )


def test_gelu_keeps_the_left_tail():
    """Phi(-5) is 2.866516e-7, of which 1 + erf leaves two digits in float32."""
    np.testing.assert_allclose(gelu(jnp.float32(-5)), -5 * 2.866515719e-7, rtol=1e-5)


def test_gelu_twice():
    second = jax.grad(jax.grad(gelu))
    x = 0.7  # (2 - x^2) times the density
    expected = (2 - x**2) * np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(second(jnp.float32(x)), expected, rtol=1e-5)


def test_gelu_has_a_gradient_on_eight_devices(rng):
    x = rng.normal(size=(16, 3)).astype(np.float32)
    gradient = jax.grad(lambda x: jnp.sum(gelu(x) ** 2))
    many = jax.shard_map(
        gradient, mesh=data_mesh(), in_specs=P("data"), out_specs=P("data")
    )
    chex.assert_trees_all_close(jax.jit(many)(x), gradient(x), rtol=1e-5, atol=1e-6)


X = np.array([-2.0, -0.5, 0.0, 0.5, 2.0], np.float32)


def slopes(function, x):
    return jax.vmap(jax.grad(function))(jnp.asarray(x))


@pytest.mark.parametrize("slope", SLOPES)
def test_thresholds_and_their_slopes(slope):
    np.testing.assert_array_equal(step(jnp.asarray(X), slope), [0, 0, 0, 1, 1])
    np.testing.assert_array_equal(sign(jnp.asarray(X), slope), [-1, -1, 0, 1, 1])
    y = np.exp(-np.float64(X))
    expected, factor = {
        "none": (0 * X, 1),
        "straight_through": (0 * X + 1, 1),
        "clipped": ([0, 1, 1, 1, 0], 1),
        "sigmoid": (y / (1 + y) ** 2, 2),
        "triangle": ([0, 0.5, 1, 0.5, 0], 2),
        "arctan": (1 / (1 + (np.pi * np.float64(X)) ** 2), 2),
    }[slope]
    expected = np.asarray(expected)
    np.testing.assert_allclose(slopes(lambda x: step(x, slope), X), expected, rtol=1e-5)
    of_sign = slopes(lambda x: sign(x, slope), X)
    np.testing.assert_allclose(of_sign, factor * expected, rtol=1e-5)
    assert step(jnp.array([jnp.inf, -jnp.inf]), slope).tolist() == [1, 0]
    assert np.isnan(step(jnp.float32(jnp.nan), slope))
    assert step(jnp.bfloat16(2)).dtype == jnp.bfloat16


def test_the_slope_of_the_sigmoid_has_a_derivative():
    """Gradients of gradients go through the surrogate: s (1 - s) (1 - 2 s)."""
    second = jax.grad(jax.grad(lambda x: step(x, "sigmoid")))(jnp.float32(0.7))
    s = 1 / (1 + np.exp(-0.7))
    np.testing.assert_allclose(second, s * (1 - s) * (1 - 2 * s), rtol=1e-5)


def test_a_network_of_thresholds_learns_with_a_slope_alone():
    """XOR by two layers of thresholds; with the true derivative nothing moves below."""
    x = jnp.array([[0, 0], [0, 1], [1, 0], [1, 1]], jnp.float32)
    y = jnp.array([0.0, 1.0, 1.0, 0.0])
    keys = jax.random.split(jax.random.key(0), 2)
    start = {"w": jax.random.normal(keys[0], (2, 16)), "b": jnp.zeros(16)}
    start["v"] = jax.random.normal(keys[1], (16,)) / 4

    def loss(p, slope):
        hidden = step(x @ p["w"] + p["b"][None], slope)
        return jnp.mean(jnp.square(hidden @ p["v"] - y))

    for slope, learns in (("sigmoid", True), ("none", False)):
        p = start
        move = jax.jit(
            lambda p, slope=slope: jax.tree.map(
                lambda a, g: a - 0.05 * g, p, jax.grad(loss)(p, slope)
            )
        )
        for _ in range(1500):
            p = move(p)
        assert bool(jnp.any(p["w"] != start["w"])) == learns
        assert (loss(p, slope) < 0.01) >= learns


def test_randomized_leaky_relu():
    x = jnp.full(20_000, -1.0)
    drawn = -rrelu(x, jax.random.key(0))
    assert 1 / 8 <= drawn.min() < 0.13
    assert 0.32 < drawn.max() <= 1 / 3
    np.testing.assert_allclose(drawn.mean(), 11 / 48, atol=2e-3)
    np.testing.assert_allclose(-rrelu(x), 11 / 48, rtol=1e-6)
    np.testing.assert_array_equal(rrelu(-x, jax.random.key(0)), 1)


def test_swish_and_squares():
    x = jnp.asarray(X)
    chex.assert_trees_all_close(swish(x), jax.nn.silu(x), rtol=1e-6)
    chex.assert_trees_all_close(swish(x, 50.0), jax.nn.relu(x), atol=1e-6)
    chex.assert_trees_all_close(swish(x, 0), x / 2)
    np.testing.assert_array_equal(relu_squared(x), [0, 0, 0, 0.25, 4])
    np.testing.assert_array_equal(slopes(relu_squared, X), [0, 0, 0, 1, 4])
    beta = jax.grad(lambda b: swish(jnp.float32(2), b))(1.0)
    s = 1 / (1 + np.exp(-2))
    np.testing.assert_allclose(beta, 4 * s * (1 - s), rtol=1e-5)


def test_pieces_and_gates(rng):
    x = jnp.asarray(rng.normal(size=(3, 8)), jnp.float32)
    np.testing.assert_array_equal(maxout(x, 4), np.asarray(x).reshape(3, 2, 4).max(-1))
    a, b = np.split(np.float64(x), 2, axis=1)
    np.testing.assert_allclose(gated(x), b / (1 + np.exp(-a)), rtol=1e-5)
    np.testing.assert_allclose(gated(x, jax.nn.relu), np.maximum(a, 0) * b, rtol=1e-6)
    np.testing.assert_allclose(gated(x, jax.nn.identity), a * b, rtol=1e-6)
    with pytest.raises(ValueError, match="pieces must divide 8 features, got 3"):
        maxout(x, 3)
    with pytest.raises(ValueError, match="must be even, got 7"):
        gated(x[:, :7])
    with pytest.raises(ValueError, match=r"one of none, .*arctan, got 'ste'"):
        step(x, "ste")


@pytest.mark.parametrize("per_channel", [True, False])
def test_prelu_learns_its_slopes(per_channel, rng):
    x = jnp.asarray(rng.normal(size=(5, 4, 3)), jnp.float32)
    module = PReLU(per_channel)
    params = module.init(jax.random.key(0), x)
    chex.assert_trees_all_close(module.apply(params, x), jax.nn.leaky_relu(x, 0.25))
    grads = jax.grad(lambda p: module.apply(p, x).sum())(params)["params"]["slope"]
    expected = np.minimum(x, 0).sum((0, 1) if per_channel else None)
    np.testing.assert_allclose(grads, np.reshape(expected, -1), rtol=1e-5)
    assert module.apply(params, x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
