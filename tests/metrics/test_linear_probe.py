"""The linear probe against Newton's method in float64, and its protocol."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from jaxml.metrics import (
    few_labels,
    fit_linear_probe,
    linear_probe,
    linear_probe_logits,
)
from jaxml.metrics.linear_probe import L2_GRID, _held_out


def objective_numpy(theta, x, labels, classes, l2):
    """Value, gradient and Hessian of the docstring's formula, sample by sample."""
    n, dim = x.shape
    w, b = theta[: dim * classes].reshape(dim, classes), theta[dim * classes :]
    value = l2 / 2 * np.sum(w * w)
    gradient = np.concatenate([l2 * w.ravel(), np.zeros(classes)])
    hessian = np.diag(np.concatenate([np.full(w.size, l2), np.zeros(classes)]))
    for row, label in zip(x, labels, strict=True):
        logits = row @ w + b
        p = np.exp(logits - logits.max())
        p /= p.sum()
        inputs = np.append(row, 1.0)
        value -= np.log(p[label]) / n
        gradient += np.kron(inputs, p - np.eye(classes)[label]) / n
        curvature = np.diag(p) - np.outer(p, p)
        hessian += np.kron(np.outer(inputs, inputs), curvature) / n
    return value, gradient, hessian


def solve_numpy(x, labels, classes, l2):
    """Newton's method with halved steps; the bias, free up to a shift, has mean 0."""
    theta = np.zeros((x.shape[1] + 1) * classes)
    for _ in range(50):
        value, gradient, hessian = objective_numpy(theta, x, labels, classes, l2)
        step = np.linalg.pinv(hessian, hermitian=True) @ gradient
        scale = 1.0
        trial = lambda: objective_numpy(theta - scale * step, x, labels, classes, l2)
        while trial()[0] > value and scale > 1e-9:
            scale /= 2
        theta = theta - scale * step
    cut = x.shape[1] * classes
    return theta[:cut].reshape(-1, classes), theta[cut:] - theta[cut:].mean(), value


def data(rng, n=40, dim=4, classes=3, noise=1.0):
    centres = np.random.default_rng(1).normal(size=(classes, dim))
    labels = rng.permutation(np.arange(n) % classes)
    x = centres[labels] + noise * rng.normal(size=(n, dim))
    return (x * 10.0 ** np.arange(dim) / 100 + 5).astype(np.float32), labels


def standardized_numpy(x):
    x = x.astype(np.float64)
    return (x - x.mean(axis=0)) / x.std(axis=0)


@pytest.mark.parametrize("l2", [1e-3, 1e-1, 10.0])
@pytest.mark.parametrize("standardize", [True, False])
def test_the_solution_is_newtons(rng, l2, standardize):
    x, labels = data(rng)
    if not standardize:
        x = (x - 5) / 10.0 ** np.arange(4) * 100
    z = standardized_numpy(x) if standardize else x.astype(np.float64)
    weight, bias, value = solve_numpy(z, labels, 3, l2)
    probe = fit_linear_probe(x, labels, l2=l2, standardize=standardize)
    chex.assert_trees_all_close(probe.weight, weight, rtol=1e-3, atol=1e-3)
    chex.assert_trees_all_close(probe.bias - probe.bias.mean(), bias, atol=1e-3)
    theta = np.concatenate([np.ravel(probe.weight), probe.bias]).astype(np.float64)
    reached, gradient, _ = objective_numpy(theta, z, labels, 3, l2)
    assert reached == pytest.approx(value, rel=1e-5)
    assert np.abs(gradient).max() < 3e-6
    assert float(probe.gradient_norm) <= 1e-6
    assert float(probe.l2) == pytest.approx(l2)
    logits = linear_probe_logits(probe, x)
    chex.assert_trees_all_close(
        jax.nn.softmax(logits), jax.nn.softmax(z @ weight + bias), atol=1e-3
    )


def test_the_penalty_spares_the_bias(rng):
    """With weights forced to zero, the bias still learns how frequent classes are."""
    labels = np.repeat([0, 1, 2], [4, 8, 28])
    x = rng.normal(size=(40, 4)).astype(np.float32)
    probe = fit_linear_probe(x, labels, l2=1e4)
    chex.assert_trees_all_close(
        jax.nn.softmax(probe.bias), jnp.array([0.1, 0.2, 0.7]), atol=1e-4
    )


def test_units_of_features_do_not_matter_once_standardized(rng):
    x, labels = data(rng)
    scale, shift = rng.uniform(0.01, 100, 4), rng.normal(size=4)
    a = fit_linear_probe(x, labels, l2=1e-2)
    b = fit_linear_probe((x * scale + shift).astype(np.float32), labels, l2=1e-2)
    chex.assert_trees_all_close(a.weight, b.weight, rtol=1e-2, atol=2e-3)


def test_renaming_classes_renames_the_columns(rng):
    x, labels = data(rng)
    order = np.array([2, 0, 1])
    a = fit_linear_probe(x, labels, l2=1e-2)
    b = fit_linear_probe(x, np.argsort(order)[labels], l2=1e-2)
    chex.assert_trees_all_close(b.weight, a.weight[:, order], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("constant", [0.0, 0.1, -3e4])
def test_a_constant_feature_changes_nothing(rng, constant):
    x, labels = data(rng)
    more = np.insert(x, 2, np.float32(constant), axis=1)
    a = fit_linear_probe(x, labels, l2=1e-2)
    b = fit_linear_probe(more, labels, l2=1e-2)
    assert b.scale[2] == 1
    chex.assert_trees_all_close(jnp.delete(b.weight, 2, axis=0), a.weight, atol=1e-3)


def test_steps_are_limited(rng):
    x, labels = data(rng)
    probe = fit_linear_probe(x, labels, l2=1e-6, max_steps=3)
    assert int(probe.num_steps) == 3
    assert float(probe.gradient_norm) > 1e-6


@pytest.mark.parametrize("share, expected", [(0.2, [0, 1, 2, 8]), (0.9, [0, 1, 9, 36])])
def test_the_held_out_part_takes_its_share_of_each_class(share, expected):
    labels = np.random.default_rng(0).permutation(np.repeat(range(4), [1, 2, 10, 40]))
    held = np.asarray(_held_out(labels, jax.random.key(0), 4, share))
    assert np.bincount(labels[held], minlength=4).tolist() == expected
    other = np.asarray(_held_out(labels, jax.random.key(1), 4, share))
    assert (held != other).any()


def choose_numpy(x, labels, candidates, key):
    """The protocol, with a plain fit on the part that is not held out."""
    held = np.asarray(_held_out(labels, key, 3, 0.2))
    scores = []
    for l2 in candidates:
        probe = fit_linear_probe(x[~held], labels[~held], l2=l2, num_classes=3)
        log_p = jax.nn.log_softmax(linear_probe_logits(probe, x[held]))
        right = np.mean(np.argmax(log_p, axis=1) == labels[held])
        loss = -np.mean(log_p[np.arange(held.sum()), labels[held]])
        scores.append((right, -loss, l2))
    return max(scores)[2]


@pytest.mark.parametrize("seed, noise", [(0, 1.0), (1, 1.0), (2, 3.0), (3, 6.0)])
def test_l2_is_chosen_on_held_out_training_data(seed, noise):
    x, labels = data(np.random.default_rng(seed), n=60, dim=8, noise=noise)
    key, candidates = jax.random.key(seed), (1e-4, 1e-2, 1.0, 30.0)
    probe = fit_linear_probe(x, labels, l2=candidates, key=key)
    assert float(probe.l2) == pytest.approx(choose_numpy(x, labels, candidates, key))
    alone = fit_linear_probe(x, labels, l2=probe.l2)  # fitted on all again
    chex.assert_trees_all_close(probe.weight, alone.weight, rtol=1e-4, atol=1e-5)


def test_by_default_l2_comes_from_the_grid_in_any_order(rng):
    x, labels = data(rng, noise=3.0)
    probe = fit_linear_probe(x, labels)
    assert any(float(probe.l2) == pytest.approx(l2) for l2 in L2_GRID)
    shuffled = rng.permutation(L2_GRID).tolist()
    chex.assert_trees_all_equal(fit_linear_probe(x, labels, l2=shuffled), probe)


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    x = x.astype(np.float32)
    return x[:1400], y[:1400], x[1400:], y[1400:]


def test_digits_are_told_apart(digits):
    assert 0.89 < float(linear_probe(*digits, l2=1e-2)) < 0.94


def test_labels_that_say_nothing_leave_chance(digits, rng):
    x, y, test_x, test_y = digits
    accuracy = linear_probe(x, rng.permutation(y), test_x, test_y, l2=1e-2)
    assert float(accuracy) < 0.25


def test_a_few_labels_tell_digits_apart_less_well(digits):
    probe = functools.partial(linear_probe, *digits, l2=1e-2, labels_per_class=10)
    keys = jax.random.split(jax.random.key(0), 3)
    accuracies = jax.vmap(lambda key: probe(key=key))(keys)
    assert np.all((accuracies > 0.78) & (accuracies < 0.9))
    assert len(set(accuracies.tolist())) > 1


def test_keys_can_be_mapped_over(rng):
    (x, y), (test_x, test_y) = data(rng), data(rng, n=60)
    probe = functools.partial(
        linear_probe, x, y, test_x, test_y, l2=1e-2, labels_per_class=8
    )
    keys = jax.random.split(jax.random.key(0), 6)
    mapped = jax.vmap(lambda key: probe(key=key))(keys)
    alone = jnp.stack([probe(key=key) for key in keys])
    chex.assert_trees_all_close(mapped, alone, atol=1 / 60 + 1e-6)
    assert len(set(mapped.tolist())) > 1


def test_penalties_can_be_mapped_over(rng):
    x, labels = data(rng)
    fit = lambda l2: fit_linear_probe(x, labels, l2=l2)
    norms = jnp.linalg.norm(jax.vmap(fit)(jnp.array([1e-3, 1e-1])).weight, axis=(1, 2))
    expected = [np.linalg.norm(fit(l2).weight) for l2 in (1e-3, 1e-1)]
    chex.assert_trees_all_close(norms, np.float32(expected), rtol=1e-4)


def test_it_is_compiled_once(rng):
    x, labels = data(rng)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def fit(x, labels, key):
        return fit_linear_probe(x, labels, l2=1e-2, key=key, num_classes=3)

    for seed in range(2):
        jitted = fit(x, labels, jax.random.key(seed))
    plain = fit_linear_probe(x, labels, l2=1e-2)
    chex.assert_trees_all_close(jitted.weight, plain.weight, rtol=1e-4, atol=1e-5)


def test_bfloat16_features_are_fitted_in_float32(rng):
    x, labels = data(rng)
    x = jnp.bfloat16(x)
    chex.assert_trees_all_equal(
        fit_linear_probe(x, labels, l2=1e-2),
        fit_linear_probe(x.astype(jnp.float32), labels, l2=1e-2),
    )


def test_few_labels_are_stratified_distinct_and_nested(rng):
    labels = rng.integers(0, 5, 100)
    key = jax.random.key(3)
    ten = np.asarray(few_labels(labels, 10, key)).reshape(5, 10)
    five = np.asarray(few_labels(labels, 5, key)).reshape(5, 5)
    assert (labels[ten] == np.arange(5)[:, None]).all()
    assert len(set(ten.flat)) == 50
    chex.assert_trees_all_equal(ten[:, :5], five)
    chex.assert_trees_all_equal(few_labels(labels, 10, key), ten.ravel())
    assert (few_labels(labels, 10, jax.random.key(4)) != ten.ravel()).any()


def test_every_sample_is_drawn_alike():
    labels = np.tile([0, 1], 10)
    draw = jax.jit(jax.vmap(lambda key: few_labels(labels, 2, key, num_classes=2)))
    drawn = draw(jax.random.split(jax.random.key(0), 2000))
    counts = np.bincount(np.ravel(drawn), minlength=20)
    assert np.abs(counts - 400).max() < 5 * np.sqrt(2000 * 0.2 * 0.8)


@pytest.mark.parametrize(
    "per_class, message",
    [
        (0, "per_class must be at least 1, got 0"),
        (3, "have 3 samples, got 2 of class 1"),
    ],
)
def test_few_labels_must_exist(per_class, message):
    with pytest.raises(ValueError, match=message):
        few_labels(np.array([0, 1, 0, 1, 0]), per_class, jax.random.key(0))


X, Y = np.eye(4, dtype=np.float32), np.array([0, 1, 1, 0])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"l2": -1.0}, "l2 must be at least 0, got -1.0"),
        ({"l2": ()}, "l2 must be at least 0"),
        ({"l2": float("nan")}, "l2 must be at least 0, got nan"),
        ({"holdout": 1.0}, r"holdout must be in \(0, 1\), got 1.0"),
        ({"num_classes": 1}, r"labels must be in \[0, 1\), got 0 to 1"),
    ],
)
def test_bad_options_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        fit_linear_probe(X, Y, **options)


def test_bad_data_is_an_error():
    with pytest.raises(ValueError, match="train_features must be finite"):
        fit_linear_probe(X * np.nan, Y)
    with pytest.raises(ValueError, match="a class with two samples"):
        fit_linear_probe(X, np.arange(4))
    with pytest.raises((ValueError, TypeError), match=r"labels|samples"):
        fit_linear_probe(X, Y[:3])
    probe = fit_linear_probe(X, Y, l2=1.0)
    with pytest.raises(ValueError, match="features must have dim 4, got 3"):
        linear_probe_logits(probe, X[:, :3])
    with pytest.raises(ValueError, match="num_classes must be given under jit"):
        jax.jit(fit_linear_probe)(X, Y)


def test_classes_seen_in_the_test_set_alone_are_counted():
    test_y = np.array([0, 1, 1, 3])
    assert float(linear_probe(X, Y, X, test_y, l2=1e-2)) == 0.75
