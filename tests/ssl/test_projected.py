"""Backbone and head: shapes, unit length, and which layers normalise."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxml.nn.functional import init_module
from jaxml.ssl import Projected
from tests.ssl.trials import TinyBackbone


def test_z_is_the_unit_vector_of_the_head(rng):
    images = np.float32(rng.normal(size=(5, 4, 4, 1)))
    model = Projected(TinyBackbone(8), (6, 3))
    params, _ = init_module(model, jax.random.key(0), images, train=True)
    h, z = model.apply({"params": params}, images, train=True)
    head = jax.tree.map(np.asarray, params["head"])
    first, second = (head[f"Dense_{i}"] for i in (0, 1))
    hidden = np.maximum(np.asarray(h) @ first["kernel"] + first["bias"], 0)
    raw = hidden @ second["kernel"] + second["bias"]
    expected = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    chex.assert_trees_all_close(z, expected, rtol=1e-5, atol=1e-6)


def test_heads_of_the_papers(rng):
    images = np.float32(rng.normal(size=(5, 4, 4, 1)))

    def shapes(**options):
        model = Projected(TinyBackbone(8), **options)
        params, state = init_module(model, jax.random.key(0), images, train=True)
        return jax.tree.map(jnp.shape, params["head"]), state

    linear, state = shapes(widths=(3,))
    assert linear == {"Dense_0": {"kernel": (8, 3), "bias": (3,)}}
    assert not state
    swav, state = shapes(widths=(6, 3), normalize=True)
    assert swav == {
        "Dense_0": {"kernel": (8, 6)},
        "BatchNorm_0": {"scale": (6,), "bias": (6,)},
        "Dense_1": {"kernel": (6, 3), "bias": (3,)},
    }
    assert state
