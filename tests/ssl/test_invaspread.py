"""InvaSpread against loops in float64, in the paper's and in the authors' form."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.nn import ConvNet
from jaxml.ssl import Projected, invaspread, invaspread_loss
from tests.numerical import close, gradients
from tests.ssl.trials import (
    TinyBackbone,
    check_all_moved,
    check_devices,
    train,
    two_views,
)

VARIANTS = pytest.mark.parametrize("variant", ["paper", "code"])


def rows(x):
    return [row / np.linalg.norm(row) for row in x]


def paper_numpy(f, f_augmented, t):
    f, g = rows(f), rows(f_augmented)
    total = 0.0
    for i in range(len(f)):
        total -= np.log(
            np.exp(f[i] @ g[i] / t)
            / sum(np.exp(f[k] @ g[i] / t) for k in range(len(f)))
        )
        for j in range(len(f)):
            if j != i:
                others = sum(np.exp(f[k] @ f[j] / t) for k in range(len(f)))
                total -= np.log(1 - np.exp(f[i] @ f[j] / t) / others)
    return total / len(f)


def code_numpy(f, f_augmented, t):
    views, half = rows(f) + rows(f_augmented), len(f)
    total = 0.0
    for i, x in enumerate(views):
        exps = [np.exp(x @ y / t) if j != i else 0.0 for j, y in enumerate(views)]
        p = np.array(exps) / sum(exps)
        partner = (i + half) % (2 * half)
        total -= np.log(p[partner])
        total -= sum(np.log(1 - p[j]) for j in range(2 * half) if j not in (i, partner))
    return total / (2 * half)


@VARIANTS
@pytest.mark.parametrize("n, temperature", [(2, 1.0), (5, 0.3)])
def test_matches_loops(rng, variant, n, temperature):
    f, g = rng.normal(size=(2, n, 3))
    reference = {"paper": paper_numpy, "code": code_numpy}[variant]

    def loss(f, g):
        return invaspread_loss(f, g, temperature, variant=variant)

    value, grads = jax.value_and_grad(loss, (0, 1))(np.float32(f), np.float32(g))
    close(value, reference(f, g, temperature), scale=n / temperature)
    expected = gradients(lambda f, g: reference(f, g, temperature), f, g)
    for got, wanted in zip(grads, expected, strict=True):
        close(got, wanted, rtol=1e-5, atol=1e-5 / temperature)


@VARIANTS
def test_equal_images_stay_finite(variant):
    """P near 1 in the authors' form: two equal images and no other."""
    f = jnp.array([[1.0, 0.0], [1.0, 1e-4], [-1.0, 0.0]])
    value, grad = jax.value_and_grad(invaspread_loss)(f, -f, 0.02, variant=variant)
    chex.assert_tree_all_finite((value, grad))


def test_the_best_is_invariant_and_spread():
    f = jnp.eye(4)
    best = invaspread_loss(f, f)
    assert best < 1e-2
    assert invaspread_loss(f, jnp.roll(f, 1, axis=0)) > 5  # not invariant
    assert invaspread_loss(jnp.ones((4, 4)), f) > best + 1  # not spread


def build(axis_name=None, variant="paper"):
    model = Projected(ConvNet((4, 8), axis_name=axis_name), (4,), axis_name=axis_name)
    return invaspread(model, temperature=0.2, variant=variant)


@VARIANTS
def test_it_learns_and_touches_every_parameter(rng, variant):
    start, state, history = train(build(variant=variant), two_views(rng, 8), 40)
    check_all_moved(start, state)
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]


@VARIANTS
def test_many_devices_take_the_same_steps_as_one(rng, variant):
    check_devices(
        lambda axis_name: build(axis_name, variant), two_views(rng, 16), devices=4
    )


def test_predict_gives_the_features_under_the_head(rng):
    method, batch = invaspread(Projected(TinyBackbone(), (4,))), two_views(rng)
    params, state = method.init(jax.random.key(0), batch)
    h = method.predict(params, state, batch)
    expected = TinyBackbone().apply(
        {"params": params["backbone"]}, batch["image"], train=False
    )
    chex.assert_trees_all_close(h, expected)


X = np.ones((3, 2), np.float32)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: invaspread_loss(X, X[:2]), "one shape|batch"),
        (lambda: invaspread_loss(X[:1], X[:1]), "two images"),
        (lambda: invaspread_loss(X, X, 0.0), "temperature must be positive"),
        (lambda: invaspread_loss(X, X, variant="mine"), "variant"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
