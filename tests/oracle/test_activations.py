"""PyTorch still says what the golden table holds; gates and thresholds beside its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.nn.activations import gated, step
from tests.oracle.write_golden_activations import GOLDEN, POINTS, tables

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
F = torch.nn.functional
pytestmark = pytest.mark.oracle


def test_the_golden_table_is_pytorchs():
    golden = np.load(GOLDEN)
    np.testing.assert_array_equal(golden["points"], np.float32(POINTS))
    found = tables()
    assert set(golden) == {"points", *found}
    for name, table in found.items():
        np.testing.assert_allclose(table, golden[name], rtol=1e-6, err_msg=name)


def test_gates_equal_torch(rng):
    x = rng.normal(size=(3, 8)).astype(np.float32)
    swapped = np.concatenate(
        [x[:, 4:], x[:, :4]], axis=1
    )  # it activates the second half
    np.testing.assert_allclose(
        gated(jnp.asarray(x)), F.glu(torch.tensor(swapped)).numpy(), rtol=1e-5
    )
    silu = F.silu(torch.tensor(x[:, :4])) * torch.tensor(x[:, 4:])
    np.testing.assert_allclose(gated(jnp.asarray(x), jax.nn.silu), silu, rtol=1e-5)


def test_a_threshold_is_torchs_heaviside():
    x = np.array([-1.0, 0.0, 2.0], np.float32)
    expected = torch.heaviside(torch.tensor(x), torch.tensor(0.0))
    np.testing.assert_array_equal(step(jnp.asarray(x)), expected.numpy())
