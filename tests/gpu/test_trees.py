"""The kernel of histograms on a Hopper GPU: the bits of the scatter.

What has no GPU is lowered and interpreted in tests/trees/test_gpu_histogram.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.kernels.devices import capability
from jaxml.trees import xgboost
from jaxml.trees.gpu_histogram import sums_by_bin
from tests.trees.conftest import binned, summed_by_hand

pytestmark = pytest.mark.skipif(
    capability() != "9.0", reason="needs a GPU of compute capability 9.0"
)


@pytest.mark.parametrize("smaller", [False, True])
@pytest.mark.parametrize("has_missing", [False, True])
@pytest.mark.parametrize("width", [2, 64, 65, 256, 1000])
@pytest.mark.parametrize("rows, slots", [(1, 2), (300, 2), (50_000, 32)])
def test_sums_are_exact(rng, rows, slots, width, has_missing, smaller):
    bins, q, slot = binned(rng, slots, rows, width, 2, has_missing)
    made, summed = sums_by_bin(bins.index, q, slot, slots, width, has_missing, smaller)
    want = np.where(summed, summed_by_hand(bins, q, slot, slots), 0)
    np.testing.assert_array_equal(made, want)


def test_the_largest_chunk_is_exact():
    """Every row at one bin, and every byte as large as can be."""
    rows = 2**20
    q = jnp.full((2, rows), 2**11 - 1, jnp.int32)
    index = jnp.full((1, rows), 7, jnp.uint8)
    made, _ = sums_by_bin(index, q, jnp.zeros(rows, jnp.int32), 1, 256, False)
    assert made[0, :, 7, 0].tolist() == [rows * (2**11 - 1)] * 2
    assert int(jnp.sum(made != 0)) == 2


@pytest.mark.parametrize("options", [{}, {"missing": 0.2}, {"max_bin": 700}])
def test_models_are_those_of_the_scatter(rng, options):
    missing = options.pop("missing", 0.0)
    x = rng.normal(size=(20_000, 11)).astype(np.float32)
    y = (x[:, 0] * x[:, 1] + rng.normal(size=len(x)) > 0).astype(np.float32)
    x[rng.random(x.shape) < missing] = np.nan
    given = {"objective": "binary:logistic", "num_boost_round": 5, **options}
    models = [
        xgboost.fit(
            x, y, xgboost.Config(**given, implementation=name), jax.random.key(0)
        )
        for name in ("scatter", "mosaic_gpu")
    ]
    for a, b in zip(*map(jax.tree.leaves, models), strict=True):
        np.testing.assert_array_equal(a, b)
