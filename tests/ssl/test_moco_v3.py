"""MoCo v3 against NumPy: its contrast, momentum encoder and frozen patch embedding."""

from functools import partial
from types import SimpleNamespace

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jaxml.nn import VisionTransformer
from jaxml.nn.functional import apply_module
from jaxml.parallel import data_mesh
from jaxml.precision import mixed_precision, policy
from jaxml.ssl import MoCoV3, cosine_momentum, moco_v3, moco_v3_loss
from tests.numerical import close, gradients
from tests.ssl.trials import (
    TinyBackbone,
    check_devices,
    train,
    two_views,
)


def moco_v3_numpy(q1, q2, k1, k2, temperature):
    """Algorithm 1, query by query."""
    unit = lambda x: x / np.linalg.norm(x)
    losses = []
    for queries, keys in ((q1, k2), (q2, k1)):
        for i, q in enumerate(queries):
            e = [np.exp(unit(q) @ unit(k) / temperature) for k in keys]
            losses.append(-2 * temperature * np.log(e[i] / sum(e)))
    return np.sum(losses) / len(q1)


@pytest.mark.parametrize("batch, dim, chunk", [(1, 2, 8), (7, 5, 3)])
def test_loss_and_gradient_match_numpy(rng, batch, dim, chunk):
    for temperature in (0.2, 1.0):
        loss = jax.jit(
            jax.value_and_grad(
                partial(moco_v3_loss, temperature=temperature, chunk=chunk),
                (0, 1, 2, 3),
            )
        )
        for scale in (1e-2, 1.0, 1e2):
            arrays = scale * rng.normal(size=(4, batch, dim))
            value, grads = loss(*np.float32(arrays))
            close(value, moco_v3_numpy(*arrays, temperature))
            assert not np.any(grads[2:])
        scaled = [x / scale for x in arrays]
        _, grads = loss(*map(np.float32, scaled))
        keys = (*scaled[2:], temperature)
        wanted = gradients(lambda *q: moco_v3_numpy(*q, *keys), *scaled[:2])
        close(grads[:2], wanted, rtol=1e-5, atol=1e-5)


def test_keys_are_those_of_all_devices(rng):
    arrays = np.float32(rng.normal(size=(4, 16, 6)))
    split = jax.shard_map(
        lambda *x: jax.lax.pmean(moco_v3_loss(*x, axis_name="data"), "data"),
        mesh=data_mesh(),
        in_specs=P("data"),
        out_specs=P(),
    )
    close(jax.jit(split)(*arrays), moco_v3_numpy(*np.float64(arrays), 0.2))


class Patches(nn.Module):
    """Two layers, the first of which has the name of a transformer's."""

    @nn.compact
    def __call__(self, images, *, train):
        x = images.reshape(len(images), -1)
        return nn.Dense(8)(nn.gelu(nn.Dense(8, name="patch_embed")(x)))


def build(axis_name=None, **options):
    model = MoCoV3(Patches(), (8, 8, 4), (6, 4), axis_name=axis_name)
    return moco_v3(model, **{"momentum": 0.9, **options})


@pytest.fixture(scope="module")
def step():
    """Loss and gradients of a network whose teacher differs, made once."""
    method, batch = build(), two_views(np.random.default_rng(0))
    params, state = method.init(jax.random.key(0), batch)
    teacher = state["teacher"]["params"]
    teacher["projector"] = jax.tree.map(lambda p: 1.3 * p + 0.1, teacher["projector"])

    def loss(params, teacher):
        changed = {**state, "teacher": {**state["teacher"], "params": teacher}}
        return method.loss(params, changed, batch, jax.random.key(1))

    run = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (value, (after, metrics)), grads = run(params, teacher)
    return SimpleNamespace(**locals())


def test_loss_crosses_views_and_networks(step):
    model = MoCoV3(Patches(), (8, 8, 4), (6, 4))
    run = jax.jit(partial(apply_module, model, train=True))
    project = jax.jit(partial(apply_module, model, train=True, method="project"))
    stats, teacher = step.state["encoder"], step.state["teacher"]
    q, k, kept = [], [], teacher["stats"]
    for name in ("view1", "view2"):
        (_, _, query), stats = run(step.params, stats, step.batch[name])
        (_, key), kept = project(teacher["params"], kept, step.batch[name])
        q.append(np.float64(query))
        k.append(np.float64(key))
    close(step.value, moco_v3_numpy(*q, *k, 0.2), scale=10)
    chex.assert_trees_all_close(step.after["teacher"]["stats"], kept, rtol=1e-5)
    nearest = [
        np.argmax(a / np.linalg.norm(a, axis=1)[:, None] @ unit_rows(b).T, axis=1)
        for a, b in zip(q, k[::-1], strict=True)
    ]
    found = np.mean(np.stack(nearest) == np.arange(len(q[0])))
    close(step.metrics["accuracy"], found)
    close(step.metrics["loss_at_chance"], 4 * 0.2 * np.log(len(q[0])))


def unit_rows(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_the_queries_learn_all_but_the_patch_embedding(step):
    queries, keys = step.grads
    backbone = {**queries["backbone"]}
    assert not any(np.any(g) for g in jax.tree.leaves(backbone.pop("patch_embed")))
    moved = {**queries, "backbone": backbone}
    assert all(np.any(g) for g in jax.tree.leaves(moved))
    assert not any(np.any(g) for g in jax.tree.leaves(keys["projector"]))


def test_no_optimizer_moves_what_is_frozen(rng):
    """Neither weight decay nor momentum; in the teacher no more than in the network."""
    method = build(momentum=cosine_momentum(0.9, 30))
    optimizer = optax.adamw(1e-2, weight_decay=1.0)
    start, state, history = train(method, two_views(rng, 16), 30, optimizer)
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), start.params, state.params)
    embed = moved["backbone"].pop("patch_embed")
    assert all(jax.tree.leaves(moved))
    assert not any(jax.tree.leaves(embed))
    kept = state.model_state["teacher"]["params"]["backbone"]["patch_embed"]
    chex.assert_trees_all_equal(kept, start.params["backbone"]["patch_embed"])
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]


def test_heads_are_those_of_the_paper(rng):
    """Batch norm behind every layer, the last without scale and bias."""
    default = MoCoV3(TinyBackbone())
    assert default.projector_widths == (4096, 4096, 256)
    assert default.predictor_widths == (4096, 256)
    model = MoCoV3(TinyBackbone(8), (8, 6), (5, 6))
    params, state = moco_v3(model).init(jax.random.key(0), two_views(rng))
    shapes = jax.tree.map(jnp.shape, (params, state["encoder"]["batch_stats"]))
    for name, (a, b, c) in {"projector": (8, 8, 6), "predictor": (6, 5, 6)}.items():
        assert shapes[0][name] == {
            "Dense_0": {"kernel": (a, b)},
            "BatchNorm_0": {"scale": (b,), "bias": (b,)},
            "Dense_1": {"kernel": (b, c)},
        }
        assert shapes[1][name]["BatchNorm_1"] == {"mean": (c,), "var": (c,)}
    plain = model.clone(normalize_prediction=False)
    _, state = moco_v3(plain).init(jax.random.key(0), two_views(rng))
    assert "BatchNorm_1" not in state["encoder"]["batch_stats"]["predictor"]


def test_many_devices_take_the_same_steps_as_one(rng):
    check_devices(build, two_views(rng, 16), 8)


def test_bfloat16(step):
    half = mixed_precision(step.method, policy("mixed_bfloat16"))
    loss = jax.jit(jax.value_and_grad(half.loss, has_aux=True))
    (value, (_, metrics)), grads = loss(
        step.params, step.state, step.batch, jax.random.key(1)
    )
    chex.assert_tree_all_finite((grads, metrics))
    chex.assert_trees_all_close(value, step.value, rtol=0.05)
    assert value.dtype == jnp.float32


def test_what_is_frozen_is_what_a_transformer_calls_it(rng):
    """And its fixed positions are no parameter."""
    model = MoCoV3(VisionTransformer(6, 3, 8, 1, 2, position="sincos"), (4,), (4,))
    params, _ = jax.eval_shape(moco_v3(model).init, jax.random.key(0), two_views(rng))
    assert "patch_embed" in params["backbone"]
    assert "position" not in params["backbone"]


def test_bad_input_is_refused():
    x, y = jnp.ones((4, 6)), jnp.ones((1, 6))
    with pytest.raises((ValueError, TypeError), match=r"shape|dim"):
        moco_v3_loss(x, x, y, y)
    with pytest.raises(ValueError, match="temperature must be positive"):
        moco_v3_loss(x, x, x, x, 0.0)
    with pytest.raises(ValueError, match="temperature must be positive"):
        moco_v3(MoCoV3(TinyBackbone()), temperature=0.0)
