"""Darknet: its layers by hand, published sizes, and stages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.nn import Darknet, darknet19, darknet53


def count(model):
    shapes = jax.eval_shape(
        lambda x: model.init(jax.random.key(0), x, train=False),
        jnp.zeros((1, 32, 32, 3)),
    )
    return sum(x.size for x in jax.tree.leaves(shapes["params"]))


def test_darknet19_has_the_layers_of_the_table():
    """Table 6, the kernel side and the filters of each convolution."""
    table = [(3, 32), (3, 64), (3, 128), (1, 64), (3, 128), (3, 256), (1, 128)]
    table += [(3, 256), (3, 512), (1, 256), (3, 512), (1, 256), (3, 512)]
    table += [(3, 1024), (1, 512), (3, 1024), (1, 512), (3, 1024)]
    expected, before = 0, 3
    for side, filters in table:
        expected += side * side * before * filters + 2 * filters
        before = filters
    expected += 1024 * 1000 + 1000
    assert count(darknet19(num_classes=1000)) == expected
    assert round(expected / 1e5) == 208


def test_darknet53_has_the_layers_of_the_table():
    expected, before = 9 * 3 * 32 + 64, 32
    for repeats in (1, 2, 8, 8, 4):
        wide, half = 2 * before, before
        expected += 9 * before * wide + 2 * wide
        expected += repeats * (wide * half + 2 * half + 9 * half * wide + 2 * wide)
        before = wide
    expected += 1024 * 1000 + 1000
    assert count(darknet53(num_classes=1000)) == expected
    assert round(expected / 1e5) == 416


@pytest.mark.parametrize("residual", [False, True])
def test_stages_have_their_strides(residual):
    model = Darknet((1, 1, 3, 1, 1), residual, width=2)
    shapes = jax.eval_shape(
        lambda x: model.init_with_output(
            jax.random.key(0), x, train=False, method="pyramid"
        )[0],
        jnp.zeros((1, 96, 64, 3)),
    )
    for level in range(6):
        expected = (1, 96 >> level, 64 >> level, 2 << level)
        assert shapes[f"c{level}"].shape == expected


def test_a_residual_pair_by_hand(rng):
    """In float64 at the last stage, whose map is one pixel."""
    model = Darknet((0, 0, 0, 0, 1), True, width=1)
    x = np.float32(rng.normal(size=(3, 32, 32, 1)))
    variables = model.init(jax.random.key(0), x, train=False)
    variables = jax.tree.map(
        lambda v: np.float32(
            rng.normal(size=v.shape) if v.ndim == 4 else rng.uniform(0.3, 1.5, v.shape)
        ),
        variables,
    )
    pyramid = model.apply(variables, x, train=False, method="pyramid")

    def layer(name, y, stride=1):
        params, stats = (variables[k][name] for k in ("params", "batch_stats"))
        kernel = np.float64(params["conv"]["kernel"])
        side, pad = kernel.shape[0], kernel.shape[0] // 2
        y = np.pad(y, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        rows = (y.shape[1] - side) // stride + 1
        out = np.zeros((len(y), rows, rows, kernel.shape[-1]))
        for i in range(side):
            for j in range(side):
                ends = i + stride * (rows - 1) + 1, j + stride * (rows - 1) + 1
                out += y[:, i : ends[0] : stride, j : ends[1] : stride] @ kernel[i, j]
        norm = (out - stats["norm"]["mean"]) / np.sqrt(stats["norm"]["var"] + 1e-6)
        norm = norm * params["norm"]["scale"] + params["norm"]["bias"]
        return np.where(norm > 0, norm, 0.1 * norm)

    y = layer("stages_4_0", np.float64(pyramid["c4"]), 2)
    y = y + layer("stages_4_2", layer("stages_4_1", y))
    scale = np.abs(y).max()
    np.testing.assert_allclose(pyramid["c5"], y, rtol=1e-4, atol=1e-5 * scale)


def test_there_are_five_stages():
    with pytest.raises(ValueError, match="must be five"):
        Darknet((1,), True).init(jax.random.key(0), jnp.ones((1, 8, 8, 3)), train=False)
