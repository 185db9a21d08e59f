"""Augmented and accumulated methods: the same step as the plain method's whole batch."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from jaxml.compose import Merge, accumulated, augmented, average, newest_first
from jaxml.method import Method
from jaxml.nn import BatchNorm, ConvNet
from jaxml.nn.dropout import Dropout
from jaxml.nn.functional import apply_module, init_module
from jaxml.parallel import all_gather, data_mesh, data_parallel, sample_keys
from jaxml.ssl import SimCLR, SimSiam, simclr, simsiam
from jaxml.train import gradient_step, init_state

SIZE = 48  # samples in a batch, over all devices


class Noisy(nn.Module):
    """Dropout, and one number for every sample."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.tanh(nn.Dense(8)(x.reshape(len(x), -1)))
        return nn.Dense(1)(Dropout(0.5, axis_name=self.axis_name)(x, train=train))[:, 0]


def regression(axis_name=None):
    """A mean over samples, with all the noise that a key can give."""
    module = Noisy(axis_name)

    def init(key, batch):
        return init_module(module, key, batch["view"], train=False)

    def loss(params, model_state, batch, key):
        keys = sample_keys(key, len(batch["view"]), axis_name)
        target = batch["label"] + 0.1 * jax.vmap(jax.random.normal)(keys)
        y, _ = apply_module(
            module, params, {}, batch["view"], train=True, rngs={"dropout": key}
        )
        value = jnp.mean(jnp.square(y - target))
        return value, (model_state, {"loss": value, "mean": jnp.mean(y)})

    return Method(init, loss, predict=lambda *_: None)


def view(key, image):
    return {"view": image + 0.1 * jax.random.normal(key, image.shape)}


def two_views(key, image):
    noise1, noise2 = 0.1 * jax.random.normal(key, (2, *image.shape))
    return {"view1": image + noise1, "view2": image + noise2}


def moco(axis_name=None, *, queue_size=20, momentum=0.9):
    """A queue that changes in the loss, a teacher that changes after the update."""
    encoder = nn.Dense(4)

    def embed(params, images):
        z = encoder.apply({"params": params}, images.reshape(len(images), -1))
        return z * lax.rsqrt(jnp.sum(z * z, axis=-1, keepdims=True))

    def init(key, batch):
        flat = batch["view1"].reshape(len(batch["view1"]), -1)
        params = encoder.init(key, flat)["params"]
        queue = jax.random.normal(key, (queue_size, 4))
        return params, {"teacher": jax.tree.map(jnp.copy, params), "queue": queue}

    def loss(params, model_state, batch, key):
        q = embed(params, batch["view1"])
        k = lax.stop_gradient(embed(model_state["teacher"], batch["view2"]))
        positive = jnp.sum(q * k, axis=-1, keepdims=True)
        logits = jnp.concatenate([positive, q @ model_state["queue"].T], axis=1)
        value = -jnp.mean(jax.nn.log_softmax(5 * logits)[:, 0])
        queue = jnp.concatenate([all_gather(k, axis_name), model_state["queue"]])
        queue = queue[:queue_size]
        return value, ({**model_state, "queue": queue}, {"loss": value})

    def after_update(params, model_state, step):
        teacher = optax.incremental_update(params, model_state["teacher"], 1 - momentum)
        return params, {**model_state, "teacher": teacher}

    return Method(init, loss, lambda *_: None, after_update)


@pytest.fixture
def batch(rng):
    return {
        "image": rng.uniform(size=(SIZE, 4, 4, 1)).astype(np.float32),
        "label": rng.normal(size=SIZE).astype(np.float32),
    }


def train(build, batch, devices=1, num_steps=3, optimizer=None):
    """State and metrics after some steps on some devices."""
    optimizer = optimizer or optax.adam(0.05)
    state = init_state(build(None), optimizer, jax.random.key(0), batch)
    if devices == 1:
        step = jax.jit(gradient_step(build(None), optimizer, jax.random.key(1)))
    else:
        step = gradient_step(build("data"), optimizer, jax.random.key(1), "data")
        step = data_parallel(step, data_mesh(jax.devices()[:devices]))
    for _ in range(num_steps):
        state, metrics = step(state, batch)
    return jax.device_get((state, metrics))


def assert_same(actual, expected, tolerance=5e-6):
    chex.assert_trees_all_close(actual, expected, rtol=tolerance, atol=tolerance)


@functools.cache
def whole_batch_regression():
    rng = np.random.default_rng(0)
    images, labels = rng.uniform(size=(SIZE, 4, 4, 1)), rng.normal(size=SIZE)
    batch = {"image": np.float32(images), "label": np.float32(labels)}
    return batch, train(lambda axis: augmented(regression(axis), view, axis), batch)


@pytest.mark.parametrize(
    "devices, k, recompute, augmented_inside",
    [
        (1, 2, True, True),
        (1, 6, False, False),
        (8, 3, True, False),
        (8, 6, False, True),
    ],
)
def test_micro_batches_take_the_step_of_the_whole_batch(
    devices, k, recompute, augmented_inside
):
    """Augmentation, dropout and noise included: each sample keeps its keys."""
    batch, expected = whole_batch_regression()

    def build(axis):
        split = functools.partial(accumulated, k=k, axis_name=axis, recompute=recompute)
        if augmented_inside:
            return split(augmented(regression(axis), view, axis))
        return augmented(split(regression(axis)), view, axis)

    assert_same(train(build, batch, devices), expected)


def test_micro_batches_of_micro_batches():
    batch, expected = whole_batch_regression()

    def build(axis):
        method = augmented(regression(axis), view, axis)
        return accumulated(accumulated(method, 3, axis), 2, axis)

    assert_same(train(build, batch, devices=8), expected)


def test_queue_gets_all_keys_once_and_the_teacher_moves_once(batch):
    def whole(axis):
        return augmented(moco(axis), two_views, axis)

    def split(axis):
        return accumulated(whole(axis), 3, axis, merge={"queue": newest_first})

    expected, _ = train(whole, batch)
    actual, _ = train(split, batch, devices=8)
    assert_same(actual, expected)
    teacher = actual.model_state["teacher"]["kernel"]
    assert not np.allclose(actual.params["kernel"], teacher)


@pytest.mark.parametrize("queue_size", [2, 20, 48, 60])
def test_queue_rows_are_those_of_the_batch_in_its_order(batch, queue_size):
    """Sizes below a micro-batch, below the batch, equal to it, and above it."""
    method = augmented(moco(queue_size=queue_size), two_views)
    params, model_state = method.init(jax.random.key(0), batch)
    split = accumulated(method, 3, merge={"queue": newest_first})
    _, (whole, _) = method.loss(params, model_state, batch, jax.random.key(1))
    _, (after, _) = split.loss(params, model_state, batch, jax.random.key(1))
    assert_same(after["queue"], whole["queue"])
    assert len(np.unique(after["queue"], axis=0)) == queue_size
    assert after["teacher"]["kernel"] is model_state["teacher"]["kernel"]


class Normalised(nn.Module):
    """Batch norm between two layers, by groups of the batch."""

    num_groups: int = 1
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, *, train):
        norm = functools.partial(BatchNorm, num_groups=self.num_groups)
        x = ConvNet([4, 8], norm=norm, axis_name=self.axis_name)(images, train=train)
        return nn.Dense(1)(x)[:, 0]


def normalised(num_groups=1, axis_name=None):
    module = Normalised(num_groups, axis_name)

    def init(key, batch):
        return init_module(module, key, batch["image"], train=True)

    def loss(params, model_state, batch, key):
        y, model_state = apply_module(
            module, params, model_state, batch["image"], train=True
        )
        value = jnp.mean(jnp.square(y - batch["label"]))
        return value, (model_state, {"loss": value})

    return Method(init, loss, predict=lambda *_: None)


def test_batch_statistics_move_once_as_those_of_groups(batch):
    """Micro-batch j is samples j, j + k ...; groups are consecutive, so reorder."""
    k = 3
    in_groups = jax.tree.map(
        lambda x: np.concatenate([x[j::k] for j in range(k)]), batch
    )
    expected = train(lambda axis: normalised(k, axis), in_groups)
    actual = train(lambda axis: accumulated(normalised(1, axis), k, axis), batch, 8)
    assert_same(actual, expected, 2e-5)


@pytest.mark.parametrize("name, recompute", [("simclr", True), ("simsiam", False)])
def test_loss_gradient_and_state_are_means_over_the_micro_batches(
    batch, name, recompute
):
    """Against a loop over slices, each starting from the same state."""
    method = (
        simclr_of(None)
        if name == "simclr"
        else simsiam(SimSiam(ConvNet([4]), dim=8, bottleneck=4))
    )
    batch = jax.vmap(two_views)(
        jax.random.split(jax.random.key(2), SIZE), batch["image"]
    )
    params, model_state = method.init(jax.random.key(0), batch)
    key, k = jax.random.key(1), 4

    def gradient(method, batch):
        return jax.value_and_grad(method.loss, has_aux=True)(
            params, model_state, batch, key
        )

    of_whole = jax.jit(functools.partial(gradient, method))
    micro = [jax.tree.map(lambda x, j=j: x[j::k], batch) for j in range(k)]
    results = [of_whole(part) for part in micro]
    expected = jax.tree.map(lambda *x: sum(x) / k, *results)
    actual = jax.jit(
        functools.partial(gradient, accumulated(method, k, recompute=recompute))
    )(batch)
    assert_same(actual, expected, 2e-5)
    # The contrast is within the micro-batch: another loss than the whole batch's.
    whole = of_whole(batch)[0][0]
    assert abs(whole - actual[0][0]) > 1e-3 * abs(whole)


def simclr_of(axis):
    return simclr(SimCLR(ConvNet([4], axis_name=axis), widths=(8, 4), axis_name=axis))


def test_eight_devices_take_the_same_accumulated_step_as_one(batch):
    def build(axis):
        return accumulated(augmented(simclr_of(axis), two_views, axis), 3, axis)

    sgd = optax.sgd(0.05)
    expected, _ = train(build, batch, optimizer=sgd)
    actual, _ = train(build, batch, devices=8, optimizer=sgd)
    assert_same(actual, expected, 5e-5)


def compiled(method, k, recompute, batch, axis_name=None):
    method = accumulated(method, k, axis_name, recompute=recompute)
    optimizer = optax.sgd(0.1)
    state = init_state(method, optimizer, jax.random.key(0), batch)
    step = gradient_step(method, optimizer, jax.random.key(1), axis_name)
    if axis_name:
        step = jax.shard_map(
            step,
            mesh=data_mesh(),
            in_specs=(jax.P(), jax.P("data")),
            out_specs=jax.P(),
        )
    return jax.jit(step).lower(state, batch).compile()


@pytest.mark.parametrize("recompute", [True, False])
def test_devices_reduce_once_per_step_however_many_micro_batches(batch, recompute):
    method = augmented(regression("data"), view, "data")
    whole = compiled(method, 1, True, batch, "data").as_text()
    split = compiled(method, 6, recompute, batch, "data").as_text()
    assert "while(" in split
    assert split.count(" all-reduce(") == whole.count(" all-reduce(") == 1
    # In the program itself, not in the body of its loop.
    entry = split[split.index("\nENTRY ") :]
    assert entry[: entry.index("\n}")].count(" all-reduce(") == 1


@pytest.mark.parametrize("recompute", [True, False])
def test_memory_is_that_of_one_micro_batch(recompute):
    wide = nn.Sequential([f for _ in range(4) for f in (nn.Dense(64), nn.tanh)])

    def loss(params, model_state, batch, key):
        value = jnp.mean(jnp.square(wide.apply(params, batch["x"])))
        return value, (model_state, {})

    method = Method(lambda key, b: (wide.init(key, b["x"]), {}), loss, lambda *_: None)
    batch = {"x": jnp.ones((8192, 4))}
    whole = compiled(method, 1, True, batch).memory_analysis().temp_size_in_bytes
    split = compiled(method, 16, recompute, batch).memory_analysis().temp_size_in_bytes
    assert split < whole / 8


@pytest.mark.parametrize("recompute, survives", [(True, True), (False, False)])
def test_loss_scale_reaches_every_micro_batch_only_if_it_is_recomputed(
    recompute, survives
):
    """2**-30 is nothing in float16; 2**-30 * 2**20 is something."""

    def loss(params, model_state, batch, key):
        y = (batch["x"].astype(jnp.float16) * params["w"].astype(jnp.float16)) * 2**-15
        value = jnp.mean(y.astype(jnp.float32)) * 2**-15
        return value, (model_state, {})

    method = accumulated(Method(None, loss, None), 2, recompute=recompute)
    batch, scale = {"x": jnp.ones(4)}, 2.0**20

    def scaled(params):
        return scale * method.loss(params, {}, batch, jax.random.key(0))[0]

    grad = jax.grad(scaled)({"w": jnp.float32(1)})["w"]
    assert bool(grad == 2.0**-10) == survives


def linear(change):
    """A loss that is a mean, and a model state that `change` makes."""

    def loss(params, model_state, batch, key):
        value = jnp.mean(params * batch["x"])
        return value, (change(model_state, batch), {})

    return Method(None, loss, None)


def run(method, model_state):
    batch = {"x": jnp.arange(6.0)}
    _, (after, _) = method.loss(jnp.ones(()), model_state, batch, jax.random.key(0))
    return after


def test_centre_moves_once_by_the_mean():
    method = linear(lambda s, b: {"centre": 0.9 * s["centre"] + 0.1 * b["x"].mean()})
    split = accumulated(method, 3, merge={"centre": average})
    before = {"centre": jnp.float32(2)}
    assert_same(run(split, before), {"centre": 0.9 * 2 + 0.1 * 2.5})
    half = {"centre": jnp.bfloat16(2)}
    assert run(split, half)["centre"].dtype == jnp.bfloat16


def test_innermost_name_gives_the_rule():
    def change(state, batch):
        return {
            "teacher": {"batch_stats": batch["x"].mean(), "count": batch["x"].max()}
        }

    rules = {"teacher": Merge(lambda old, new, n: new, lambda old, parts: parts.max())}
    before = {"teacher": {"batch_stats": jnp.zeros(()), "count": jnp.zeros(())}}
    after = run(accumulated(linear(change), 2, merge=rules), before)
    assert_same(after, {"teacher": {"batch_stats": 2.5, "count": 5.0}})


def test_rule_is_told_the_samples_of_a_micro_batch(batch):
    seen = []

    def take(old, new, samples):
        seen.append(samples)
        return new

    rule = Merge(take, lambda old, parts: parts[0])

    def build(axis):
        return accumulated(
            augmented(moco(axis), two_views, axis), 2, axis, merge={"queue": rule}
        )

    train(build, batch, devices=8, num_steps=1)
    assert set(seen) == {SIZE // 2}


@pytest.mark.parametrize("k", [0, -1])
def test_number_of_micro_batches_must_be_positive(k):
    with pytest.raises(ValueError, match=f"at least 1, got {k}"):
        accumulated(regression(), k)


def test_one_micro_batch_is_the_method_itself():
    method = regression()
    assert accumulated(method, 1) is method


@pytest.mark.parametrize("x", [jnp.ones(6), jnp.ones(())])
def test_batch_that_does_not_divide_is_refused(x):
    method = accumulated(linear(lambda s, b: s), 4)
    with pytest.raises(ValueError, match="must divide the batch of a device, got 4"):
        method.loss(jnp.ones(()), {}, {"x": x}, jax.random.key(0))


def test_change_without_a_rule_is_refused():
    """Averaging a queue, or keeping one micro-batch's, would go unnoticed."""
    split = accumulated(linear(lambda s, b: {**s, "queue": s["queue"] + 1}), 2)
    with pytest.raises(ValueError, match=r"rule in `merge`, got \['queue'\]"):
        run(split, {"queue": jnp.zeros(3), "teacher": jnp.zeros(2)})


def test_average_of_integers_is_refused():
    split = accumulated(linear(lambda s, b: {"batch_stats": s["batch_stats"] + 1}), 2)
    with pytest.raises(TypeError, match="floating-point state, got int32"):
        run(split, {"batch_stats": jnp.zeros((), jnp.int32)})


def test_model_state_of_another_structure_is_refused():
    split = accumulated(linear(lambda s, b: {**s, "new": s["old"]}), 2)
    with pytest.raises(ValueError, match="keep the structure of the model state"):
        run(split, {"old": jnp.zeros(())})


def test_augmented_views_do_not_depend_on_the_devices(batch):
    def build(axis):
        return augmented(simclr_of(axis), two_views, axis)

    expected, _ = train(build, batch, num_steps=1, optimizer=optax.sgd(0.1))
    actual, _ = train(build, batch, 8, num_steps=1, optimizer=optax.sgd(0.1))
    assert_same(actual, expected, 2e-5)


def test_augmented_makes_floats_of_bytes_for_loss_and_predict():
    image = np.full((4, 2, 2, 1), 255, np.uint8)

    def loss(params, model_state, batch, key):
        return jnp.mean(batch["view"]), (model_state, {})

    def predict(params, model_state, batch):
        return batch["image"]

    method = Method(lambda key, b: (b["view"], {}), loss, predict)
    method = augmented(method, lambda key, x: {"view": x / 2})
    key = jax.random.key(0)
    assert method.loss((), {}, {"image": image}, key)[0] == 0.5
    assert method.init(key, {"image": image})[0].shape == image.shape
    np.testing.assert_array_equal(method.predict((), {}, {"image": image}), 1.0)


def test_augmented_views_may_be_of_an_image_and_its_labels(rng):
    """Both are moved alike, with one key for each sample; other arrays are kept."""

    def views(key, image, label):
        shift = jax.random.randint(key, (), 0, 5)
        return {"image": jnp.roll(image, shift, 0), "label": jnp.roll(label, shift, 0)}

    seen = {}

    def loss(params, model_state, batch, key):
        seen.update(batch)
        return jnp.float32(0), ({}, {})

    label = rng.integers(0, 255, (6, 5, 2)).astype(np.uint8)
    batch = {"image": label[..., None], "label": label, "other": jnp.arange(6)}
    method = Method(lambda key, b: (b["label"], {}), loss, lambda *_: None)
    method = augmented(method, views, inputs=("image", "label"))
    method.loss((), {}, batch, jax.random.key(0))
    moved = seen["label"]
    np.testing.assert_allclose(seen["image"][..., 0] * 255, moved, atol=1e-4)
    np.testing.assert_array_equal(seen["other"], np.arange(6))
    shifts = [
        next(k for k in range(5) if (np.roll(a, k, 0) == b).all())
        for a, b in zip(label, np.asarray(moved), strict=True)
    ]
    assert len(set(shifts)) > 1
