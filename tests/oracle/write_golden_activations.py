"""Writes what PyTorch makes of edge points, `tests/nn/golden/activations.npz`.

    python -m tests.oracle.write_golden_activations

For each activation an array [2, points]: values, and slopes by autograd, in float32 on a
CPU. `tests/oracle/test_activations.py` checks that the installed PyTorch still says so.
"""

from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parents[1] / "nn/golden/activations.npz"
POINTS = [-np.inf, -100, -6, -3, -1, -0.3, -0.0, 0.0, 0.3, 1, 3, 6, 100, np.inf, np.nan]


def tables() -> dict[str, np.ndarray]:
    """Values and slopes of every activation that PyTorch has."""
    import torch

    f = torch.nn.functional
    functions = {
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "relu": f.relu,
        "relu6": f.relu6,
        "leaky_relu": f.leaky_relu,
        "prelu": lambda x: f.prelu(x, torch.tensor([0.25])),
        "rrelu": f.rrelu,
        "elu": f.elu,
        "selu": f.selu,
        "celu": f.celu,
        "gelu": f.gelu,
        "gelu_tanh": lambda x: f.gelu(x, approximate="tanh"),
        "silu": f.silu,
        "swish": f.silu,
        "mish": f.mish,
        "softplus": f.softplus,
        "soft_sign": f.softsign,
        "log_sigmoid": f.logsigmoid,
        "hard_tanh": f.hardtanh,
        "hard_sigmoid": f.hardsigmoid,
        "hard_silu": f.hardswish,
        "relu_squared": lambda x: f.relu(x).square(),
        "sign": torch.sign,
        "step": lambda x: torch.heaviside(x, torch.zeros_like(x)),
    }
    found = {}
    for name, function in functions.items():
        x = torch.tensor(POINTS, dtype=torch.float32, requires_grad=True)
        if name == "step":  # PyTorch knows no derivative of it
            value, slope = function(x.detach()), torch.zeros_like(x)
        else:
            value = function(x)
            (slope,) = torch.autograd.grad(value.sum(), x)
        found[name] = np.stack([value.detach().numpy(), slope.numpy()])
    return found


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    np.savez(GOLDEN, points=np.float32(POINTS), **tables())
