"""FrozenBatchNorm gives the outputs of torchvision's FrozenBatchNorm2d."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")

from jaxml.nn import FrozenBatchNorm  # noqa: E402

pytestmark = pytest.mark.oracle


def test_frozen_norm_is_torchvisions(rng):
    theirs = torchvision.ops.misc.FrozenBatchNorm2d(3)
    names = {"scale": "weight", "bias": "bias", "mean": "running_mean"}
    names["var"] = "running_var"
    for name in names.values():
        getattr(theirs, name).copy_(torch.from_numpy(rng.uniform(0.5, 2, 3)))
    stats = {k: getattr(theirs, v).numpy() for k, v in names.items()}
    x = np.float32(rng.normal(size=(2, 4, 5, 3)))
    expected = theirs(torch.from_numpy(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    actual = FrozenBatchNorm().apply({"batch_stats": stats}, x, train=False)
    np.testing.assert_allclose(actual, expected.numpy(), rtol=1e-5, atol=1e-5)
