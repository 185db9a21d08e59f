"""VGG: sizes, parameters, stages; its outputs are torchvision's in tests/oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.nn import VGG, BatchNorm, vgg11, vgg13, vgg16, vgg19
from jaxml.nn.vgg import adaptive_mean, max_pool

TINY = (1, 1, 2, 1, 1)


def count(model, size=32):
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    shapes = jax.eval_shape(
        lambda x: model.init(jax.random.key(0), x, train=False), images
    )
    return sum(x.size for x in jax.tree.leaves(shapes["params"]))


@pytest.mark.parametrize(
    "make, parameters",
    [
        # sum(p.numel() for p in torchvision.models.vgg11().parameters()), and so on
        (vgg11, 132_863_336),
        (vgg13, 133_047_848),
        (vgg16, 138_357_544),
        (vgg19, 143_667_240),
    ],
)
def test_parameters_are_torchvisions(make, parameters):
    assert count(make(num_classes=1000)) == parameters


def test_stages_halve_and_double():
    model = VGG(TINY, width=4)
    shapes = jax.eval_shape(
        lambda x: model.init_with_output(
            jax.random.key(0), x, train=False, method="pyramid"
        )[0],
        jnp.zeros((2, 35, 50, 3)),
    )
    expected = {
        "c1": (2, 35, 50, 4),
        "c2": (2, 17, 25, 8),
        "c3": (2, 8, 12, 16),
        "c4": (2, 4, 6, 32),
        "c5": (2, 2, 3, 32),
    }
    assert {name: x.shape for name, x in shapes.items()} == expected


def test_features_are_means_of_the_last_pooled_map(rng):
    x = np.float32(rng.normal(size=(2, 64, 64, 3)))
    model = VGG(TINY, width=2)
    variables = model.init(jax.random.key(0), x, train=False)
    last = model.apply(variables, x, train=False, method="pyramid")["c5"]
    expected = np.asarray(last).reshape(2, 2, 2, 2, 2, -1).max((2, 4)).mean((1, 2))
    actual = model.apply(variables, x, train=False)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_drop_out_and_norm_tell_training_from_evaluation(rng):
    x = np.float32(rng.normal(size=(4, 32, 32, 3)))
    model = VGG(TINY, 3, width=2, norm=BatchNorm, hidden=8)
    variables = model.init(jax.random.key(0), x, train=True)

    def run(key):
        rngs = {"dropout": jax.random.key(key)}
        return model.apply(variables, x, train=True, rngs=rngs, mutable=["batch_stats"])

    (first, stats), (second, _) = run(0), run(1)
    assert not np.allclose(first, second)
    assert not np.allclose(
        stats["batch_stats"]["norms_0_0"]["mean"],
        variables["batch_stats"]["norms_0_0"]["mean"],
    )


@pytest.mark.parametrize("size", [1, 3, 7, 10, 14])
def test_adaptive_means_match_loops(rng, size):
    x = np.float32(rng.normal(size=(1, size, 5, 2)))
    actual = adaptive_mean(x, 4)
    for i in range(4):
        for j in range(4):
            rows = slice(i * size // 4, -(-(i + 1) * size // 4))
            columns = slice(j * 5 // 4, -(-(j + 1) * 5 // 4))
            expected = x[:, rows, columns].mean(axis=(1, 2))
            np.testing.assert_allclose(actual[:, i, j], expected, rtol=1e-5, atol=1e-6)


def test_an_odd_rest_is_not_pooled():
    x = jnp.arange(9.0).reshape(1, 3, 3, 1)
    assert max_pool(x).tolist() == [[[[4.0]]]]


def test_there_are_five_stages():
    with pytest.raises(ValueError, match="must be five"):
        VGG((1, 1)).init(jax.random.key(0), jnp.ones((1, 8, 8, 3)), train=False)
