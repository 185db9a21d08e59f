"""SwAV against NumPy: codes and their marginals, the loss, queue and prototypes."""

import math
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jaxml.compose import accumulated, newest_first
from jaxml.metrics import diagnose
from jaxml.nn import ConvNet
from jaxml.parallel import data_mesh
from jaxml.ssl import Projected, sinkhorn, swav, swav_loss
from tests.numerical import close, gradients
from tests.ssl.trials import TinyBackbone, check_all_moved, check_devices, train


def sinkhorn_numpy(scores, epsilon, num_iterations):
    """Algorithm of appendix A.1 on the transport plan itself: [batch, prototypes]."""
    plan = np.exp(scores.T / epsilon)
    prototypes, batch = plan.shape
    plan /= plan.sum()
    for _ in range(num_iterations):
        for k in range(prototypes):
            plan[k] /= plan[k].sum() * prototypes
        for b in range(batch):
            plan[:, b] /= plan[:, b].sum() * batch
    return (batch * plan).T


def swav_numpy(scores, codes, temperature):
    """Equations 1 and 2 for all crops."""
    terms = []
    for i, q in enumerate(codes):
        for v, s in enumerate(scores):
            if v != i:
                for b in range(s.shape[0]):
                    p = np.exp(s[b] / temperature)
                    terms.append(-q[b] @ np.log(p / p.sum()))
    return np.mean(terms)


@pytest.mark.parametrize("batch, prototypes", [(8, 5), (3, 7), (1, 2)])
@pytest.mark.parametrize("epsilon, num_iterations", [(0.05, 3), (0.5, 1), (1.0, 10)])
def test_codes_match_numpy(rng, batch, prototypes, epsilon, num_iterations):
    scores = rng.uniform(-1, 1, size=(batch, prototypes))
    actual = sinkhorn(np.float32(scores), epsilon, num_iterations)
    expected = sinkhorn_numpy(scores, epsilon, num_iterations)
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=1e-6)


def test_codes_share_the_prototypes_out(rng):
    scores = np.float32(rng.uniform(-1, 1, size=(40, 6)))
    codes = sinkhorn(scores, 0.1, 50)
    chex.assert_trees_all_close(codes.sum(1), jnp.ones(40), rtol=1e-6)
    chex.assert_trees_all_close(codes.mean(0), jnp.full(6, 1 / 6), rtol=1e-4)
    softmax = sinkhorn(scores, 0.1, 0)
    chex.assert_trees_all_close(softmax, jax.nn.softmax(scores / 0.1), rtol=1e-5)


def test_codes_survive_any_range_and_carry_no_gradient(rng):
    scores = jnp.asarray(100 * rng.normal(size=(6, 4)), jnp.bfloat16)
    codes = sinkhorn(scores, 0.05, 3)
    assert codes.dtype == jnp.float32
    chex.assert_tree_all_finite(codes)
    chex.assert_trees_all_close(codes.sum(1), jnp.ones(6), rtol=1e-5)
    weights = jnp.arange(24.0).reshape(6, 4)
    grad = jax.grad(lambda s: jnp.sum(weights * sinkhorn(s)))(weights)
    chex.assert_trees_all_equal(grad, jnp.zeros_like(grad))


def test_extra_rows_take_their_share(rng):
    scores = rng.uniform(-1, 1, size=(9, 4))
    together = sinkhorn_numpy(scores[:7], 0.2, 3)
    rows, extra = np.float32(scores[:3]), np.float32(scores[3:])
    mask = jnp.arange(6) < 4
    codes = sinkhorn(rows, 0.2, 3, extra=extra, extra_mask=mask)
    np.testing.assert_allclose(codes, together[:3], rtol=2e-5)
    nobody = sinkhorn(rows, 0.2, 3, extra=extra, extra_mask=jnp.zeros(6, bool))
    chex.assert_trees_all_close(nobody, sinkhorn(rows, 0.2, 3), rtol=1e-5)


@pytest.mark.parametrize("devices", [2, 8])
def test_codes_are_those_of_the_global_batch(rng, devices):
    scores = np.float32(rng.uniform(-1, 1, size=(16, 5)))
    extra = np.float32(rng.uniform(-1, 1, size=(3, 5)))

    def codes(scores, extra, axis_name=None):
        return sinkhorn(scores, 0.1, 3, extra=extra, axis_name=axis_name)

    many = jax.shard_map(
        partial(codes, axis_name="data"),
        mesh=data_mesh(jax.devices()[:devices]),
        in_specs=(P("data"), P()),
        out_specs=P("data"),
    )
    actual = jax.device_get(jax.jit(many)(scores, extra))
    chex.assert_trees_all_close(actual, jax.device_get(codes(scores, extra)), rtol=1e-5)
    alone = codes(scores[: 16 // devices], extra)  # what the trap would give
    assert jnp.abs(actual[: 16 // devices] - alone).max() > 0.01


@pytest.mark.parametrize("views, codes", [(2, 2), (5, 2), (3, 1)])
def test_loss_matches_numpy(rng, views, codes):
    scores = rng.normal(size=(views, 4, 3))
    q = rng.dirichlet(np.ones(3), size=(codes, 4))

    def loss(scores, q):
        return swav_loss(scores, q, 0.3)

    value, grads = jax.value_and_grad(loss, (0, 1))(np.float32(scores), np.float32(q))
    close(value, swav_numpy(scores, q, 0.3), scale=5)
    (expected,) = gradients(lambda s: swav_numpy(s, q, 0.3), scores)
    close(grads[0], expected, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_equal(grads[1], jnp.zeros_like(grads[1]))


def make_batch(rng, size=8, local=2):
    image = rng.uniform(size=(size, 1, 6, 6, 1))
    crops = {
        "global": np.float32(image + 0.1 * rng.normal(size=(size, 2, 6, 6, 1))),
        "local": np.float32(
            image[:, :, 1:5, 1:5] + 0.1 * rng.normal(size=(size, local, 4, 4, 1))
        ),
    }
    return {"image": np.float32(image[:, 0]), **crops}


def build(axis_name=None, **options):
    backbone = ConvNet((4, 8), axis_name=axis_name)
    model = Projected(backbone, (8, 6), normalize=True, axis_name=axis_name)
    return swav(model, **{"num_prototypes": 5, **options})


def test_loss_of_the_method_is_built_from_its_parts(rng):
    """Two crops of one size without a queue: apply, score, code, cross-predict."""
    method = swav(Projected(TinyBackbone(), (4,)), num_prototypes=5)
    batch = make_batch(rng)
    del batch["local"]
    params, state = method.init(jax.random.key(0), batch)
    model = Projected(TinyBackbone(), (4,))
    z = [
        model.apply({"params": params["model"]}, batch["global"][:, i], train=True)[1]
        for i in (0, 1)
    ]
    scores = np.stack([np.float64(x @ params["prototypes"].T) for x in z])
    codes = [sinkhorn_numpy(s, 0.05, 3) for s in scores]
    actual, (_, metrics) = method.loss(params, state, batch, jax.random.key(0))
    close(actual, swav_numpy(scores, codes, 0.1), scale=20)
    error = np.mean([abs(q.mean(0) - 1 / 5).sum() / 2 for q in codes])
    close(metrics["marginal_error"], error, rtol=1e-4, atol=1e-4)


def test_local_crops_predict_but_make_no_codes(rng):
    """Codes of the large crops depend on them alone, and so does the queue."""
    method, batch = build(queue_size=16), make_batch(rng)
    params, state = method.init(jax.random.key(0), batch)
    state["encoder"] = state["encoder"]
    other = {**batch, "local": batch["local"][::-1]}
    (one, (after, _)), (two, (after_other, _)) = (
        method.loss(params, state, b, jax.random.key(0)) for b in (batch, other)
    )
    assert one != two
    chex.assert_trees_all_equal(after["queue"], after_other["queue"])


def test_prototypes_stay_while_frozen_and_keep_their_length(rng):
    method, batch = build(freeze_steps=2), make_batch(rng)
    start, two, _ = train(method, batch, 2)
    chex.assert_trees_all_close(
        two.params["prototypes"], start.params["prototypes"], rtol=1e-6
    )
    _, five, _ = train(method, batch, 5)
    assert jnp.abs(five.params["prototypes"] - start.params["prototypes"]).max() > 1e-3
    lengths = jnp.linalg.norm(five.params["prototypes"], axis=1)
    chex.assert_trees_all_close(lengths, jnp.ones(5), rtol=1e-5)
    assert five.model_state["step"] == 5


def test_queue_starts_when_told_and_loses_nothing(rng):
    """11 rows for batches of 8: eight after one step, all after two."""
    batch = make_batch(rng)
    method = build(queue_size=11, queue_start=1)
    filled = []
    for steps in (1, 2, 3):
        _, state, _ = train(method, batch, steps)
        filled.append(int(jnp.any(state.model_state["queue"] != 0, axis=(1, 2)).sum()))
    assert filled == [0, 8, 11]


def test_accumulation_enqueues_once(rng):
    """Rows of both micro-batches, in the order of the batch."""
    method = swav(Projected(TinyBackbone(), (4,)), num_prototypes=5, queue_size=11)
    batch = make_batch(rng)
    batch["local"] = batch["global"]
    parts = accumulated(method, 2, merge={"queue": newest_first})
    _, whole, _ = train(method, batch, 1, optax.sgd(0.0))
    _, halves, _ = train(parts, batch, 1, optax.sgd(0.0))
    chex.assert_trees_all_close(
        halves.model_state["queue"], whole.model_state["queue"], rtol=1e-5, atol=1e-6
    )


def test_it_learns_and_touches_every_parameter(rng):
    start, state, history = train(build(), make_batch(rng, 16), 60)
    check_all_moved(start, state)
    assert history[0]["loss"] > 0.9 * math.log(5)
    assert history[-1]["loss"] < 0.8 * math.log(5)


def test_without_sinkhorn_the_monitor_names_the_collapse(rng):
    """Codes that are the softmax itself, unbalanced: one output for every image."""
    batch = make_batch(rng, 16)
    *_, history = train(build(num_iterations=0, epsilon=0.1), batch, 150)
    names = {finding.name for finding in diagnose(history[-1], num_outputs=5)}
    assert names & {"constant output", "uniform output", "few outputs used"}
    *_, history = train(build(), batch, 150)
    assert not diagnose(history[-1], num_outputs=5)


@pytest.mark.parametrize("devices", [2, 8])
def test_many_devices_take_the_same_steps_as_one(rng, devices):
    """Codes, queue of odd size, frozen then free prototypes, batch norm of all crops."""
    check_devices(
        lambda axis_name: build(axis_name, queue_size=21, freeze_steps=1),
        make_batch(rng, 16),
        devices,
    )


S = np.ones((2, 3, 4), np.float32)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: sinkhorn(S[0], 0.0), "epsilon must be positive"),
        (lambda: sinkhorn(S[0], num_iterations=-1), "must not be negative"),
        (lambda: swav_loss(S[:1], S[:1]), "at least two views"),
        (lambda: swav_loss(S, np.ones((3, 3, 4), np.float32)), "at least two views"),
        (lambda: swav_loss(S, S, 0.0), "temperature must be positive"),
        (lambda: build(num_prototypes=1), "num_prototypes must be at least 2"),
        (lambda: build(queue_size=-1), "queue_size must not be negative"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
