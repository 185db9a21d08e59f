"""MoCo against NumPy: its loss, queue and teacher, and the leak of batch norm closed."""

from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxml.compose import accumulated, newest_first
from jaxml.nn import BatchNorm, ConvNet, Mlp
from jaxml.nn.functional import apply_module
from jaxml.ssl import Projected, moco
from jaxml.train import gradient_step, init_state
from tests.numerical import close
from tests.ssl.trials import (
    TinyBackbone,
    check_all_moved,
    check_devices,
    train,
    two_views,
)


def moco_numpy(q, k, queue, temperature):
    """Equation 1, query by query."""
    losses = []
    for query, key in zip(q, k, strict=True):
        others = sum(np.exp(query @ old / temperature) for old in queue)
        own = np.exp(query @ key / temperature)
        losses.append(-np.log(own / (own + others)))
    return np.mean(losses)


def test_loss_is_that_of_the_paper(rng):
    model = Projected(TinyBackbone(), widths=(8, 4))
    method = moco(model, queue_size=11, temperature=0.3)
    batch = two_views(rng)
    params, state = method.init(jax.random.key(0), batch)
    state["teacher"]["params"] = jax.tree.map(lambda p: 1.3 * p, params)
    (_, q), _ = apply_module(model, params, {}, batch["view1"], train=True)
    (_, k), _ = apply_module(
        model, state["teacher"]["params"], {}, batch["view2"], train=True
    )
    actual, (after, metrics) = method.loss(params, state, batch, jax.random.key(1))
    rows = [np.float64(a) for a in (q, k, state["queue"])]
    close(actual, moco_numpy(*rows, 0.3), scale=10)
    nearest = np.max(rows[0] @ rows[2].T, axis=1)
    found = np.sum(rows[0] * rows[1], axis=1) > nearest
    chex.assert_trees_all_close(metrics["accuracy"], np.float32(found.mean()))
    # The keys are enqueued after the loss, newest first.
    chex.assert_trees_all_close(after["queue"][:8], k, rtol=1e-6)
    chex.assert_trees_all_equal(after["queue"][8:], state["queue"][:3])


def test_only_the_query_encoder_learns(rng):
    method, batch = moco(Projected(TinyBackbone(), (4,)), queue_size=5), two_views(rng)
    params, state = method.init(jax.random.key(0), batch)

    def loss(params, teacher, queue):
        changed = {**state, "queue": queue, "teacher": {"params": teacher, "stats": {}}}
        return method.loss(params, changed, batch, jax.random.key(1))[0]

    grads = jax.grad(loss, (0, 1))(params, state["teacher"]["params"], state["queue"])
    assert all(jnp.any(g != 0) for g in jax.tree.leaves(grads[0]))
    assert not any(jnp.any(g != 0) for g in jax.tree.leaves(grads[1]))


@pytest.mark.parametrize("widths, layers", [((4,), 1), ((8, 4), 2)])
def test_heads_are_those_of_both_versions(rng, widths, layers):
    """Linear in version 1, an MLP in version 2; with bias and without batch norm."""
    params, _ = moco(Projected(TinyBackbone(8), widths)).init(
        jax.random.key(0), two_views(rng)
    )
    shapes = jax.tree.map(jnp.shape, params["head"])
    inputs = (8, *widths)
    assert shapes == {
        f"Dense_{i}": {"kernel": inputs[i : i + 2], "bias": inputs[i + 1 : i + 2]}
        for i in range(layers)
    }


def test_teacher_moves_after_the_update_and_keeps_its_own_statistics(rng):
    model = Projected(ConvNet((4,)), (4,))
    method, batch = moco(model, queue_size=5, momentum=0.9), two_views(rng)
    start, state, _ = train(method, batch, 1, optax.sgd(0.1))
    expected = jax.tree.map(
        lambda t, p: 0.9 * t + 0.1 * p,
        start.model_state["teacher"]["params"],
        state.params,
    )
    teacher = state.model_state["teacher"]
    chex.assert_trees_all_close(teacher["params"], expected, rtol=1e-6)
    means = [
        s["batch_stats"]["backbone"]["BatchNorm_0"]["mean"]
        for s in (state.model_state["encoder"], teacher["stats"])
    ]
    assert jnp.any(means[0] != means[1])  # of view1 and of view2


def test_accumulation_enqueues_and_moves_once(rng):
    """Two micro-batches: one step's keys, in the order of the batch; one EMA."""
    batch = two_views(rng)
    method = moco(Projected(TinyBackbone(), (4,)), queue_size=11, momentum=0.9)
    parts = accumulated(method, 2, merge={"queue": newest_first})
    _, whole, _ = train(method, batch, 2, optax.sgd(0.1))
    _, halves, _ = train(parts, batch, 2, optax.sgd(0.1))
    chex.assert_trees_all_close(halves, whole, rtol=1e-4, atol=1e-6)


def test_predict_gives_the_features_under_the_head(rng):
    method, batch = moco(Projected(TinyBackbone(), (4,)), queue_size=5), two_views(rng)
    params, state = method.init(jax.random.key(0), batch)
    h = method.predict(params, state, {"image": batch["image"][:3]})
    expected = TinyBackbone().apply(
        {"params": params["backbone"]}, batch["image"][:3], train=False
    )
    chex.assert_trees_all_close(h, expected)


def test_it_learns_and_touches_every_parameter(rng):
    method = moco(Projected(ConvNet((4, 8)), (8, 4)), queue_size=24, momentum=0.9)
    start, state, history = train(method, two_views(rng, 16), 60)
    check_all_moved(start, state)
    assert history[-1]["loss"] < 0.8 * max(row["loss"] for row in history[:3])


def leaky(groups: int, shuffle: bool, axis_name=None, queue_size=64):
    """An encoder with batch norm in groups."""
    norm = partial(BatchNorm, num_groups=groups)
    backbone = Flat(norm=norm, axis_name=axis_name)
    model = Projected(backbone, (8,), axis_name=axis_name)
    return moco(model, queue_size=queue_size, momentum=0.9, shuffle=shuffle)


class Flat(Mlp):
    """A perceptron with batch norm on vectors."""

    widths: tuple[int, ...] = (32, 16)

    def __call__(self, images, *, train):
        return super().__call__(images.reshape(len(images), -1), train=train)


def influences(groups: int, shuffle: bool) -> tuple[np.ndarray, np.ndarray]:
    """Which images each query, and each key, depends on: two bool [8, 8]."""
    method = leaky(groups, shuffle, queue_size=8)
    batch = two_views(np.random.default_rng(0), 8, (2, 2, 1))
    params, state = method.init(jax.random.key(0), batch)

    def keys(view2):
        after = method.loss(params, state, {**batch, "view2": view2}, jax.random.key(2))
        return after[1][0]["queue"]

    def queries(view1):
        backbone = Flat(norm=partial(BatchNorm, num_groups=groups))
        return backbone.apply(
            {"params": params["backbone"], **backbone_stats(state)},
            view1,
            train=True,
            mutable=["batch_stats"],
        )[0]

    def pattern(f, view):
        jacobian = jax.jacobian(f)(jnp.asarray(view))
        return np.asarray(jnp.any(jacobian != 0, axis=(1, *range(3, jacobian.ndim))))

    # The keys' gradient is stopped: look at how they change instead.
    def changed(view):
        base = keys(view)
        rows = [keys(view.at[j].add(0.1)) for j in range(len(view))]
        return np.stack([np.any(row != base, axis=1) for row in rows], axis=1)

    return pattern(queries, batch["view1"]), changed(jnp.asarray(batch["view2"]))


def backbone_stats(state):
    stats = state["encoder"]["batch_stats"]["backbone"]
    return {"batch_stats": stats}


def test_shuffling_gives_query_and_key_other_companions():
    """Without it the groups of a query and of its key are the same images."""
    queries, keys = influences(groups=4, shuffle=False)
    assert (queries == np.kron(np.eye(4), np.ones((2, 2)))).all()
    assert (keys == queries).all()
    queries, keys = influences(groups=4, shuffle=True)
    assert (keys.sum(axis=1) == 2).all()
    assert np.diag(keys).all()
    shared = (queries & keys).sum(axis=1) - 1  # besides the image itself
    assert shared.mean() < 0.5


class Residue(nn.Module):
    """What batch norm takes away: a network with residual branches can learn this."""

    @nn.compact
    def __call__(self, images, *, train):
        x = images.reshape(len(images), -1)
        return x - BatchNorm(num_groups=8)(x, train=train)


def test_the_leak_is_real_and_closed():
    """There is nothing to learn: view2 is of another image, from the same group.

    A network that finds its key all the same has read the statistics of batch norm.
    """

    def batches(step):
        view1 = np.random.default_rng(step).normal(size=(64, 1, 16, 1))
        groups = view1.reshape(8, 8, 1, 16, 1)
        view2 = np.roll(groups, 1, axis=1).reshape(view1.shape)
        return {"view1": np.float32(view1), "view2": np.float32(view2)}

    def last_loss(shuffle):
        method = moco(
            Projected(Residue(), (16,)), queue_size=64, momentum=0.9, shuffle=shuffle
        )
        _, _, history = train(method, batches, 80)
        return np.mean([row["loss"] for row in history[-20:]])

    chance = np.log(65)
    assert last_loss(shuffle=False) < 0.85 * chance
    assert last_loss(shuffle=True) > 0.97 * chance


@pytest.mark.parametrize("devices, shuffle", [(2, False), (8, True)])
def test_many_devices_take_the_same_steps_as_one(rng, devices, shuffle):
    """With batch norm in 4 groups, of 4 devices' width or less; a queue of odd size."""
    check_devices(
        lambda axis_name: leaky(4, shuffle, axis_name, queue_size=21),
        two_views(rng, 16),
        devices,
    )


def test_state_survives_donation(rng):
    method, batch = moco(Projected(TinyBackbone(), (4,)), queue_size=5), two_views(rng)
    state = init_state(method, optax.sgd(0.1), jax.random.key(0), batch)
    step = gradient_step(method, optax.sgd(0.1), jax.random.key(1))
    step = jax.jit(step, donate_argnums=0)
    for _ in range(2):
        state, _ = step(state, batch)
    chex.assert_tree_all_finite(state)


def test_bad_input_is_refused(rng):
    with pytest.raises(ValueError, match="temperature must be positive"):
        moco(Projected(TinyBackbone()), temperature=0.0)
    method = moco(Projected(TinyBackbone(), (4,)), queue_size=0)
    with pytest.raises(ValueError, match="size and dim must be positive"):
        method.init(jax.random.key(0), two_views(rng))
