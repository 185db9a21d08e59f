"""ResNet: its published sizes, its blocks by hand, its options, and eight devices."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jaxml.nn.conv import convolve
from jaxml.nn.norm import FrozenBatchNorm
from jaxml.nn.resnet import (
    ResNet,
    dilated,
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
)
from jaxml.parallel.mesh import data_mesh


def abstract(module, size=(2, 64, 64, 3)):
    """Shapes of the variables, without computing anything."""
    images = jnp.ones(size)
    init = lambda: module.init(jax.random.key(0), images, train=True)
    return jax.eval_shape(init), images


def tiny(block="basic", sizes=(1, 1, 1, 1), **options):
    return ResNet(sizes, block, stem="cifar", width=8, **options)


@pytest.mark.parametrize(
    "module, count",  # the published counts, of torchvision's documentation
    [
        (resnet18(num_classes=1000), 11_689_512),
        (resnet34(num_classes=1000), 21_797_672),
        (resnet50(num_classes=1000), 25_557_032),
        (resnet101(num_classes=1000), 44_549_160),
        (resnet152(num_classes=1000), 60_192_808),
        (resnet50(num_classes=1000, groups=32, width_per_group=4), 25_028_904),
        (resnet101(num_classes=1000, groups=32, width_per_group=8), 88_791_336),
        (resnet50(num_classes=1000, width_per_group=128), 68_883_240),
        (resnet18(stem="cifar"), 11_168_832),
    ],
)
def test_parameter_counts(module, count):
    variables, _ = abstract(module)
    assert sum(p.size for p in jax.tree.leaves(variables["params"])) == count


@pytest.mark.parametrize(
    "module, size, expected",
    [
        (resnet18(), (65, 47), [(17, 12), (9, 6), (5, 3), (3, 2)]),
        (resnet50(), (64, 96), [(16, 24), (8, 12), (4, 6), (2, 3)]),
        (resnet18(stem="cifar"), (32, 28), [(32, 28), (16, 14), (8, 7), (4, 4)]),
        (
            resnet50(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)),
            (64, 64),
            [(16, 16), (8, 8), (8, 8), (8, 8)],
        ),
    ],
)
def test_pyramid_shapes(module, size, expected):
    variables, images = abstract(module, (2, *size, 3))
    pyramid = jax.eval_shape(
        lambda v: module.apply(v, images, train=False, method="pyramid"), variables
    )
    expansion = 1 if module.block == "basic" else 4
    chex.assert_shape(
        list(pyramid.values()),
        [(2, *hw, 64 * expansion * 2**i) for i, hw in enumerate(expected)],
    )
    assert list(pyramid) == ["c2", "c3", "c4", "c5"]
    features = jax.eval_shape(lambda v: module.apply(v, images, train=False), variables)
    chex.assert_shape(features, (2, 512 * expansion))


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_is_its_blocks_in_order(rng, block):
    """The whole forward pass by hand; norms are all but the identity at the start."""
    images = rng.normal(size=(2, 9, 8, 3)).astype(np.float32)
    module = tiny(block, num_classes=3)
    variables = jax.jit(lambda: module.init(jax.random.key(0), images, train=True))()
    params = variables["params"]

    def conv(x, layer, stride=1):
        y = convolve(x, layer["conv"]["kernel"], stride=stride)
        return y / np.sqrt(1 + 1e-5)

    x = jax.nn.relu(conv(images, params["conv1"]))
    for stage, stride in enumerate((1, 2, 2, 2)):
        layers = params[f"stages_{stage}_0"]
        if block == "basic":
            y = conv(jax.nn.relu(conv(x, layers["conv1"], stride)), layers["conv2"])
        else:
            y = jax.nn.relu(conv(x, layers["conv1"]))
            y = jax.nn.relu(conv(y, layers["conv2"], stride))
            y = conv(y, layers["conv3"])
        assert ("shortcut" in layers) == (x.shape != y.shape)
        x = conv(x, layers["shortcut"], stride) if "shortcut" in layers else x
        x = jax.nn.relu(x + y)
    expected = x.mean((1, 2)) @ params["head"]["kernel"]
    actual = module.apply(variables, images, train=False)
    chex.assert_trees_all_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_zero_init_residual_starts_as_the_shortcut(rng):
    images = rng.normal(size=(2, 6, 6, 3)).astype(np.float32)
    module = tiny(sizes=(3, 1, 1, 1), zero_init_residual=True)
    variables = jax.jit(lambda: module.init(jax.random.key(0), images, train=True))()
    scales = variables["params"]["stages_0_0"]
    assert not scales["conv2"]["norm"]["scale"].any()
    assert scales["conv1"]["norm"]["scale"].all()
    pyramid = module.apply(variables, images, train=False, method="pyramid")
    stem = convolve(images, variables["params"]["conv1"]["conv"]["kernel"])
    expected = jax.nn.relu(stem) / np.sqrt(1 + 1e-5)
    chex.assert_trees_all_close(pyramid["c2"], expected, rtol=1e-5, atol=1e-6)


def make_step(module, axis_name=None):
    optimizer = optax.sgd(0.05)

    def step(variables, images, labels):
        def objective(params):
            logits, state = module.apply(
                {**variables, "params": params},
                images,
                train=True,
                mutable=["batch_stats"],
            )
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            loss = jnp.mean(loss.astype(jnp.float32))
            loss = loss if axis_name is None else jax.lax.pmean(loss, axis_name)
            return loss, state

        (loss, state), grads = jax.value_and_grad(objective, has_aux=True)(
            variables["params"]
        )
        params = variables["params"]
        updates, _ = optimizer.update(grads, optimizer.init(params), params)
        return {"params": optax.apply_updates(params, updates), **state}, loss

    return step


@pytest.fixture
def batch(rng):
    labels = np.arange(16) % 4
    images = rng.normal(size=(16, 8, 8, 3)) + labels[:, None, None, None]
    return images.astype(np.float32), labels


def test_it_learns_and_traces_once(batch):
    module = tiny(num_classes=4)
    start = jax.jit(lambda: module.init(jax.random.key(0), batch[0], train=True))()
    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(make_step(module), n=1))
    variables, losses = start, []
    for _ in range(30):
        variables, loss = step(variables, *batch)
        losses.append(float(loss))
    chex.assert_tree_all_finite(variables)
    assert losses[-1] < 0.3 * losses[0], losses
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), start, variables)
    assert all(jax.tree.leaves(moved)), moved


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_eight_devices_equal_one(batch, block):
    module = tiny(block, num_classes=4)
    variables = jax.jit(lambda: module.init(jax.random.key(0), batch[0], train=True))()
    expected = jax.jit(make_step(module))(variables, *batch)
    sharded = make_step(tiny(block, num_classes=4, axis_name="data"), "data")
    many = jax.shard_map(
        sharded,
        mesh=data_mesh(),
        in_specs=(P(), P("data"), P("data")),
        out_specs=P(),
    )
    actual = jax.jit(many)(variables, *batch)
    chex.assert_trees_all_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_bfloat16_is_finite_and_close(batch):
    wide, narrow = tiny(num_classes=4), tiny(num_classes=4, dtype=jnp.bfloat16)
    variables = jax.jit(lambda: wide.init(jax.random.key(0), batch[0], train=True))()
    new, loss = jax.jit(make_step(wide))(variables, *batch)
    new16, loss16 = jax.jit(make_step(narrow))(variables, *batch)
    chex.assert_trees_all_equal_dtypes(new, new16)
    chex.assert_tree_all_finite(new16)
    assert abs(float(loss16) / float(loss) - 1) < 0.05
    step = lambda new: optax.tree.sub(new["params"], variables["params"])
    error = optax.tree.norm(optax.tree.sub(step(new), step(new16)))
    assert error < 0.3 * optax.tree.norm(step(new))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"stem": "mnist"}, "stem must be imagenet or cifar"),
        ({"groups": 2}, "options of the bottleneck"),
        ({"strides": (1, 2, 2)}, "strides must be four"),
        ({"stage_sizes": (1, 1, 1, 1, 1)}, "stage_sizes must be four"),
        ({"block": "wide"}, "block must be basic or bottleneck"),
    ],
)
def test_rejects_what_it_cannot_build(options, message):
    module = ResNet(**{"stage_sizes": (1, 1, 1, 1), "block": "basic"} | options)
    with pytest.raises(ValueError, match=message):
        module.init(jax.random.key(0), jnp.ones((1, 8, 8, 3)), train=False)


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_dilation_keeps_resolution(stride):
    model = resnet18(width=4, norm=FrozenBatchNorm, **dilated(stride))
    shapes = jax.eval_shape(
        lambda x: model.init_with_output(
            jax.random.key(0), x, train=True, method="pyramid"
        )[0],
        jnp.zeros((1, 64, 96, 3)),
    )
    assert shapes["c5"].shape == (1, 64 // stride, 96 // stride, 32)
    assert shapes["c3"].shape == (1, 8, 12, 8)


def test_other_output_strides_are_refused():
    with pytest.raises(ValueError, match="must be 8, 16 or 32, got 4"):
        dilated(4)
