"""A model is a pytree; its slices and files stand in test_model_files."""

import jax
import numpy as np

from jaxml.trees.xgboost import Config, fit, predict


def test_a_model_is_a_pytree_of_arrays(rng):
    x = rng.normal(size=(20, 2)).astype(np.float32)
    model = fit(
        x, x[:, 0], Config(max_depth=1, num_boost_round=2, max_bin=8), jax.random.key(0)
    )
    leaves, structure = jax.tree.flatten(model)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    again = jax.tree.unflatten(structure, [np.asarray(leaf) for leaf in leaves])
    assert (predict(again, x) == predict(model, x)).all()
    assert again.objective == model.objective
