"""The vision transformer against float64 NumPy, its options, and eight devices."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxml.nn.positions import resize_positions, sincos_positions
from jaxml.nn.vit import (
    VisionTransformer,
    attention_maps,
    stack_blocks,
    unstack_blocks,
    vit_base,
    vit_huge,
    vit_large,
    vit_small,
    vit_tiny,
)
from jaxml.ops.patches import patchify
from jaxml.parallel.mesh import data_mesh
from tests.nn.test_positions import numpy_sincos


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
        if layer["dense2"]["kernel"].shape[0] < x.shape[-1]:
            gate, x = np.split(x, 2, axis=-1)
            return dense(gate / (1 + np.exp(-gate)) * x, layer["dense2"])
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
        if "registers" in params:
            x = np.concatenate([x[:class_token], params["registers"], x[class_token:]])
        for i in range(depth):
            block = params[f"blocks_{i}"]
            x = x + attention(norm(x, block["norm1"]), block["attention"])
            x = x + mlp(norm(x, block["norm2"]), block["mlp"])
        return norm(x, params["norm"])

    return np.stack([one(image) for image in images.astype(np.float64)])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"class_token": False, "pool": "mean"},
        {"position": "sincos"},
        {"position": "sincos", "pool": "mean", "num_classes": 5},
        {"registers": 3, "pool": "both", "num_classes": 5, "mlp": "swiglu"},
        {"registers": 2, "class_position": False, "pool": "mean"},
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
    first = int(module.class_token) + 3 * 4 - len(position)
    position = np.pad(position, ((first, 0), (0, 0)))
    expected = numpy_vit(params, images, 2, 2, 3, module.class_token, position)
    tokens = module.apply(variables, images, train=False, method="tokens")
    chex.assert_trees_all_close(tokens, expected, rtol=1e-4, atol=1e-4)
    features = expected[:, 0]
    if module.pool != "class":
        mean = expected[:, int(module.class_token) + module.registers :].mean(1)
        both = np.concatenate([features, mean], axis=1)
        features = mean if module.pool == "mean" else both
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
    many = images.repeat(2000, 0)
    y = module.apply(variables, many, train=True, rngs={"dropout": jax.random.key(0)})
    whole = module.apply(variables, images, train=False)
    # Untouched where no branch is dropped: twice of 0.8 and twice of 0.6. What stays is
    # scaled up, so compare those with most in common.
    _, counts = np.unique(np.round(np.asarray(y[:, 0]), 3), return_counts=True)
    assert abs(counts.max() / 2000 - 0.8**2 * 0.6**2) < 0.03
    assert len(counts) == 2**4
    assert np.isfinite(whole).all()

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
        ({"pool": "max"}, "pool must be class, mean or both"),
        ({"class_token": False}, "no class token"),
        ({"class_token": False, "pool": "both"}, "no class token"),
        ({"mlp": "relu"}, "kind must be gelu or swiglu"),
        ({"position": "rotary"}, "position must be learned, sincos or none"),
        ({"relative_position": "some"}, "relative_position must be shared or each"),
        ({"relative_position": "each", "any_size": True}, "must be of one size"),
        ({"relative_position": "shared", "registers": 1}, "and 1 registers"),
        ({"pool": "both", "pool_norm": True}, "must be class or mean with pool_norm"),
        ({"image_size": 8}, "images must be 8 x 8 pixels"),
    ],
)
def test_rejects_what_it_cannot_build(options, message):
    with pytest.raises(ValueError, match=message):
        tiny(**options).init(jax.random.key(0), jnp.ones((1, 6, 8, 3)), train=False)


@pytest.mark.parametrize("names", ["scan", "remat", "scan remat"])
def test_scan_and_remat_change_nothing(rng, names):
    options = dict.fromkeys(names.split(), True)
    images = np.float32(rng.normal(size=(2, 6, 8, 3)))
    plain, other = tiny(layer_scale=0.5), tiny(layer_scale=0.5, **options)
    params = random_variables(rng, plain, images)["params"]
    ours = stack_blocks(params) if other.scan else params
    shapes = jax.eval_shape(
        lambda: other.init(jax.random.key(0), images, train=False)["params"]
    )
    chex.assert_trees_all_equal_shapes(shapes, ours)

    def gradient(module):
        run = lambda p: jnp.sum(
            jnp.sin(module.apply({"params": p}, images, train=True))
        )
        return jax.jit(jax.value_and_grad(run))

    actual, grads = gradient(other)(ours)
    expected, wanted = gradient(plain)(params)
    grads = unstack_blocks(grads) if other.scan else grads
    chex.assert_trees_all_close(
        (actual, grads), (expected, wanted), rtol=1e-4, atol=1e-5
    )


def test_scan_draws_other_noise_in_every_block(rng):
    images = np.float32(rng.normal(size=(1, 6, 8, 3))).repeat(2000, 0)
    module = tiny(depth=3, drop_path=0.4, scan=True)
    variables = random_variables(rng, module, images[:1])
    y = module.apply(variables, images, train=True, rngs={"dropout": jax.random.key(0)})
    _, counts = np.unique(np.round(np.asarray(y[:, 0]), 3), return_counts=True)
    assert len(counts) == 2**4
    assert abs(counts.max() / 2000 - 0.8**2 * 0.6**2) < 0.03


def test_scan_compiles_one_block(rng):
    images = jnp.ones((1, 6, 8, 3))

    def size(depth):
        module = tiny(depth=depth, scan=True)
        init = lambda: module.init(jax.random.key(0), images, train=False)
        variables = jax.eval_shape(init)
        run = lambda v: module.apply(v, images, train=False)
        return len(jax.jit(run).lower(variables).as_text().splitlines())

    assert size(12) == size(2)


def test_remat_keeps_less():
    images = jax.ShapeDtypeStruct((8, 32, 32, 3), jnp.float32)

    def temporary(**options):
        sizes = {"image_size": 32, "patch_size": 4, "width": 64, "depth": 8, "heads": 2}
        module = VisionTransformer(**sizes, **options)
        init = lambda: module.init(
            jax.random.key(0), jnp.ones(images.shape), train=False
        )
        run = lambda v, x: jnp.sum(module.apply(v, x, train=True) ** 2)
        made = jax.jit(jax.grad(run)).lower(jax.eval_shape(init), images).compile()
        return made.memory_analysis().temp_size_in_bytes

    assert temporary(scan=True, remat=True) < 0.5 * temporary(scan=True)


@pytest.mark.parametrize("position", ["learned", "sincos"])
def test_any_size_resamples_positions(rng, position):
    """At its own size nothing changes; at another, it is a model of that size."""
    module = tiny(any_size=True, position=position)
    images = np.float32(rng.normal(size=(2, 6, 8, 3)))
    variables = random_variables(rng, module, images)
    run = lambda m, x, v=variables: m.apply(v, x, train=False)
    chex.assert_trees_all_equal(
        run(module, images), run(module.clone(any_size=False), images)
    )
    large = np.float32(rng.normal(size=(2, 10, 4, 3)))
    there = (3, 4), (5, 2)
    if position == "learned":
        positions = resize_positions(variables["params"]["position"], *there)
    else:
        table = np.pad(sincos_positions(3, 4, 12), ((1, 0), (0, 0)))
        positions = resize_positions(table, *there)
    moved = {"params": {**variables["params"], "position": positions}}
    of_that_size = tiny(image_size=(10, 4))
    chex.assert_trees_all_close(
        run(module, large), run(of_that_size, large, moved), rtol=1e-5, atol=1e-6
    )
    with pytest.raises(ValueError, match="images must be 6 x 8 pixels"):
        run(tiny(position=position), large)
    with pytest.raises(ValueError, match=r"images must be 6 x 8 pixels .* \(2, 7, 8"):
        run(module, np.zeros((2, 7, 8, 3), np.float32))


def test_layer_scale_starts_small_and_scales_branches(rng):
    images = np.float32(rng.normal(size=(2, 6, 8, 3)))
    module = tiny(layer_scale=1e-5)
    variables = module.init(jax.random.key(0), images, train=False)
    block = variables["params"]["blocks_0"]
    chex.assert_trees_all_equal(block["scale1"], jnp.full(12, 1e-5))
    zero = jax.tree.map(jnp.copy, variables)
    for name in ("blocks_0", "blocks_1"):
        for scale in ("scale1", "scale2"):
            zero["params"][name][scale] = jnp.zeros(12)
    near, none = (module.apply(v, images, train=False) for v in (variables, zero))
    assert 0 < jnp.max(jnp.abs(near - none)) < 0.01


@pytest.mark.parametrize("scan", [False, True])
def test_attention_maps_are_softmax_weights(rng, scan):
    images = np.float32(rng.normal(size=(2, 6, 8, 3)))
    module = tiny(scan=scan)
    params = random_variables(rng, module, images)["params"]
    maps = jax.jit(lambda p: attention_maps(module, p, images))(params)
    chex.assert_shape(maps, (2, 2, 3, 13, 13))
    chex.assert_trees_all_close(maps.sum(-1), np.ones((2, 2, 3, 13)), rtol=1e-5)
    # The first block's, by hand.
    p = unstack_blocks(params) if scan else params
    bound = tiny().bind({"params": p})
    first = jnp.broadcast_to(p["class"], (2, 1, 12))
    x = jnp.concatenate([first, bound.patch_embed(patchify(images, 2))], axis=1)
    x = np.asarray(x + p["position"][None], np.float64)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    block = jax.tree.map(np.asarray, p["blocks_0"])
    x = x * block["norm1"]["scale"] + block["norm1"]["bias"]
    layer = block["attention"]["qkv"]
    q, k, _ = np.split(x @ layer["kernel"] + layer["bias"], 3, axis=-1)
    q, k = (y.reshape(2, 13, 3, 4) for y in (q, k))
    logits = np.einsum("btnh,bsnh->bnts", q, k) / 2
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    expected = weights / weights.sum(-1, keepdims=True)
    chex.assert_trees_all_close(maps[0], expected, rtol=1e-3, atol=1e-5)


def test_stacking_tells_what_it_wants(rng):
    with pytest.raises(
        ValueError, match=r"params must have blocks_0, \.\.\., got norm"
    ):
        stack_blocks({"norm": {}})
    with pytest.raises(ValueError, match="params must have blocks, got norm"):
        unstack_blocks({"norm": {}})


@pytest.mark.parametrize("kind", ["shared", "each"])
def test_relative_positions_bias_attention(rng, kind):
    """By loops over distances in every block, and alike when blocks are scanned."""
    images = rng.normal(size=(2, 6, 8, 3)).astype(np.float32)
    seen = []

    def watched(q, k, v, bias):
        seen.append(bias)
        return v

    module = tiny(position="none", relative_position=kind, attention=watched)
    variables = random_variables(
        rng, tiny(position="none", relative_position=kind), images
    )
    table = np.asarray(variables["params"]["relative"])
    assert table.shape == (1 if kind == "shared" else 2, 5 * 7 + 3, 3)
    assert "position" not in variables["params"]
    module.apply(variables, images, train=False)
    for block, bias in enumerate(seen):
        own = table[0 if kind == "shared" else block]
        for q in range(13):
            for k in range(13):
                if q and k:
                    (y1, x1), (y2, x2) = (divmod(n - 1, 4) for n in (q, k))
                    row = (y1 - y2 + 2) * 7 + x1 - x2 + 3
                else:
                    row = 35 + (2 if q == k else 1 if q else 0)
                chex.assert_trees_all_equal(bias[0, :, q, k], own[row])
    assert len(seen) == 2
    options = {"position": "none", "relative_position": kind}
    plain = jax.jit(lambda v: tiny(**options).apply(v, images, train=False))(variables)
    stacked = {"params": stack_blocks(variables["params"])}
    scanned = tiny(**options, scan=True, remat=True)
    again = jax.jit(lambda v: scanned.apply(v, images, train=False))(stacked)
    chex.assert_trees_all_close(again, plain, rtol=1e-4, atol=1e-5)
    flat = {"params": {**variables["params"], "relative": 0 * table}}
    assert np.abs(tiny(**options).apply(flat, images, train=False) - plain).max() > 0.01


def test_a_mask_token_gets_positions_and_kept_patches_their_own(rng):
    images = rng.normal(size=(2, 6, 8, 3)).astype(np.float32)
    module = tiny(registers=1, depth=1)
    variables = random_variables(rng, module, images)
    token = jnp.asarray(rng.normal(size=12), jnp.float32)
    hidden = jnp.asarray(rng.uniform(size=(2, 12)) < 0.5)

    def run(images, **options):
        return module.apply(variables, images, train=False, method="tokens", **options)

    where = np.repeat(np.repeat(np.reshape(hidden, (2, 3, 4)), 2, 1), 2, 2)[..., None]
    covered = run(images, hidden=hidden, mask_token=token)
    other = np.where(where, 7.0, images).astype(np.float32)
    chex.assert_trees_all_equal(run(other, hidden=hidden, mask_token=token), covered)
    rows = np.asarray(covered)[0, 2:][np.asarray(hidden[0])]
    assert np.abs(rows[1:] - rows[:1]).max() > 1e-3
    every = run(images)
    order = np.stack([rng.permutation(12) for _ in range(2)])
    shuffled = run(images, keep=jnp.asarray(order))
    patches = np.stack([np.asarray(every)[b, 2:][order[b]] for b in range(2)])
    chex.assert_trees_all_close(shuffled[:, 2:], patches, rtol=1e-4, atol=1e-5)
    assert run(images, keep=jnp.asarray(order[:, :5])).shape == (2, 2 + 5, 12)
    with pytest.raises(ValueError, match="keep must be None where positions are"):
        tiny(relative_position="shared").init(
            jax.random.key(0), images, train=False, keep=order, method="tokens"
        )


def test_the_norm_can_stand_behind_the_pool(rng):
    images = rng.normal(size=(2, 6, 8, 3)).astype(np.float32)
    module = tiny(pool="mean", pool_norm=True, depth=1)
    variables = random_variables(rng, module, images)
    y = module.apply(variables, images, train=False)
    x = module.apply(variables, images, train=False, method="tokens")
    x = np.asarray(x[:, 1:], np.float64).mean(1)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    norm = variables["params"]["norm"]
    expected = x * np.asarray(norm["scale"]) + np.asarray(norm["bias"])
    chex.assert_trees_all_close(y, expected, rtol=1e-4, atol=1e-4)
