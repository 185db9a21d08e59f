"""The vision transformer: patches, positions, pooling, sizes of the literature."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.nn import sincos_positions, vit_base, vit_small, vit_tiny
from jaxml.nn.vit import VisionTransformer


def tiny(**options):
    options = {
        "image_size": 8,
        "patch_size": 4,
        "width": 16,
        "depth": 2,
        "heads": 2,
    } | options
    return VisionTransformer(**options)


def images(rng, count=3, size=(8, 8)):
    return rng.uniform(size=(count, *size, 3)).astype(np.float32)


@pytest.mark.parametrize(
    "module, parameters",
    [
        (vit_tiny(num_classes=1000), 5_717_416),
        (vit_small(num_classes=1000), 22_050_664),
        (vit_base(num_classes=1000), 86_567_656),
    ],
    ids=["tiny", "small", "base"],
)
def test_parameters_are_those_of_the_literature(module, parameters):
    x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    init = lambda x: module.init(jax.random.key(0), x, train=False)["params"]
    leaves = jax.tree.leaves(jax.eval_shape(init, x))
    assert sum(leaf.size for leaf in leaves) == parameters


@pytest.mark.parametrize(
    "class_token, pool", [(True, "class"), (True, "mean"), (False, "mean")]
)
def test_pooling_reads_the_tokens(rng, class_token, pool):
    x = images(rng)
    module = tiny(class_token=class_token, pool=pool)
    variables = module.init(jax.random.key(0), x, train=False)
    tokens = module.apply(variables, x, train=False, method="tokens")
    chex.assert_shape(tokens, (3, 4 + class_token, 16))
    expected = (
        tokens[:, 0] if pool == "class" else tokens[:, int(class_token) :].mean(1)
    )
    actual = module.apply(variables, x, train=False)
    chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_without_positions_patches_could_be_shuffled(rng):
    """What the position embedding is for, and that patches are cut where they should be."""
    x = images(rng, 1)
    swapped = np.concatenate([x[:, :, 4:], x[:, :, :4]], axis=2)
    module = tiny(pool="mean")
    variables = module.init(jax.random.key(0), x, train=False)
    apply = lambda variables, x: module.apply(variables, x, train=False)
    assert jnp.abs(apply(variables, x) - apply(variables, swapped)).max() > 1e-3
    blind = jax.tree_util.tree_map_with_path(
        lambda path, p: 0 * p if "position" in jax.tree_util.keystr(path) else p,
        variables,
    )
    chex.assert_trees_all_close(
        apply(blind, x), apply(blind, swapped), rtol=1e-4, atol=1e-5
    )


def test_rectangles_are_fine_and_other_sizes_refused(rng):
    module = tiny(image_size=(8, 12))
    x = images(rng, 2, (8, 12))
    variables = module.init(jax.random.key(0), x, train=False)
    chex.assert_shape(module.apply(variables, x, train=False), (2, 16))
    with pytest.raises(ValueError, match="images must be 8 x 12 pixels"):
        module.apply(variables, images(rng, 2, (12, 8)), train=False)


def test_sincos_positions_are_unit_pairs():
    """Every sine stands beside its cosine: squares of all entries sum to width / 2."""
    grid = sincos_positions(3, 5, 16)
    chex.assert_shape(grid, (15, 16))
    chex.assert_trees_all_close((np.square(grid)).sum(1), np.full(15, 8.0), rtol=1e-5)
    assert len(np.unique(np.round(grid, 5), axis=0)) == 15


def test_noise_acts_in_training_only(rng):
    x = images(rng)
    module = tiny(dropout=0.5, drop_path=0.5)
    variables = module.init(jax.random.key(0), x, train=False)
    apply = lambda key, train: module.apply(
        variables, x, train=train, rngs={"dropout": jax.random.key(key)}
    )
    chex.assert_trees_all_equal(apply(0, False), apply(1, False))
    chex.assert_trees_all_equal(apply(0, True), apply(0, True))
    assert jnp.abs(apply(0, True) - apply(1, True)).max() > 1e-3


def test_half_precision_and_gradients(rng):
    x = images(rng)
    module = tiny(dtype=jnp.bfloat16, num_classes=5)
    params = module.init(jax.random.key(0), x, train=False)["params"]
    loss = lambda p: jnp.sum(
        module.apply({"params": p}, x, train=False).astype(jnp.float32) ** 2
    )
    assert module.apply({"params": params}, x, train=False).dtype == jnp.bfloat16
    grads = jax.jit(jax.grad(loss))(params)
    chex.assert_tree_all_finite(grads)


@pytest.mark.parametrize("options", [{"patch_size": 3}, {"heads": 3}])
def test_bad_options_are_refused(rng, options):
    with pytest.raises(ValueError, match="divide"):
        tiny(**options).init(jax.random.key(0), images(rng), train=False)
