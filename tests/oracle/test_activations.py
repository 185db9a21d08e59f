"""Values and slopes of activations at edge points, beside PyTorch's.

The two libraries agree but for what `DIFFERENT` lists; an entry that no longer differs
fails, so that the list stays true.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.nn.activations import gated, gelu, relu_squared, sign, step, swish

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
F = torch.nn.functional
pytestmark = pytest.mark.oracle

POINTS = [-np.inf, -100, -6, -3, -1, -0.3, -0.0, 0.0, 0.3, 1, 3, 6, 100, np.inf, np.nan]

PAIRS = {
    "sigmoid": (jax.nn.sigmoid, torch.sigmoid),
    "tanh": (jnp.tanh, torch.tanh),
    "relu": (jax.nn.relu, F.relu),
    "relu6": (jax.nn.relu6, F.relu6),
    "leaky_relu": (jax.nn.leaky_relu, F.leaky_relu),
    "elu": (jax.nn.elu, F.elu),
    "selu": (jax.nn.selu, F.selu),
    "celu": (jax.nn.celu, F.celu),
    "gelu": (gelu, F.gelu),
    "gelu_tanh": (jax.nn.gelu, lambda x: F.gelu(x, approximate="tanh")),
    "silu": (jax.nn.silu, F.silu),
    "swish": (swish, F.silu),
    "mish": (jax.nn.mish, F.mish),
    "softplus": (jax.nn.softplus, F.softplus),
    "soft_sign": (jax.nn.soft_sign, F.softsign),
    "log_sigmoid": (jax.nn.log_sigmoid, F.logsigmoid),
    "hard_tanh": (jax.nn.hard_tanh, F.hardtanh),
    "hard_sigmoid": (jax.nn.hard_sigmoid, F.hardsigmoid),
    "hard_silu": (jax.nn.hard_silu, F.hardswish),
    "relu_squared": (relu_squared, lambda x: F.relu(x).square()),
    "sign": (sign, torch.sign),
}


def table(name):
    """(value, slope) of both at every point."""
    ours, theirs = PAIRS[name]
    x = jnp.array(POINTS, jnp.float32)
    y = torch.tensor(POINTS, dtype=torch.float32, requires_grad=True)
    out = theirs(y)
    (slope,) = torch.autograd.grad(out.sum(), y)
    mine = ours(x), jax.vmap(jax.grad(ours))(x)
    return [np.asarray(m) for m in mine], [out.detach().numpy(), slope.numpy()]


def differences(name):
    """The points where values, or slopes, are not the same."""
    found = []
    for kind, mine, true in zip(("value", "slope"), *table(name), strict=True):
        same = np.isclose(mine, true, rtol=1e-5, atol=2e-6, equal_nan=True)
        found += [(kind, str(p)) for p, ok in zip(POINTS, same, strict=True) if not ok]
    return sorted(found)


NAN = [("slope", "nan")]  # torch lets a gradient through or not; NaN or 0 here
DIFFERENT = {
    **dict.fromkeys(("relu", "relu6", "elu", "selu", "celu"), NAN),
    **dict.fromkeys(("hard_silu", "relu_squared"), NAN),
    "leaky_relu": [("slope", "-0.0"), ("slope", "0.0")],  # 1 here, 0.01 there
    "hard_tanh": [("slope", "-1"), ("slope", "1")],  # 1 here, 0 there
    "gelu": [("value", "inf")],  # inf here, NaN there
    "sign": [("value", "nan")],  # NaN here, 0 there
}


@pytest.mark.parametrize("name", PAIRS)
def test_equals_torch_but_for_what_is_listed(name):
    assert differences(name) == sorted(DIFFERENT.get(name, []))


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
