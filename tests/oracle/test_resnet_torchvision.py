"""ResNet gives torchvision's and timm's outputs, gradients and running statistics."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")

from jaxml.interop import convert, resnet  # noqa: E402
from jaxml.nn.resnet import resnet18, resnet50  # noqa: E402

pytestmark = pytest.mark.oracle


def our_variables(state, module):
    """A state dict of torchvision's names in our tree, in its own precision."""
    state = {name: value.detach().numpy() for name, value in state.items()}
    images = jnp.ones((1, 64, 64, 3))
    like = jax.eval_shape(lambda: module.init(jax.random.key(0), images, train=False))
    dtype = state["conv1.weight"].dtype
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), like)
    return convert(state, resnet.conversion(module, "torchvision"), like)[0]


def randomised(model):
    """Norms and statistics as after training, not the zeros and ones of the start."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.2, generator=generator)
                module.running_mean.normal_(0, 0.2, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model


def relative_error(actual, expected):
    """The largest over the leaves of |actual - expected| / |expected|."""
    chex.assert_trees_all_equal_shapes(actual, expected)

    def error(actual, expected):
        actual, expected = (np.asarray(x, np.float64) for x in (actual, expected))
        return np.linalg.norm(actual - expected) / np.linalg.norm(expected)

    return max(jax.tree.leaves(jax.tree.map(error, actual, expected)))


MODELS = {
    "resnet18": (resnet18, lambda: torchvision.models.resnet18(num_classes=10), {}),
    "resnet50": (resnet50, lambda: torchvision.models.resnet50(num_classes=10), {}),
    "timm_resnet18": (
        resnet18,
        lambda: timm.create_model("resnet18", num_classes=10),
        {},
    ),
    "timm_resnet50": (
        resnet50,
        lambda: timm.create_model("resnet50", num_classes=10),
        {},
    ),
    "resnext50": (
        resnet50,
        lambda: torchvision.models.resnext50_32x4d(num_classes=10),
        {"groups": 32, "width_per_group": 4},
    ),
    "dilated": (
        resnet50,
        lambda: torchvision.models.resnet50(
            num_classes=10, replace_stride_with_dilation=[False, True, True]
        ),
        {"strides": (1, 2, 1, 1), "dilations": (1, 1, 2, 4)},
    ),
}


@pytest.mark.parametrize("name", list(MODELS))
def test_evaluation(name, rng):
    ours, theirs, options = MODELS[name]
    torch.manual_seed(0)
    model = randomised(theirs()).eval()
    images = rng.normal(size=(2, 65, 50, 3)).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(images).permute(0, 3, 1, 2))
    module = ours(num_classes=10, **options)
    variables = our_variables(model.state_dict(), module)
    actual = jax.jit(lambda v, x: module.apply(v, x, train=False))(variables, images)
    assert relative_error(actual, expected.numpy()) < 1e-5


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_training(name, rng):
    """Outputs, gradients of every parameter, and running statistics after a step.

    In float64: in float32 fifty layers, the last of which normalise over 32 numbers, make
    per cents of a gradient's rounding in either library.
    """
    ours, theirs, _ = MODELS[name]
    torch.manual_seed(0)
    model = randomised(theirs()).train().double()
    images, weights = rng.normal(size=(8, 64, 64, 3)), rng.normal(size=(8, 10))

    with jax.enable_x64(True):
        module = ours(num_classes=10)
        variables = our_variables(model.state_dict(), module)
        outputs = model(torch.from_numpy(images).permute(0, 3, 1, 2))
        (outputs * torch.from_numpy(weights)).sum().backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        statistics = {n: x for n, x in model.state_dict().items() if "running" in n}

        @jax.jit
        def step(variables, images):
            def objective(params):
                y, state = module.apply(
                    {**variables, "params": params},
                    images,
                    train=True,
                    mutable=["batch_stats"],
                )
                return jnp.sum(y * weights), (y, state["batch_stats"])

            return jax.grad(objective, has_aux=True)(variables["params"])

        grads, (y, stats) = step(variables, images)
        assert relative_error(y, outputs.detach().numpy()) < 1e-9
        after = our_variables(model.state_dict(), module)["batch_stats"]
        assert relative_error(stats, after) < 1e-7
        assert (
            relative_error(
                grads, our_variables(gradients | statistics, module)["params"]
            )
            < 1e-6
        )
