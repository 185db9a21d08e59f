"""VGG gives torchvision's outputs and gradients; what is written is what was read."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")
save_file = pytest.importorskip("safetensors.torch").save_file

from jaxml import interop  # noqa: E402
from jaxml.nn import VGG, BatchNorm  # noqa: E402
from jaxml.segmentation import FCN, fcn_from_vgg  # noqa: E402

pytestmark = pytest.mark.oracle

NARROW = [8, "M", 16, "M", 32, 32, "M", 64, "M", 64, "M"]


def theirs(batch_norm):
    """torchvision's class, a few channels wide."""
    with torch.device("meta"):  # its own classifier is never made
        model = torchvision.models.VGG(torch.nn.Identity(), init_weights=False)
    model.features = torchvision.models.vgg.make_layers(NARROW, batch_norm)
    generator = torch.Generator().manual_seed(0)
    model.classifier = torch.nn.Sequential(
        torch.nn.Linear(64 * 49, 24),
        torch.nn.ReLU(True),
        torch.nn.Dropout(0.0),
        torch.nn.Linear(24, 24),
        torch.nn.ReLU(True),
        torch.nn.Dropout(0.0),
        torch.nn.Linear(24, 5),
    )
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point() and value.ndim == 1:
                value.uniform_(0.5, 1.5, generator=generator)
    return model


def ours(batch_norm):
    norm = BatchNorm if batch_norm else None
    return VGG((1, 1, 2, 1, 1), 5, width=8, norm=norm, hidden=24, dropout=0.0)


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("size", [(224, 224), (65, 90)])
def test_outputs_are_torchvisions(rng, batch_norm, size, tmp_path):
    torch.manual_seed(0)
    model, module = theirs(batch_norm).eval(), ours(batch_norm)
    images = rng.normal(size=(2, *size, 3)).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    path = tmp_path / "vgg.safetensors"
    save_file(model.state_dict(), path)
    options = {name: getattr(module, name) for name in ("width", "hidden", "dropout")}
    loaded, variables, report = interop.load(
        path,
        architecture="vgg11_bn" if batch_norm else "vgg11",
        stage_sizes=module.stage_sizes,
        **options,
    )
    assert loaded == module
    assert report.exact
    actual = jax.jit(lambda v, x: module.apply(v, x, train=False))(variables, images)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_a_classifier_is_a_fully_convolutional_network(rng):
    """At 224 pixels the map of a 32s net's last layer is the classifier's at one place."""
    module = ours(False)
    images = rng.normal(size=(1, 224, 224, 3)).astype(np.float32)
    variables = module.init(jax.random.key(0), images, train=False)
    backbone = VGG((1, 1, 2, 1, 1), width=8)
    model = FCN(backbone, 5, stride=32, hidden=24, dropout=0.0)
    params = model.init(jax.random.key(1), images, train=False)["params"]
    params = fcn_from_vgg(params, variables["params"])
    last = variables["params"]["dense_2"]
    params["score"] = {"kernel": last["kernel"][None, None], "bias": last["bias"]}
    _, state = model.apply(
        {"params": params},
        images,
        train=False,
        capture_intermediates=lambda m, _: m.name == "score",
    )
    (score,) = state["intermediates"]["score"]["__call__"]
    logits = module.apply(variables, images, train=False)
    np.testing.assert_allclose(score[:, 3, 3], logits, rtol=1e-4, atol=1e-5)
