"""LARS, schedules and layer-wise decay side by side with timm's and lightly's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxml.nn.vit import VisionTransformer
from jaxml.ssl import cosine_momentum, lars, layerwise_decay, transformer_depth

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.oracle


def our_lars(p, grads, rate, decay):
    optimizer = lars(rate, decay)
    params = {"kernel": jnp.asarray(p)}
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for g in grads:
        updates, state = update({"kernel": jnp.asarray(g)}, state, params)
        params = optax.apply_updates(params, updates)
    return np.asarray(params["kernel"])


def their_lars(optimizer, p, grads):
    p = torch.nn.Parameter(torch.from_numpy(p.copy()))
    optimizer = optimizer([p])
    for g in grads:
        p.grad = torch.from_numpy(g)
        optimizer.step()
    return p.detach().numpy()


def test_lars_of_timm(rng):
    lars_of_timm = pytest.importorskip("timm.optim.lars").Lars
    p, *grads = np.float32(rng.normal(size=(6, 4, 5)))
    theirs = their_lars(
        lambda ps: lars_of_timm(ps, lr=0.7, momentum=0.9, always_adapt=True), p, grads
    )
    assert np.abs(theirs - p).max() > 1e-3
    np.testing.assert_allclose(our_lars(p, grads, 0.7, 0.0), theirs, rtol=1e-5)


@pytest.mark.parametrize("decay, rtol", [(1e-6, 1e-5), (0.1, None)])
def test_lars_of_lightly(rng, decay, rtol):
    """With a decay too: where it is small, or the gradient lies along the weights."""
    lars_of_lightly = pytest.importorskip("lightly.utils.lars").LARS
    p, *grads = np.float32(rng.normal(size=(6, 4, 5)))
    if rtol is None:
        grads, rtol = [0.3 * p], 1e-5
    theirs = their_lars(
        lambda ps: lars_of_lightly(ps, lr=0.7, momentum=0.9, weight_decay=decay),
        p,
        grads,
    )
    np.testing.assert_allclose(our_lars(p, grads, 0.7, decay), theirs, rtol=rtol)


def test_cosine_schedule_of_lightly():
    """Theirs arrives one step before `max_steps`."""
    schedule = pytest.importorskip("lightly.utils.scheduler").cosine_schedule
    ours = cosine_momentum(0.99, 10)
    for step in range(11):
        theirs = schedule(step, 11, 0.99, 1.0)
        np.testing.assert_allclose(ours(jnp.array(step)), theirs, rtol=1e-6)


def test_layerwise_decay_of_timm():
    """But for the last norm, which timm takes with the last block and BEiT with the head."""
    timm = pytest.importorskip("timm")
    from timm.optim._param_groups import param_groups_layer_decay

    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "num_heads": 3}
    theirs = timm.models.VisionTransformer(**sizes, depth=3, num_classes=2)
    scales = {}
    names = {id(p): name for name, p in theirs.named_parameters()}
    for group in param_groups_layer_decay(theirs, layer_decay=0.65):
        for p in group["params"]:
            scales[names[id(p)]] = group["lr_scale"]

    model = VisionTransformer(
        image_size=16, patch_size=8, width=12, depth=3, heads=3, num_classes=2
    )
    images = jnp.zeros((1, 16, 16, 3))
    params = model.init(jax.random.key(0), images, train=False)["params"]
    optimizer = layerwise_decay(optax.sgd(1.0), 0.65, transformer_depth(3))
    ones = jax.tree.map(jnp.ones_like, params)
    updates, _ = optimizer.update(ones, optimizer.init(params), params)
    ours = {
        "cls_token": updates["class"],
        "pos_embed": updates["position"],
        "patch_embed.proj.weight": updates["patch_embed"]["kernel"],
        "head.bias": updates["head"]["bias"],
    }
    for i in range(3):
        block = updates[f"blocks_{i}"]
        ours[f"blocks.{i}.norm1.weight"] = block["norm1"]["scale"]
        ours[f"blocks.{i}.attn.qkv.weight"] = block["attention"]["qkv"]["kernel"]
        ours[f"blocks.{i}.mlp.fc2.bias"] = block["mlp"]["dense2"]["bias"]
    for name, update in ours.items():
        np.testing.assert_allclose(-update, scales[name], rtol=1e-6, err_msg=name)
