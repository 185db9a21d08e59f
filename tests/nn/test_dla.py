"""DLA: levels, odd sizes and options; its outputs are timm's in tests/oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.nn import DLA, dla34

TINY = {"widths": (2, 2, 3, 4, 5, 6)}


def test_dla34_has_timms_parameters():
    """sum(p.numel() for p in timm.create_model("dla34").parameters())"""
    shapes = jax.eval_shape(
        lambda x: dla34(num_classes=1000).init(jax.random.key(0), x, train=False),
        jnp.zeros((1, 32, 32, 3)),
    )
    assert sum(x.size for x in jax.tree.leaves(shapes["params"])) == 15_742_104


@pytest.mark.parametrize("size", [(64, 96), (37, 51)])
def test_levels_have_their_strides(size):
    shapes = jax.eval_shape(
        lambda x: DLA(**TINY).init_with_output(
            jax.random.key(0), x, train=False, pyramid=True
        )[0],
        jnp.zeros((2, *size, 3)),
    )
    for level, width in enumerate(TINY["widths"]):
        rows, columns = (-(n // -(2**level)) for n in size)
        assert shapes[f"c{level}"].shape == (2, rows, columns, width)


def test_roots_see_what_was_handed_down():
    """Channels that come into the roots of the fourth level, a tree of height two."""
    shapes = jax.eval_shape(
        lambda x: DLA(**TINY).init(jax.random.key(0), x, train=False),
        jnp.zeros((1, 64, 64, 3)),
    )["params"]

    def channels(name):
        return shapes[name]["conv"]["kernel"].shape[2]

    assert channels("level3_tree1_root") == 4 + 4
    assert channels("level3_tree2_root") == 4 + 4 + 3 + 4  # the pooled input, and y
    assert channels("level5_root") == 6 + 6 + 5
    assert "level3_tree2_project" not in shapes


def test_features_are_means_of_the_last_level(rng):
    x = np.float32(rng.normal(size=(2, 64, 64, 3)))
    variables = DLA(**TINY).init(jax.random.key(0), x, train=False)
    last = DLA(**TINY).apply(variables, x, train=False, pyramid=True)["c5"]
    features = DLA(**TINY).apply(variables, x, train=False)
    np.testing.assert_allclose(features, np.mean(last, axis=(1, 2)), rtol=1e-5)


@pytest.mark.parametrize("options", [{"sizes": (1, 1)}, {"sizes": (1, 1, 0, 1, 1, 1)}])
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match="must be six sizes"):
        DLA(**options).init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)
