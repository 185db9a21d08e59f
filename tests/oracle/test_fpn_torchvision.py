"""FPN gives the outputs of torchvision's FeaturePyramidNetwork."""

from collections import OrderedDict

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")

from jaxml.nn import FPN  # noqa: E402

pytestmark = pytest.mark.oracle

CHANNELS = (4, 6, 10)


@pytest.mark.parametrize("extra", ["none", "pool", "c5", "p5"])
@pytest.mark.parametrize(
    "sizes", [((16, 24), (8, 12), (4, 6)), ((13, 21), (7, 11), (4, 6))]
)
def test_outputs_are_torchvisions(rng, extra, sizes):
    fpn = torchvision.ops.feature_pyramid_network
    blocks = {
        "none": lambda: None,
        "pool": fpn.LastLevelMaxPool,
        "c5": lambda: fpn.LastLevelP6P7(CHANNELS[-1], 5),
        "p5": lambda: fpn.LastLevelP6P7(5, 5),
    }
    torch.manual_seed(0)
    theirs = torchvision.ops.FeaturePyramidNetwork(CHANNELS, 5, blocks[extra]())
    maps = {
        f"c{i + 3}": np.float32(rng.normal(size=(2, *size, width)))
        for i, (size, width) in enumerate(zip(sizes, CHANNELS, strict=True))
    }
    inputs = OrderedDict(
        (name, torch.from_numpy(x).permute(0, 3, 1, 2)) for name, x in maps.items()
    )
    with torch.no_grad():
        expected = list(theirs(inputs).values())
    state = {k: v.numpy() for k, v in theirs.state_dict().items()}
    named = {f"lateral{i + 3}": f"inner_blocks.{i}.0" for i in range(3)}
    named |= {f"output{i + 3}": f"layer_blocks.{i}.0" for i in range(3)}
    if extra in ("c5", "p5"):
        named |= {"extra6": "extra_blocks.p6", "extra7": "extra_blocks.p7"}
    params = {
        ours: {
            "kernel": state[f"{their}.weight"].transpose(2, 3, 1, 0),
            "bias": state[f"{their}.bias"],
        }
        for ours, their in named.items()
    }
    actual = jax.jit(lambda m: FPN(5, extra).apply({"params": params}, m, train=False))(
        maps
    )
    assert len(actual) == len(expected)
    for x, y in zip(actual.values(), expected, strict=True):
        np.testing.assert_allclose(x, y.permute(0, 2, 3, 1), rtol=1e-4, atol=1e-5)
