"""Collapse monitors against float64 loops, and the diagnosis of injected faults."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxml.metrics import (
    alignment,
    collapse_metrics,
    diagnose,
    effective_rank,
    feature_std,
    pair_metrics,
    participation_ratio,
    uniformity,
)
from jaxml.parallel import data_mesh


def unit_numpy(x):
    x = np.asarray(x, np.float64)
    return np.array([row / np.linalg.norm(row) for row in x])


def feature_std_numpy(x):
    x = unit_numpy(x)
    return np.mean([column.std() for column in x.T]) * math.sqrt(x.shape[1])


def effective_rank_numpy(x):
    """RankMe, equation 1: from the eigenvalues of the smaller Gram matrix."""
    x = np.asarray(x, np.float64)
    gram = x @ x.T if len(x) < x.shape[1] else x.T @ x
    s = np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0))
    p = s / s.sum() + 1e-7
    return math.exp(-sum(share * math.log(share) for share in p))


def participation_ratio_numpy(x):
    variances = np.linalg.eigvalsh(np.cov(unit_numpy(x), rowvar=False))
    return variances.sum() ** 2 / np.square(variances).sum()


def alignment_numpy(x, y, alpha):
    pairs = zip(unit_numpy(x), unit_numpy(y), strict=True)
    return np.mean([np.linalg.norm(a - b) ** alpha for a, b in pairs])


def uniformity_numpy(x, t):
    x = unit_numpy(x)
    pairs = [(i, j) for i in range(len(x)) for j in range(i)]
    return math.log(
        np.mean([math.exp(-t * np.sum((x[i] - x[j]) ** 2)) for i, j in pairs])
    )


@jax.jit
def measure(x, y):
    values = [
        feature_std(x),
        effective_rank(x),
        alignment(x, y),
        alignment(x, y, alpha=1.0),
        alignment(x, y, alpha=3.0),
        uniformity(x),
        uniformity(x, t=0.5),
        uniformity(x, t=100.0),
    ]
    return jnp.stack(values)


SIZES = pytest.mark.parametrize("n, dim", [(2, 1), (7, 3), (5, 12), (64, 32)])


@SIZES
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_monitors_match_loops(rng, n, dim, scale):
    x, y = scale * (0.3 + rng.normal(size=(2, n, dim))).astype(np.float32)
    expected = [
        feature_std_numpy(x),
        effective_rank_numpy(x),
        alignment_numpy(x, y, 2),
        alignment_numpy(x, y, 1),
        alignment_numpy(x, y, 3),
        uniformity_numpy(x, 2),
        uniformity_numpy(x, 0.5),
        uniformity_numpy(x, 100),
    ]
    chex.assert_trees_all_close(
        measure(x, y), np.float32(expected), rtol=2e-4, atol=2e-5
    )


@pytest.mark.parametrize("n, dim", [(7, 3), (5, 12), (64, 32)])
def test_participation_ratio_is_that_of_the_variances(rng, n, dim):
    for scale in (1e-6, 1.0, 1e6):
        x = np.float32(scale * (0.3 + rng.normal(size=(n, dim))))
        expected = participation_ratio_numpy(x)
        assert float(participation_ratio(x)) == pytest.approx(expected, rel=1e-4)
    assert participation_ratio(jnp.ones((n, dim))) == 1


def test_more_rows_than_a_block_are_all_paired(rng):
    x = rng.normal(size=(1500, 2)).astype(np.float32)
    z = unit_numpy(x)
    potential = np.exp(-2 * (2 - 2 * z @ z.T))
    expected = np.log((potential.sum() - np.trace(potential)) / (1500 * 1499))
    assert float(uniformity(x)) == pytest.approx(expected, abs=1e-5)


def test_bounds_at_collapse_and_at_health(rng):
    same, spread = jnp.ones((256, 16)), jnp.asarray(rng.normal(size=(4096, 16)))
    assert feature_std(same) < 1e-3
    assert effective_rank(same) == pytest.approx(1, abs=1e-3)
    assert alignment(same, 2 * same) == pytest.approx(0, abs=1e-6)
    assert uniformity(same) == pytest.approx(0, abs=1e-5)
    assert feature_std(spread) == pytest.approx(1, abs=0.01)
    assert effective_rank(spread) == pytest.approx(16, abs=0.1)
    assert alignment(spread, spread[::-1]) == pytest.approx(2, abs=0.05)
    assert uniformity(spread) < -3


def test_rotations_change_nothing_that_is_no_coordinate(rng):
    x, y = rng.normal(size=(2, 20, 8)).astype(np.float32)
    rotation = np.linalg.qr(rng.normal(size=(8, 8)))[0].astype(np.float32)
    for monitor in (effective_rank, uniformity):
        chex.assert_trees_all_close(monitor(x @ rotation), monitor(x), rtol=1e-4)
    turned = alignment(x @ rotation, y @ rotation)
    chex.assert_trees_all_close(turned, alignment(x, y), rtol=1e-4)


def test_gradients_exist_where_rows_meet(rng):
    @jax.jit
    def gradients(x, y):
        align = [
            jax.grad(functools.partial(alignment, alpha=alpha), (0, 1))(x, y)
            for alpha in (1.0, 2.0, 3.0)
        ]
        return align, jax.grad(feature_std)(x), jax.grad(uniformity)(x)

    x = jnp.asarray(rng.normal(size=(6, 4)), jnp.float32).at[1].set(0)
    same = jnp.ones((6, 4))
    for a, b in ((x, x), (same, same), (x, same)):
        chex.assert_tree_all_finite(gradients(a, b))


def test_gradients_of_the_losses_are_those_of_finite_differences(rng):
    x, y = jnp.asarray(rng.normal(size=(2, 5, 3)), jnp.float32)
    check = functools.partial(chex.assert_numerical_grads, order=1, eps=1e-2)
    check(jax.jit(uniformity), (x,), rtol=1e-2, atol=1e-3)
    check(jax.jit(alignment), (x, y), rtol=1e-2, atol=1e-3)


def outputs_and_features(rng, n=16, dim=6, outputs=5):
    x, y = rng.normal(size=(2, n, dim)).astype(np.float32)
    p = rng.dirichlet(np.ones(outputs), size=n).astype(np.float32)
    return x, x + 0.3 * y, p


def test_eight_devices_measure_what_one_does(rng):
    arrays = outputs_and_features(rng)
    split = jax.shard_map(
        functools.partial(collapse_metrics, axis_name="data"),
        mesh=data_mesh(),
        in_specs=(P("data"),) * 3,
        out_specs=P(),
    )
    chex.assert_trees_all_close(
        jax.jit(split)(*arrays), collapse_metrics(*arrays), rtol=1e-5
    )


def test_eight_devices_have_the_gradient_of_one(rng):
    x, y, _ = outputs_and_features(rng)

    def loss(x, y, axis_name=None):
        spread = uniformity(x, axis_name=axis_name)
        return spread + alignment(x, y, axis_name=axis_name)

    split = jax.shard_map(
        functools.partial(loss, axis_name="data"),
        mesh=data_mesh(),
        in_specs=(P("data"),) * 2,
        out_specs=P(),
    )
    chex.assert_trees_all_close(
        jax.jit(jax.grad(split, (0, 1)))(x, y), jax.grad(loss, (0, 1))(x, y), rtol=1e-4
    )


def test_all_monitors_at_once(rng):
    x, y, p = outputs_and_features(rng)
    values = jax.jit(collapse_metrics)(x, y, p)
    z, p = unit_numpy(x), p.astype(np.float64)
    pairs = [np.sum((a - b) ** 2) for i, a in enumerate(z) for b in z[:i]]
    entropy = lambda q: -np.sum(q * np.log(q))
    expected = {
        "feature_std": feature_std_numpy(x),
        "uniformity": uniformity_numpy(x, 2),
        "effective_rank": effective_rank_numpy(x),
        "participation_ratio": participation_ratio_numpy(x),
        "rank_share": effective_rank_numpy(x) / 6,
        "alignment": alignment_numpy(x, y, 2),
        "pair_distance": np.mean(pairs),
        "row_entropy": np.mean([entropy(q) for q in p]) / np.log(5),
        "mean_entropy": entropy(p.mean(axis=0)) / np.log(5),
        "outputs_used": np.exp(entropy(p.mean(axis=0))) / 5,
    }
    chex.assert_trees_all_close(
        values, jax.tree.map(np.float32, expected), rtol=2e-4, atol=1e-5
    )
    assert set(collapse_metrics(x)) == set(list(expected)[:5])


def test_bfloat16_features_are_measured_in_float32(rng):
    x, y, p = (jnp.bfloat16(a) for a in outputs_and_features(rng))
    wide = (a.astype(jnp.float32) for a in (x, y, p))
    chex.assert_trees_all_equal(collapse_metrics(x, y, p), collapse_metrics(*wide))


def healthy(rng, n=256, dim=32, outputs=64):
    """Rows all over the sphere, near positives, sharp outputs of all kinds."""
    x = rng.normal(size=(n, dim))
    logits = 8 * x @ rng.normal(size=(dim, outputs)) / math.sqrt(dim)
    return x, x + 0.3 * rng.normal(size=(n, dim)), logits


def all_equal(rng, x, y, logits):
    return 1 + 1e-3 * x, 1 + 1e-3 * y, logits


def few_directions(rng, x, y, logits):
    basis = rng.normal(size=(2, x.shape[1]))
    return x[:, :2] @ basis + 1e-4 * x, y[:, :2] @ basis + 1e-4 * y, logits


def one_direction_and_its_opposite(rng, x, y, logits):
    sign = np.sign(x[:, :1])
    return sign + 1e-3 * x, sign + 1e-3 * y, logits


def shuffled_views(rng, x, y, logits):
    return x, np.roll(y, 1, axis=0), logits


def one_view_twice(rng, x, y, logits):
    return x, x.copy(), logits


def no_centre_needed_but_flat(rng, x, y, logits):
    return x, y, 1e-2 * logits


def one_output_for_all(rng, x, y, logits):
    return x, y, logits * 0.1 + 20 * (np.arange(logits.shape[1]) == 3)


def same_mixture_for_all(rng, x, y, logits):
    return x, y, np.tile(logits[:1] / 3, (len(logits), 1))


def only_a_few_outputs(rng, x, y, logits):
    return x, y, np.where(np.arange(logits.shape[1]) < 4, logits, -1e3)


def diverged(rng, x, y, logits):
    x[0, 0] = np.nan
    return x, y, logits


FAULTS = {
    all_equal: ["complete collapse"],
    few_directions: ["dimensional collapse"],
    one_direction_and_its_opposite: ["dimensional collapse"],
    shuffled_views: ["unrelated positives"],
    one_view_twice: ["identical positives"],
    no_centre_needed_but_flat: ["uniform output"],
    one_output_for_all: ["constant output"],
    same_mixture_for_all: ["constant output"],
    only_a_few_outputs: ["few outputs used"],
    diverged: ["not finite"],
}


def findings(x, y, logits):
    x, y, logits = (jnp.asarray(a, jnp.float32) for a in (x, y, logits))
    values = jax.jit(collapse_metrics)(x, y, jax.nn.softmax(logits))
    return [finding.name for finding in diagnose(values)]


@pytest.mark.parametrize("seed", range(3))
def test_health_has_no_findings(seed):
    assert findings(*healthy(np.random.default_rng(seed))) == []


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_each_fault_is_named(rng, fault):
    assert findings(*fault(rng, *healthy(rng))) == FAULTS[fault]


def test_shapes_that_would_broadcast_are_errors():
    with pytest.raises((ValueError, TypeError), match=r"shape|dim|batch"):
        alignment(jnp.ones((4, 6)), jnp.ones((1, 6)))
    with pytest.raises(ValueError, match="uniformity needs at least 2 rows, got 1"):
        uniformity(jnp.ones((1, 3)))


def test_monitors_are_compiled_once(rng):
    measure = jax.jit(chex.assert_max_traces(collapse_metrics, n=1))
    for _ in range(2):
        measure(*outputs_and_features(rng))


def test_one_row_has_no_pairs():
    assert pair_metrics(jnp.ones((1, 3)), jnp.ones((1, 3))) == {"alignment": 0}
