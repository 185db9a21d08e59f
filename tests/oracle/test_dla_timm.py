"""DLA gives the outputs of timm's, with random weights and statistics."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

from jaxml.nn import DLA  # noqa: E402

pytestmark = pytest.mark.oracle


def theirs_of(path):
    """The name in timm's state of one of our leaves."""
    layer, kind, leaf = path
    for part in ("tree1", "tree2", "root", "project"):
        layer = layer.replace(f"_{part}", f".{part}")
    number = "12"[layer.endswith("conv2")]
    if layer.startswith("stem"):
        names = ("base_layer.0", "base_layer.1")
    elif layer[:6] in ("level0", "level1"):
        level, i = layer.split("_")
        names = (f"{level}.{3 * int(i)}", f"{level}.{3 * int(i) + 1}")
    elif layer.endswith("root"):
        names = (f"{layer}.conv", f"{layer}.bn")
    elif layer.endswith("project"):
        names = (f"{layer}.0", f"{layer}.1")
    else:
        tree = layer.rpartition("_")[0]
        names = (f"{tree}.conv{number}", f"{tree}.bn{number}")
    leaves = {"kernel": "weight", "scale": "weight", "bias": "bias"}
    leaves |= {"mean": "running_mean", "var": "running_var"}
    return f"{names[kind == 'norm']}.{leaves[leaf]}"


def test_outputs_are_timms(rng):
    widths = [4, 6, 8, 10, 12, 16]
    model = timm.models.dla.DLA(
        [1, 2, 1, 2, 3, 1], widths, num_classes=5, block=timm.models.dla.DlaBasic
    ).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point() and value.ndim == 1:
                value.uniform_(0.5, 1.5, generator=generator)
    state = {k: v.numpy() for k, v in model.state_dict().items()}
    module = DLA((1, 2, 1, 2, 3, 1), widths, 5)
    images = rng.normal(size=(2, 64, 96, 3)).astype(np.float32)
    like = jax.eval_shape(lambda: module.init(jax.random.key(0), images, train=False))

    def fill(path, leaf):
        _, *keys = (p.key for p in path)
        if keys[0] == "head":
            array = state[f"fc.{'weight' if keys[1] == 'kernel' else 'bias'}"]
        else:
            array = state[theirs_of(keys)]
        array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
        assert array.shape == leaf.shape, keys
        return array

    variables = jax.tree.map_with_path(fill, like)
    with torch.no_grad():
        expected = model(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    actual = jax.jit(lambda v, x: module.apply(v, x, train=False))(variables, images)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-3)
