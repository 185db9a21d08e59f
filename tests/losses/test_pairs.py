"""Pair and triplet losses against loops in float64."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.losses import contrastive_margin, triplet_margin
from tests.numerical import close, gradients


def distance(x, y):
    return np.sqrt(sum((a - b) ** 2 for a, b in zip(x, y, strict=True)))


def contrastive_numpy(x, y, similar, margin):
    losses = []
    for a, b, same in zip(x, y, similar, strict=True):
        d = distance(a, b)
        losses.append(d**2 / 2 if same else max(0.0, margin - d) ** 2 / 2)
    return np.mean(losses)


def triplet_numpy(a, p, n, margin, squared, swap):
    losses = []
    for x, y, z in zip(a, p, n, strict=True):
        far = min(distance(x, z), distance(y, z)) if swap else distance(x, z)
        near = distance(x, y)
        if squared:
            near, far = near**2, far**2
        losses.append(max(0.0, near - far + margin))
    return np.mean(losses)


@pytest.mark.parametrize("n, dim, scale, margin", [(1, 1, 1.0, 1.0), (9, 5, 0.3, 2.5)])
def test_contrastive_margin_matches_loops(rng, n, dim, scale, margin):
    x, y = scale * rng.normal(size=(2, n, dim))
    similar = rng.integers(0, 2, n)

    def loss(x, y):
        return contrastive_margin(x, y, similar, margin)

    value, grads = jax.value_and_grad(loss, (0, 1))(np.float32(x), np.float32(y))
    close(value, contrastive_numpy(x, y, similar, margin))
    expected = gradients(lambda x, y: contrastive_numpy(x, y, similar, margin), x, y)
    for got, wanted in zip(grads, expected, strict=True):
        close(got, wanted, rtol=1e-5, atol=1e-5)
    for same in (similar.astype(bool), similar.astype(np.float32)):
        other = contrastive_margin(np.float32(x), np.float32(y), same, margin)
        chex.assert_trees_all_equal(other, value)


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("swap", [False, True])
def test_triplet_margin_matches_loops(rng, squared, swap):
    points = rng.normal(size=(3, 11, 4))

    def loss(*points):
        return triplet_margin(*points, 0.7, squared=squared, swap=swap)

    def expected(*points):
        return triplet_numpy(*points, 0.7, squared, swap)

    value, grads = jax.value_and_grad(loss, (0, 1, 2))(*np.float32(points))
    close(value, expected(*points))
    for got, wanted in zip(grads, gradients(expected, *points), strict=True):
        close(got, wanted, rtol=1e-5, atol=1e-5)


def test_what_is_far_enough_costs_nothing_but_counts(rng):
    x = np.float32([[0.0], [0.0]])
    y = np.float32([[0.5], [9.0]])
    both = contrastive_margin(x, y, np.array([False, False]))
    assert both == 0.125 / 2
    assert triplet_margin(x, x, y, 1.0) == 0.5 / 2


def test_equal_points_have_a_gradient():
    x = jnp.ones((3, 2))
    for same in (0, 1):
        pair = jax.grad(contrastive_margin)(x, x, jnp.full(3, same))
        chex.assert_trees_all_equal(pair, jnp.zeros_like(pair))
    chex.assert_tree_all_finite(jax.grad(triplet_margin, (0, 1, 2))(x, x, x))


def test_half_precision_is_measured_in_float32(rng):
    x, y = jnp.asarray(100 + rng.normal(size=(2, 8, 16)), jnp.bfloat16)
    loss = contrastive_margin(x, y, jnp.ones(8))
    assert loss.dtype == jnp.float32
    wide = [v.astype(jnp.float32) for v in (x, y)]
    chex.assert_trees_all_equal(loss, contrastive_margin(*wide, jnp.ones(8)))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: contrastive_margin(x, x[:1], jnp.ones(4)), "one shape|batch"),
        (lambda x: contrastive_margin(x, x, jnp.ones(3)), "one entry per pair|batch"),
        (lambda x: contrastive_margin(x, x, jnp.ones(4), 0.0), "margin must be pos"),
        (lambda x: triplet_margin(x, x[:, :1], x), "one shape|dim"),
        (lambda x: triplet_margin(x, x, x, -1.0), "margin must be positive"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(jnp.ones((4, 2)))
