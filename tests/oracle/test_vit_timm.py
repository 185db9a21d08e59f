"""The vision transformer gives timm's outputs and gradients."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

from jaxml.interop import convert, vit  # noqa: E402
from jaxml.nn.positions import resize_positions, sincos_positions  # noqa: E402
from jaxml.nn.vit import VisionTransformer  # noqa: E402

pytestmark = pytest.mark.oracle


def our_params(state, module):
    """A state dict of timm's names in our tree."""
    size = module.image_size
    size = size if isinstance(size, tuple) else (size, size)
    images = jnp.ones((1, *size, 3))
    like = jax.eval_shape(lambda: module.init(jax.random.key(0), images, train=False))
    state = {name: value.detach().numpy() for name, value in state.items()}
    return convert(state, vit.conversion(module, "timm"), like)[0]["params"]


def relative_error(actual, expected):
    """The largest over the leaves of |actual - expected| / |expected|."""
    chex.assert_trees_all_equal_shapes(actual, expected)

    def error(actual, expected):
        actual, expected = (np.asarray(x, np.float64) for x in (actual, expected))
        return np.linalg.norm(actual - expected) / np.linalg.norm(expected)

    return max(jax.tree.leaves(jax.tree.map(error, actual, expected)))


@pytest.mark.parametrize("pool", ["class", "mean"])
def test_outputs_and_gradients(pool, rng):
    torch.manual_seed(0)
    options = {} if pool == "class" else {"class_token": False, "global_pool": "avg"}
    layer_scale = None if pool == "class" else 0.3
    model = timm.models.VisionTransformer(
        img_size=(24, 16),
        patch_size=4,
        embed_dim=48,
        depth=3,
        num_heads=4,
        num_classes=7,
        fc_norm=False,
        init_values=layer_scale,
        **options,
    )
    with torch.no_grad():
        for p in model.parameters():  # nothing may be too small to matter
            p.add_(0.1 * torch.randn_like(p))
    images = rng.normal(size=(3, 24, 16, 3)).astype(np.float32)
    weights = rng.normal(size=(3, 7)).astype(np.float32)
    outputs = model(torch.from_numpy(images).permute(0, 3, 1, 2))
    (outputs * torch.from_numpy(weights)).sum().backward()

    module = VisionTransformer(
        image_size=(24, 16),
        patch_size=4,
        width=48,
        depth=3,
        heads=4,
        num_classes=7,
        class_token=pool == "class",
        pool=pool,
        layer_scale=layer_scale,
    )

    def objective(params):
        y = module.apply({"params": params}, images, train=True)
        return jnp.sum(y * weights), y

    params = our_params(model.state_dict(), module)
    grads, y = jax.jit(jax.grad(objective, has_aux=True))(params)
    assert relative_error(y, outputs.detach().numpy()) < 1e-5
    expected = our_params({n: p.grad for n, p in model.named_parameters()}, module)
    assert relative_error(grads, expected) < 1e-4


def test_published_weights_layout():
    """The tree of timm's ViT-Tiny is ours, leaf by leaf."""
    model = timm.create_model("vit_tiny_patch16_224")
    module = VisionTransformer(width=192, depth=12, heads=3, num_classes=1000)
    params = our_params(model.state_dict(), module)
    numbers = sum(p.numel() for p in model.parameters())
    assert sum(x.size for x in jax.tree.leaves(params)) == numbers


def test_sincos_is_timms():
    layers = pytest.importorskip("timm.layers")
    theirs = layers.build_sincos2d_pos_embed([3, 5], 16, interleave_sin_cos=False)
    ours = sincos_positions(3, 5, 16)
    columns = {tuple(np.round(c, 5)) for c in ours.T}
    assert columns == {tuple(np.round(c, 5)) for c in theirs.numpy().T}


@pytest.mark.parametrize("size", [(5, 7), (2, 3), (3, 4), (1, 9)])
def test_plainly_resampled_positions_are_torchs(rng, size):
    positions = np.float32(rng.normal(size=(1 + 3 * 4, 6)))
    picture = torch.from_numpy(positions[1:]).reshape(1, 3, 4, 6).permute(0, 3, 1, 2)
    theirs = torch.nn.functional.interpolate(picture, size, mode="bicubic")
    theirs = theirs[0].permute(1, 2, 0).reshape(-1, 6).numpy()
    ours = resize_positions(positions, (3, 4), size, antialias=False)
    chex.assert_trees_all_equal(ours[:1], positions[:1])
    chex.assert_trees_all_close(ours[1:], theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(5, 7), (2, 3), (3, 4)])
def test_resampled_positions_are_timms(rng, size):
    layers = pytest.importorskip("timm.layers")
    positions = np.float32(rng.normal(size=(1 + 3 * 4, 6)))
    theirs = layers.resample_abs_pos_embed(
        torch.from_numpy(positions)[None], list(size), [3, 4]
    )
    ours = resize_positions(positions, (3, 4), size)
    chex.assert_trees_all_close(ours, theirs[0].numpy(), rtol=1e-4, atol=1e-5)
