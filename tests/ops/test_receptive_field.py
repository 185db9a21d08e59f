"""Receptive fields against each other and against what the gradient says."""

import doctest
import importlib
from fractions import Fraction

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.nn import ConvNet, Deconv, resnet18, vit_tiny
from jaxml.nn.fpn import resize_nearest
from jaxml.ops import (
    ReceptiveField,
    Window,
    effective_receptive_field,
    receptive_field,
    receptive_field_of,
    top_down_receptive_field,
)


def random_layers(rng, count, upsampling=False):
    return [
        Window(
            int(rng.integers(1, 6)),
            int(rng.integers(1, 4)),
            int(rng.integers(1, 4)),
            int(rng.integers(0, 4)),
            int(rng.integers(1, 4)) if upsampling else 1,
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("upsampling", [False, True])
def test_bottom_up_equals_top_down(upsampling):
    rng = np.random.default_rng(0)
    for _ in range(200):
        layers = random_layers(rng, int(rng.integers(1, 7)), upsampling)
        field = receptive_field(layers)[-1]
        for index in (0, 1, 2, 17):
            assert field.interval(index) == top_down_receptive_field(layers, index)
        seen = filter(None, map(field.interval, range(60)))
        assert max((b - a + 1 for a, b in seen), default=0) == field.size


def test_known_networks():
    """Size, stride and first pixel as published for AlexNet and VGG-16."""
    alexnet = [
        Window(11, 4, padding=2),
        Window(3, 2),
        Window(5, padding=2),
        Window(3, 2),
        *[Window(3, padding=1)] * 3,
        Window(3, 2),
    ]
    assert receptive_field(alexnet)[-1][:2] == (195, 32)
    block = lambda n: [*[Window(3, padding=1)] * n, Window(2, 2)]
    vgg = [*block(2), *block(2), *block(3), *block(3), *block(3)]
    assert receptive_field(vgg)[-1][:2] == (212, 32)
    assert [field.size for field in receptive_field(vgg)][:6] == [3, 5, 6, 10, 14, 16]


class Net(nn.Module):
    """Layers by name, with branches."""

    kind: str

    @nn.compact
    def __call__(self, x):
        conv = lambda *args, **options: nn.Conv(2, *args, **options)
        if self.kind == "same":
            return conv((3, 5), strides=(2, 1))(conv((4, 2), padding="SAME")(x))
        if self.kind == "valid_dilated":
            x = conv((3, 3), kernel_dilation=(2, 3), padding="VALID")(x)
            return conv((2, 2), strides=2, padding="VALID")(x)
        if self.kind == "branches":
            x = conv((3, 3))(x)
            y = nn.relu(conv((5, 1))(x))
            return jnp.concatenate([x + y, conv((1, 3))(x)], -1)
        if self.kind == "pooled":
            x = nn.avg_pool(x, (3, 2), (2, 2), [(1, 0), (0, 1)])
            return nn.avg_pool(jax.nn.gelu(conv((1, 1))(x)), (2, 2), (1, 1))
        if self.kind == "transposed":
            x = conv((3, 3), strides=(2, 2))(x)
            x = nn.ConvTranspose(2, (4, 3), (2, 2))(x)
            return conv((3, 1))(x)
        if self.kind == "unet":
            low = conv((3, 3))(nn.avg_pool(x, (2, 2), (2, 2)))
            return x + low.repeat(2, 1).repeat(2, 2)
        if self.kind == "nearest":  # to an odd size, as in a feature pyramid
            low = conv((3, 3))(nn.avg_pool(x, (2, 2), (2, 2)))
            up = resize_nearest(low, (23, 19))
            return up + conv((2, 2), padding="VALID")(x)
        if self.kind == "patches":
            b, h, w, c = x.shape
            x = x.reshape(b, h // 4, 4, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
            return nn.Dense(3)(x.reshape(b, h // 4, w // 2, -1))
        if self.kind == "cut":
            x = conv((3, 3))(x)[:, :-2, 1:-1:2]
            x = jnp.pad(x, ((0, 0), (1, 0), (0, 0), (0, 0)))
            return conv((3, 1), padding="VALID")(x)
        raise AssertionError(self.kind)


KINDS = [
    "same",
    "valid_dilated",
    "branches",
    "pooled",
    "transposed",
    "unet",
    "nearest",
    "patches",
    "cut",
]


def support(function, image, index):
    """Rows and columns whose pixels change the output at `index`."""
    pick = lambda x: function(x)[(0, *index)].sum()
    gradient = np.asarray(jax.grad(pick)(image))[0] != 0
    hit = [np.flatnonzero(gradient.any((1 - axis, 2))) for axis in (0, 1)]
    return [(int(h[0]), int(h[-1])) if h.size else None for h in hit]


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_nonzero_where_the_field_says(kind, rng):
    """Positive weights and images: nothing cancels, so every input that is seen counts."""
    net, image = Net(kind), jnp.asarray(rng.uniform(1, 2, (1, 24, 20, 1)), jnp.float32)
    variables = jax.tree.map(jnp.abs, net.init(jax.random.key(0), image))
    fields = receptive_field_of(net, variables, image)
    out = net.apply(variables, image).shape
    for index in ((0, 0), (3, 2), (out[1] - 1, out[2] - 1), (out[1] // 2, out[2] // 2)):
        found = support(lambda x: net.apply(variables, x), image, index)
        for axis, hit in enumerate(found):
            first, last = fields[axis].interval(index[axis])
            first, last = max(first, 0), min(last, image.shape[1 + axis] - 1)
            assert hit == ((first, last) if first <= last else None), (index, axis)


@pytest.mark.parametrize("axes", [1, 3])
def test_one_and_three_axes(axes):
    net = nn.Sequential([nn.Conv(1, (3,) * axes), nn.Conv(1, (5,) * axes, strides=2)])
    example = jax.ShapeDtypeStruct((2, *(16,) * axes, 1), jnp.float32)
    variables = jax.eval_shape(net.init, jax.random.key(0), example)
    fields = receptive_field_of(net, variables, example)
    assert [field[:2] for field in fields] == [(7, 2)] * axes


def test_backbones():
    """Published sizes of ResNet-18; a ViT and a pooled network see everything."""

    def of(model, size, **options):
        example = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
        init = lambda key: model.init(key, jnp.zeros(example.shape), train=False)
        variables = jax.eval_shape(init, jax.random.key(0))
        return receptive_field_of(model, variables, example, train=False, **options)

    maps = of(resnet18(), 64, method="pyramid")
    assert {k: field[0][:2] for k, field in maps.items()} == {
        "c2": (43, 4),
        "c3": (99, 8),
        "c4": (211, 16),
        "c5": (435, 32),
    }
    tiny = of(resnet18(), 32, method="pyramid")  # maps of one pixel keep their axes
    assert tiny["c5"][0][:2] == tiny["c5"][1][:2] == (435, 32)
    assert of(ConvNet((4, 8)), 16) == (whole(16),) * 2
    assert of(vit_tiny(image_size=16, patch_size=8, depth=1), 16) == (whole(16),) * 2


def whole(size):
    return ReceptiveField(size, Fraction(0), ((0, size - 1),))


def test_what_platforms_compute_apart_is_followed():
    def field(up):
        model, x = (
            nn.Sequential([nn.Conv(4, (3, 3), (2, 2)), up]),
            jnp.ones((1, 16, 16, 3)),
        )
        return receptive_field_of(model, model.init(jax.random.key(0), x), x)

    assert field(Deconv(2, 2, 4, 1)) == field(nn.ConvTranspose(2, (4, 4), (2, 2)))


def test_what_cannot_be_followed_is_named():
    class Sorted(nn.Module):
        def __call__(self, x):
            return jnp.sort(x, axis=1)

    class Uneven(nn.Module):
        def __call__(self, x):
            return x[:, ::2] + x[:, :4]

    class Blind(nn.Module):
        def __call__(self, x):
            return jnp.zeros(3)

    example = jnp.ones((1, 8, 8, 1))
    with pytest.raises(NotImplementedError, match="'sort'"):
        receptive_field_of(Sorted(), {}, example)
    with pytest.raises(NotImplementedError, match="jumps are"):
        receptive_field_of(Uneven(), {}, example)
    with pytest.raises(ValueError, match="does not depend"):
        receptive_field_of(Blind(), {}, example)
    with pytest.raises(ValueError, match="at least one window"):
        receptive_field([])
    with pytest.raises(ValueError, match=r"at least 1, got Window.* as layer 1"):
        receptive_field([Window(3), Window(3, stride=0)])


def test_the_effective_field_is_a_growing_gaussian(rng):
    """Its width grows as the root of the depth (Luo et al., section 2), not as the depth."""

    def spread(depth):
        kernel = jnp.ones((3, 3, 1, 1))
        net = lambda x: jax.lax.fori_loop(
            0,
            depth,
            lambda _, y: jax.lax.conv_general_dilated(
                y, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            ),
            x,
        )
        unrolled = lambda x: net(x)
        image = jnp.asarray(rng.normal(size=(1, 65, 65, 1)), jnp.float32)
        field = effective_receptive_field(unrolled, image, jax.random.key(0))
        assert field.shape == (65, 65)
        np.testing.assert_allclose(field.sum(), 1, rtol=1e-5)
        rows = np.asarray(field).sum(1)
        place = np.arange(65) - 32
        assert abs((rows * place).sum()) < 1e-3
        return np.sqrt((rows * place**2).sum())

    # The sum of n uniform steps of -1, 0 or 1 has variance 2 n / 3.
    for depth in (4, 16):
        assert spread(depth) == pytest.approx(np.sqrt(2 * depth / 3), rel=1e-3)


def test_the_effective_field_refuses_what_has_none():
    images = jnp.ones((1, 4, 4, 1))
    with pytest.raises(ValueError, match=r"must have 4 axes, got shape \(1, 1\)"):
        effective_receptive_field(lambda x: x.mean((1, 2)), images, jax.random.key(0))
    with pytest.raises(ValueError, match="no input counts"):
        effective_receptive_field(lambda x: 0 * x, images, jax.random.key(0))


def test_examples():
    module = importlib.import_module(
        "jaxml.ops.receptive_field"
    )  # ops has a function so
    result = doctest.testmod(module)
    assert result.attempted > 2
    assert not result.failed
