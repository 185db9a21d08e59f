"""Fine-tuning: what is taken over, where the head is cut, and how layers decay."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxml.nn.functional import apply_module, init_module
from jaxml.ssl import (
    FineTuned,
    SimCLR,
    fine_tune,
    layerwise_decay,
    taken_over,
    transformer_depth,
)
from tests.ssl.trials import TinyBackbone, check_all_moved, check_devices, train


def make_batch(rng, size=16):
    """Three classes, each a bright place of its own."""
    label = np.arange(size) % 3
    image = 0.1 * rng.uniform(size=(size, 6, 6, 1))
    image[np.arange(size), label] += 1
    image = np.float32(image)
    return {"image": image, "view": image, "label": np.int32(label)}


def pretrained(rng, widths=(8, 8, 4)):
    """A SimCLR of version 2, whose running statistics are not those of the start."""
    model, images = SimCLR(TinyBackbone(), widths), make_batch(rng)["image"]
    params, state = init_module(model, jax.random.key(5), images, train=True)
    outputs, state = apply_module(model, params, state, images, train=True)
    return params, state, outputs


def test_version_2_goes_on_from_the_middle_of_the_head(rng):
    """Logits are linear in relu(norm(first layer)) of the pretrained head."""
    params, state, (h, _) = pretrained(rng)
    model, batch = FineTuned(TinyBackbone(), 3, head=(8,)), make_batch(rng)
    method = fine_tune(model, (params, state))
    tuned, stats = method.init(jax.random.key(0), batch)
    chex.assert_trees_all_equal(tuned["backbone"], params["backbone"])
    kept = {k: params["Mlp_0"][k] for k in ("Dense_0", "BatchNorm_0")}
    chex.assert_trees_all_equal(tuned["Mlp_0"], kept)

    tuned_arrays = jax.tree.map(np.asarray, (kept, state, tuned["classifier"]))
    kept, state, classifier = tuned_arrays
    norm, running = kept["BatchNorm_0"], state["batch_stats"]["Mlp_0"]["BatchNorm_0"]
    h = TinyBackbone().apply(
        {"params": params["backbone"]}, batch["image"], train=False
    )
    x = np.asarray(h) @ kept["Dense_0"]["kernel"] - running["mean"]
    x = x / np.sqrt(running["var"] + 1e-5) * norm["scale"] + norm["bias"]
    expected = np.maximum(x, 0) @ classifier["kernel"] + classifier["bias"]
    logits = method.predict(tuned, stats, batch)
    chex.assert_trees_all_close(logits, expected, rtol=1e-4, atol=1e-6)


def test_loss_is_the_cross_entropy(rng):
    method, batch = fine_tune(FineTuned(TinyBackbone(), 3)), make_batch(rng)
    params, state = method.init(jax.random.key(0), batch)
    logits = np.float64(method.predict(params, state, batch))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = -np.mean(np.log(p[np.arange(16), batch["label"]]))
    value, (_, metrics) = method.loss(params, state, batch, jax.random.key(0))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    share = np.mean(logits.argmax(1) == batch["label"])
    np.testing.assert_allclose(metrics["accuracy"], share, rtol=1e-6)


def test_it_learns_and_touches_every_parameter(rng):
    method = fine_tune(FineTuned(TinyBackbone(), 3, head=(8,)))
    start, state, history = train(method, make_batch(rng), 30)
    check_all_moved(start, state)
    assert history[-1]["accuracy"] == 1
    assert history[-1]["loss"] < 0.3 * history[0]["loss"]


def test_many_devices_take_the_same_steps_as_one(rng):
    def build(axis_name):
        return fine_tune(FineTuned(TinyBackbone(), 3, (8,), axis_name))

    check_devices(build, make_batch(rng), 8)


def test_what_cannot_be_placed_is_refused(rng):
    params, state, _ = pretrained(rng)
    batch = make_batch(rng)

    def init(model):
        return fine_tune(model, (params, state)).init(jax.random.key(0), batch)

    with pytest.raises(ValueError, match="must have the shape"):
        init(FineTuned(TinyBackbone(), 3, head=(5,)))
    with pytest.raises(ValueError, match="all but the classifier must be pretrained"):
        init(FineTuned(TinyBackbone(name="other"), 3, head=(8, 8, 4, 2)))
    copied = taken_over({"a": jnp.zeros(2)}, {"a": jnp.ones(2), "b": jnp.ones(3)})
    chex.assert_trees_all_equal(copied, {"a": jnp.ones(2)})


def test_layers_decay_with_their_depth():
    """Of Adam's update, so that the scale of the gradient does not undo it."""
    params = {"stem": {"w": jnp.ones(3)}, "block_1": jnp.ones(2), "head": jnp.ones(1)}
    grads = jax.tree.map(lambda p: 5 * p, params)
    depths = {"^stem/": 0, "block_1": 1, "": 2}
    plain = optax.adamw(0.1, weight_decay=0.3)
    expected, _ = plain.update(grads, plain.init(params), params)
    for depth in (depths, lambda path: {"stem": 0, "block_1": 1, "head": 2}[path[0]]):
        optimizer = layerwise_decay(plain, 0.5, depth)
        updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
        for name, factor in {"stem": 0.25, "block_1": 0.5, "head": 1.0}.items():
            chex.assert_trees_all_close(
                updates[name], jax.tree.map(lambda u: factor * u, expected[name])
            )


def test_decay_refuses_bad_input():
    with pytest.raises(ValueError, match=r"decay must be in \(0, 1\]"):
        layerwise_decay(optax.sgd(0.1), 0.0, {"": 0})
    optimizer = layerwise_decay(optax.sgd(0.1), 0.5, {"stem": 0})
    params = {"head": jnp.ones(2)}
    with pytest.raises(ValueError, match="every array must have a depth"):
        optimizer.update(params, optimizer.init(params), params)


def test_depths_of_a_transformer_are_checked():
    with pytest.raises(ValueError, match="num_blocks must be at least 1, got 0"):
        transformer_depth(0)
    with pytest.raises(ValueError, match="there must be 2 blocks, got blocks_2/norm1"):
        transformer_depth(2)(("blocks_2", "norm1"))
