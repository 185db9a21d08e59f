"""The vision transformer against float64 NumPy, its options, and eight devices."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxml.nn.vit import (
    VisionTransformer,
    sincos_positions,
    vit_base,
    vit_huge,
    vit_large,
    vit_small,
    vit_tiny,
)
from jaxml.parallel.mesh import data_mesh


def tiny(**options):
    sizes = {"image_size": (6, 8), "patch_size": 2, "width": 12, "depth": 2, "heads": 3}
    return VisionTransformer(**sizes | options)


def random_variables(rng, module, images):
    """Parameters of order one, so that nothing is too small to matter."""
    variables = jax.jit(lambda: module.init(jax.random.key(0), images, train=False))()
    return jax.tree.map(
        lambda p: jnp.asarray(p + 0.3 * rng.normal(size=p.shape), jnp.float32),
        variables,
    )


def numpy_vit(params, images, patch_size, depth, heads, class_token, position):
    """Tokens after the final norm, one image and one head at a time."""
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    erf = np.vectorize(math.erf)

    def norm(x, layer):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
        return x * layer["scale"] + layer["bias"]

    def dense(x, layer):
        return x @ layer["kernel"] + layer["bias"]

    def attention(x, layer):
        q, k, v = np.split(dense(x, layer["qkv"]), 3, axis=-1)
        size = x.shape[-1] // heads
        outputs = []
        for h in range(heads):
            own = slice(h * size, (h + 1) * size)
            weights = np.exp(q[:, own] @ k[:, own].T / np.sqrt(size))
            outputs.append(weights / weights.sum(-1, keepdims=True) @ v[:, own])
        return dense(np.concatenate(outputs, -1), layer["out"])

    def mlp(x, layer):
        x = dense(x, layer["dense1"])
        return dense(x * (1 + erf(x / np.sqrt(2))) / 2, layer["dense2"])

    def one(image):
        rows, columns = (n // patch_size for n in image.shape[:2])
        patches = [
            image[i * patch_size :, j * patch_size :][:patch_size, :patch_size].ravel()
            for i in range(rows)
            for j in range(columns)
        ]
        x = dense(np.stack(patches), params["patch_embed"])
        if class_token:
            x = np.concatenate([params["class"][None], x])
        x = x + position
        for i in range(depth):
            block = params[f"blocks_{i}"]
            x = x + attention(norm(x, block["norm1"]), block["attention"])
            x = x + mlp(norm(x, block["norm2"]), block["mlp"])
        return norm(x, params["norm"])

    return np.stack([one(image) for image in images.astype(np.float64)])


def numpy_sincos(height, width, features):
    rows = []
    for y in range(height):
        for x in range(width):
            w = [10000.0 ** (-i / (features // 4)) for i in range(features // 4)]
            row = [math.sin(x * f) for f in w] + [math.cos(x * f) for f in w]
            row += [math.sin(y * f) for f in w] + [math.cos(y * f) for f in w]
            rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("size", [(1, 1, 4), (3, 4, 12), (7, 2, 32)])
def test_sincos_matches_loops(size):
    actual = sincos_positions(*size)
    assert actual.dtype == np.float32
    chex.assert_trees_all_close(actual, numpy_sincos(*size), atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"class_token": False, "pool": "mean"},
        {"position": "sincos"},
        {"position": "sincos", "pool": "mean", "num_classes": 5},
    ],
)
def test_matches_numpy(rng, options):
    images = rng.normal(size=(2, 6, 8, 3)).astype(np.float32)
    module = tiny(**options)
    variables = random_variables(rng, module, images)
    params = variables["params"]
    if module.position == "learned":
        position = np.asarray(params["position"], np.float64)
    else:
        assert "position" not in params
        position = numpy_sincos(3, 4, 12)
        position = np.pad(position, ((int(module.class_token), 0), (0, 0)))
    expected = numpy_vit(params, images, 2, 2, 3, module.class_token, position)
    tokens = module.apply(variables, images, train=False, method="tokens")
    chex.assert_trees_all_close(tokens, expected, rtol=1e-4, atol=1e-4)
    features = expected[:, 0]
    if module.pool == "mean":
        features = expected[:, int(module.class_token) :].mean(1)
    if module.num_classes is not None:
        head = params["head"]
        features = features @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    actual = module.apply(variables, images, train=False)
    chex.assert_trees_all_close(actual, features, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "make, patch, count",  # as timm counts them, with a head of 1000 classes
    [
        (vit_tiny, 16, 5_717_416),
        (vit_small, 16, 22_050_664),
        (vit_base, 16, 86_567_656),
        (vit_large, 16, 304_326_632),
        (vit_huge, 14, 632_045_800),
    ],
)
def test_parameter_counts(make, patch, count):
    module = make(patch_size=patch, num_classes=1000)
    images = jnp.ones((1, 224, 224, 3))
    init = lambda: module.init(jax.random.key(0), images, train=False)
    params = jax.eval_shape(init)["params"]
    assert sum(p.size for p in jax.tree.leaves(params)) == count


def test_initialisation_is_xavier_of_each_square():
    module = VisionTransformer(image_size=4, patch_size=2, width=128, depth=1, heads=2)
    variables = module.init(jax.random.key(0), jnp.ones((1, 4, 4, 3)), train=False)
    block = variables["params"]["blocks_0"]
    for kernel, fans in [
        (block["attention"]["qkv"]["kernel"], 128 + 128),
        (block["attention"]["out"]["kernel"], 128 + 128),
        (block["mlp"]["dense1"]["kernel"], 128 + 512),
    ]:
        assert abs(float(jnp.max(jnp.abs(kernel))) / np.sqrt(6 / fans) - 1) < 0.01


def test_without_positions_the_patches_are_a_set(rng):
    images = rng.normal(size=(1, 6, 8, 3)).astype(np.float32)
    module = tiny(class_token=False, pool="mean")
    variables = random_variables(rng, module, images)
    blind = jax.tree.map(jnp.copy, variables)
    blind["params"]["position"] = jnp.zeros_like(variables["params"]["position"])
    swapped = np.concatenate([images[:, 2:4], images[:, :2], images[:, 4:]], axis=1)
    apply = lambda v, x: module.apply(v, x, train=False)
    chex.assert_trees_all_close(
        apply(blind, swapped), apply(blind, images), rtol=1e-4, atol=1e-5
    )
    assert jnp.max(jnp.abs(apply(variables, swapped) - apply(variables, images))) > 0.01


def test_stochastic_depth_grows_linearly_and_drops_whole_branches(rng):
    images = rng.normal(size=(1, 6, 8, 3)).astype(np.float32)
    module = tiny(depth=3, drop_path=0.4)
    variables = random_variables(rng, module, images)
    rates = [block.drop_path for block in module.bind(variables).blocks]
    assert rates == [0.0, 0.2, 0.4]

    module = tiny(drop_path=0.5)  # the first of two blocks is safe
    y = module.apply(
        random_variables(rng, module, images),
        images.repeat(64, 0),
        train=True,
        rngs={"dropout": jax.random.key(0)},
    )
    assert len(np.unique(np.round(np.asarray(y[:, 0]), 4))) == 4  # two branches


def test_dropout_is_the_same_on_eight_devices(rng):
    images = rng.normal(size=(16, 6, 8, 3)).astype(np.float32)
    variables = random_variables(rng, tiny(), images)

    def gradient(axis_name):
        module = tiny(dropout=0.2, drop_path=0.3, axis_name=axis_name)

        def objective(params, images):
            rngs = {"dropout": jax.random.key(1)}
            y = module.apply({"params": params}, images, train=True, rngs=rngs)
            value = jnp.mean(jnp.sin(y))
            return value if axis_name is None else jax.lax.pmean(value, axis_name)

        return jax.value_and_grad(objective)

    many = jax.shard_map(
        gradient("data"), mesh=data_mesh(), in_specs=(P(), P("data")), out_specs=P()
    )
    expected = jax.jit(gradient(None))(variables["params"], images)
    actual = jax.jit(many)(variables["params"], images)
    chex.assert_trees_all_close(actual, expected, rtol=1e-4, atol=1e-6)
    module = tiny(dropout=0.2)
    noisy = module.apply(
        variables, images, train=True, rngs={"dropout": jax.random.key(1)}
    )
    still = module.apply(variables, images, train=False)
    assert jnp.max(jnp.abs(noisy - still)) > 0.1


def test_every_parameter_is_used_and_it_traces_once(rng):
    images = rng.normal(size=(2, 6, 8, 3)).astype(np.float32)
    module = tiny(num_classes=3)
    variables = random_variables(rng, module, images)
    chex.clear_trace_counter()
    gradient = jax.jit(
        jax.grad(
            chex.assert_max_traces(
                lambda v, x: jnp.sum(jnp.sin(module.apply(v, x, train=True))), n=1
            )
        )
    )
    for _ in range(2):
        grads = gradient(variables, images)
    chex.assert_tree_all_finite(grads)
    used = jax.tree.map(lambda g: float(jnp.max(jnp.abs(g))) > 1e-6, grads)
    assert all(jax.tree.leaves(used)), used


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_close(rng, dtype):
    images = rng.normal(size=(4, 6, 8, 3)).astype(np.float32)
    variables = tiny().init(jax.random.key(0), images, train=False)
    expected = tiny().apply(variables, images, train=False)
    actual = tiny(dtype=dtype).apply(variables, images, train=False)
    assert actual.dtype == dtype
    chex.assert_trees_all_close(
        actual.astype(np.float32), expected, rtol=0.05, atol=0.05
    )


@pytest.mark.parametrize(
    "options, message",
    [
        ({"patch_size": 4}, "patch_size must divide image_size"),
        ({"heads": 5}, "heads must divide width"),
        ({"pool": "max"}, "pool must be class or mean"),
        ({"class_token": False}, "no class token"),
        ({"position": "rotary"}, "position must be learned or sincos"),
        ({"image_size": 8}, "images must be 8 x 8 pixels"),
    ],
)
def test_rejects_what_it_cannot_build(options, message):
    with pytest.raises(ValueError, match=message):
        tiny(**options).init(jax.random.key(0), jnp.ones((1, 6, 8, 3)), train=False)


def test_sincos_rejects_odd_widths():
    with pytest.raises(ValueError, match="multiple of four"):
        sincos_positions(2, 2, 6)
