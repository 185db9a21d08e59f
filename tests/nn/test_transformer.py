"""The transformer block: where the norms stand, and what reaches attention."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.nn import Feedforward, TransformerBlock


def block(**options):
    return TransformerBlock(2, 16, **options)


def norm_numpy(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


@pytest.fixture
def x(rng):
    return np.float32(3 + rng.normal(size=(2, 5, 8)))


def test_pre_norm_leaves_the_stream_and_post_norm_ends_with_a_norm(x):
    values = lambda q, k, v: 0 * v  # a block without branches
    variables = block().init(jax.random.key(0), x, train=False)
    zero = jax.tree.map(jnp.zeros_like, variables["params"]["mlp"])
    params = {"params": {**variables["params"], "mlp": zero}}
    run = lambda norm: block(norm=norm, attention=values).apply(params, x, train=False)
    chex.assert_trees_all_close(run("pre"), x, rtol=1e-6)
    chex.assert_trees_all_close(
        run("post"), norm_numpy(norm_numpy(x)), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_branches_add_up(x, norm):
    """The block from its own parts, applied one by one."""
    seen = []

    def spy(q, k, v):
        seen.append(v)
        return v

    module = block(norm=norm, attention=spy)
    variables = module.init(jax.random.key(0), x, train=False)
    params = variables["params"]
    seen.clear()
    actual = module.apply(variables, x, train=False)
    dense = lambda p, y: np.asarray(y) @ p["kernel"] + p["bias"][None, None]
    mlp = lambda y: Feedforward(16).apply({"params": params["mlp"]}, y, train=False)
    normed = norm_numpy(x) if norm == "pre" else x
    v = np.split(dense(params["attention"]["qkv"], normed), 3, axis=-1)[2]
    chex.assert_trees_all_close(seen[0].reshape(x.shape), v, rtol=1e-3, atol=1e-3)
    y = x + dense(params["attention"]["out"], v)
    if norm == "pre":
        expected = y + mlp(norm_numpy(np.asarray(y)))
    else:
        y = norm_numpy(np.asarray(y))
        expected = norm_numpy(np.asarray(y + mlp(y)))
    chex.assert_trees_all_close(actual, expected, rtol=1e-3, atol=1e-3)


def test_options_reach_attention_and_gradients_every_parameter(x, rng):
    module = block(kv_heads=1, dropout=0.5, drop_path=0.2)
    variables = module.init(jax.random.key(0), x, train=False)
    later = x.copy()
    later[:, 3:] += np.float32(rng.normal(size=later[:, 3:].shape))
    run = lambda x: module.apply(variables, x, train=False, is_causal=True)
    chex.assert_trees_all_close(run(x)[:, :3], run(later)[:, :3], rtol=1e-5, atol=1e-5)
    key = {"dropout": jax.random.key(1)}
    loss = lambda v: jnp.sum(module.apply(v, x, train=True, rngs=key) ** 2)
    grads = jax.jit(jax.grad(loss))(variables)
    chex.assert_tree_all_finite(grads)
    assert all(jax.tree.leaves(jax.tree.map(lambda g: bool(g.any()), grads)))


def test_the_norm_has_two_places(x):
    with pytest.raises((ValueError, TypeError), match="norm"):
        block(norm="sandwich").init(jax.random.key(0), x, train=False)
