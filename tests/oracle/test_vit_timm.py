"""The vision transformer gives timm's outputs and gradients."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

from jaxml.nn.vit import VisionTransformer, sincos_positions  # noqa: E402

pytestmark = pytest.mark.oracle


def our_params(state):
    """A state dict of timm's names in our tree."""
    state = {name: np.asarray(value.detach()) for name, value in state.items()}
    layer = lambda name: {
        "kernel": state[name + ".weight"].T,
        "bias": state[name + ".bias"],
    }
    norm = lambda name: {
        "scale": state[name + ".weight"],
        "bias": state[name + ".bias"],
    }
    patches = state["patch_embed.proj.weight"].transpose(2, 3, 1, 0)
    params = {
        "patch_embed": {
            "kernel": patches.reshape(-1, patches.shape[-1]),
            "bias": state["patch_embed.proj.bias"],
        },
        "position": state["pos_embed"][0],
        "norm": norm("norm"),
        "head": layer("head"),
    }
    if "cls_token" in state:
        params["class"] = state["cls_token"][0, 0]
    for i in range(len({name.split(".")[1] for name in state if "blocks" in name})):
        name = f"blocks.{i}."
        params[f"blocks_{i}"] = {
            "norm1": norm(name + "norm1"),
            "attention": {
                "qkv": layer(name + "attn.qkv"),
                "out": layer(name + "attn.proj"),
            },
            "norm2": norm(name + "norm2"),
            "mlp": {
                "dense1": layer(name + "mlp.fc1"),
                "dense2": layer(name + "mlp.fc2"),
            },
        }
    return jax.tree.map(jnp.asarray, params)


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
    model = timm.models.VisionTransformer(
        img_size=(24, 16),
        patch_size=4,
        embed_dim=48,
        depth=3,
        num_heads=4,
        num_classes=7,
        fc_norm=False,
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
    )

    def objective(params):
        y = module.apply({"params": params}, images, train=True)
        return jnp.sum(y * weights), y

    params = our_params(model.state_dict())
    grads, y = jax.jit(jax.grad(objective, has_aux=True))(params)
    assert relative_error(y, outputs.detach().numpy()) < 1e-5
    expected = our_params({n: p.grad for n, p in model.named_parameters()})
    assert relative_error(grads, expected) < 1e-4


def test_published_weights_layout():
    """The tree of timm's ViT-Tiny is ours, leaf by leaf."""
    model = timm.create_model("vit_tiny_patch16_224")
    module = VisionTransformer(width=192, depth=12, heads=3, num_classes=1000)
    init = lambda: module.init(
        jax.random.key(0), jnp.ones((1, 224, 224, 3)), train=False
    )
    ours = jax.eval_shape(init)["params"]
    chex.assert_trees_all_equal_shapes(our_params(model.state_dict()), ours)


def test_sincos_is_timms():
    layers = pytest.importorskip("timm.layers")
    theirs = layers.build_sincos2d_pos_embed([3, 5], 16, interleave_sin_cos=False)
    ours = sincos_positions(3, 5, 16)
    columns = {tuple(np.round(c, 5)) for c in ours.T}
    assert columns == {tuple(np.round(c, 5)) for c in theirs.numpy().T}
