"""Residual networks: sizes of the literature, strides, options."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.nn import apply_module, init_module, resnet18, resnet34, resnet50, resnet101
from jaxml.nn.resnet import ResNet


def count(module, size=64):
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    init = lambda x: module.init(jax.random.key(0), x, train=True)["params"]
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(init, images)))


@pytest.mark.parametrize(
    "module, parameters",
    [
        (resnet18(num_classes=1000), 11_689_512),
        (resnet34(num_classes=1000), 21_797_672),
        (resnet50(num_classes=1000), 25_557_032),
        (resnet101(num_classes=1000), 44_549_160),
        (resnet50(num_classes=1000, groups=32, width_per_group=4), 25_028_904),
        (resnet50(num_classes=1000, width_per_group=128), 68_883_240),
        (resnet18(stem="cifar"), 11_168_832),
    ],
    ids=["18", "34", "50", "101", "resnext50", "wide50", "cifar18"],
)
def test_parameters_are_those_of_the_literature(module, parameters):
    assert count(module) == parameters


def tiny(**options):
    return ResNet(stage_sizes=(1, 1, 1, 1), block="basic", width=4, **options)


def test_pyramid_halves_from_stage_to_stage(rng):
    x = rng.normal(size=(2, 64, 48, 3)).astype(np.float32)
    module = tiny()
    variables = module.init(jax.random.key(0), x, train=True)
    levels = module.apply(variables, x, train=False, method="pyramid")
    assert {name: level.shape for name, level in levels.items()} == {
        "c2": (2, 16, 12, 4),
        "c3": (2, 8, 6, 8),
        "c4": (2, 4, 3, 16),
        "c5": (2, 2, 2, 32),
    }
    features = module.apply(variables, x, train=False)
    chex.assert_trees_all_close(features, levels["c5"].mean((1, 2)), rtol=1e-5)


def test_dilation_keeps_the_resolution(rng):
    x = rng.normal(size=(1, 64, 64, 3)).astype(np.float32)
    module = tiny(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4))
    variables = module.init(jax.random.key(0), x, train=True)
    levels = module.apply(variables, x, train=False, method="pyramid")
    assert levels["c5"].shape == (1, 8, 8, 32)


def test_zero_init_makes_every_block_its_shortcut(rng):
    x = rng.normal(size=(2, 8, 8, 3)).astype(np.float32)
    module = ResNet(
        (2, 1, 1, 1), "basic", width=4, stem="cifar", zero_init_residual=True
    )
    variables = module.init(jax.random.key(0), x, train=True)
    y = module.apply(variables, x, train=False, method="pyramid")["c2"]
    stem = module.apply(
        variables,
        x,
        train=False,
        method=lambda m, x, train: jax.nn.relu(m.conv1(x, train=train)),
    )
    chex.assert_trees_all_close(y, stem, rtol=1e-5)


def test_training_moves_statistics_and_stays_finite(rng):
    x = rng.normal(size=(4, 16, 16, 3)).astype(np.float32)
    module = tiny(stem="cifar", dtype=jnp.bfloat16)
    params, state = init_module(module, jax.random.key(0), x, train=True)

    def loss(params):
        y, after = apply_module(module, params, state, x, train=True)
        return jnp.mean(jnp.square(y.astype(jnp.float32))), after

    grads, after = jax.jit(jax.grad(loss, has_aux=True))(params)
    chex.assert_tree_all_finite((grads, after))
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), state, after)
    assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"block": "wide"}, "basic or bottleneck|block"),
        ({"stem": "mnist"}, "imagenet or cifar|stem"),
        ({"strides": (1, 2)}, "strides must be four"),
        ({"groups": 2}, "options of the bottleneck"),
    ],
)
def test_bad_options_are_refused(options, message):
    options = {"stage_sizes": (1, 1, 1, 1), "block": "basic", **options}
    with pytest.raises(Exception, match=message):
        ResNet(**options).init(jax.random.key(0), jnp.ones((1, 8, 8, 3)), train=True)
