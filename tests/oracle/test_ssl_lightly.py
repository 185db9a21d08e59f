"""Losses and heads side by side with lightly's."""

from functools import partial

import flax.linen as nn
import numpy as np
import pytest

from jaxml.losses import info_nce, nt_xent
from jaxml.ssl import (
    BYOL,
    DINO,
    SimSiam,
    byol_loss,
    dino_loss,
    negative_cosine,
    sinkhorn,
    swav_loss,
)

torch = pytest.importorskip("torch")
lightly = pytest.importorskip("lightly")
pytestmark = pytest.mark.oracle


def tensors(*arrays):
    return [torch.from_numpy(np.asarray(a)).requires_grad_() for a in arrays]


class Flat(nn.Module):
    """The features are the pixels."""

    @nn.compact
    def __call__(self, images, *, train):
        return images.reshape(len(images), -1)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent(rng, temperature):
    import jax
    from lightly.loss import NTXentLoss

    z1, z2 = np.float32(rng.normal(size=(2, 9, 6)))
    a, b = tensors(z1, z2)
    theirs = NTXentLoss(temperature)(a, b)
    theirs.backward()
    value, grads = jax.value_and_grad(nt_xent, (0, 1))(z1, z2, temperature)
    np.testing.assert_allclose(value, theirs.item(), rtol=1e-5)
    for ours, tensor in zip(grads, (a, b), strict=True):
        np.testing.assert_allclose(ours, tensor.grad, rtol=1e-4, atol=1e-6)


def test_moco(rng):
    from lightly.loss import NTXentLoss

    loss = NTXentLoss(0.2, memory_bank_size=(12, 6))
    q, k = np.float32(rng.normal(size=(2, 4, 6)))
    loss(*tensors(q, k))  # fills the first rows
    queue = loss.memory_bank.bank.numpy().copy()  # [size, dim]; the next call writes it
    a, b = tensors(q, k)
    theirs = loss(a, b.detach()).item()
    ours = info_nce(q, k, queue, temperature=0.2, normalize=True)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_sinkhorn_and_swav(rng):
    import lightly.loss.swav_loss as peer

    scores = np.float32(rng.uniform(-1, 1, size=(4, 8, 5)))
    codes = [sinkhorn(s, 0.05, 3) for s in scores[:2]]
    for ours, s in zip(codes, scores[:2], strict=True):
        theirs = peer.sinkhorn(torch.from_numpy(s), iterations=3, epsilon=0.05)
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=1e-6)
    large, small = tensors(*scores[:2]), tensors(*scores[2:])
    theirs = peer.SwaVLoss()(large, small).item()
    np.testing.assert_allclose(swav_loss(scores, np.stack(codes)), theirs, rtol=1e-5)


def test_dino_and_its_centre(rng):
    """Two steps: the second sees the centre that the first has left."""
    import jax
    from lightly.loss import DINOLoss

    loss = DINOLoss(output_dim=7, teacher_temp=0.05, warmup_teacher_temp=0.05)
    step = jax.value_and_grad(dino_loss)
    centre = np.zeros(7, np.float32)
    for scores in np.float32(rng.uniform(-1, 1, size=(2, 6, 4, 7))):
        student, teacher = scores[:4], scores[4:]
        (s,) = tensors(student)
        theirs = loss(list(torch.from_numpy(teacher)), list(s))
        theirs.backward()
        value, grad = step(student, teacher, centre, teacher_temperature=0.05)
        np.testing.assert_allclose(value, theirs.item(), rtol=1e-5)
        np.testing.assert_allclose(grad, s.grad, rtol=1e-4, atol=1e-6)
        centre = 0.9 * centre + 0.1 * teacher.mean((0, 1))
        np.testing.assert_allclose(centre, loss.center.numpy()[0, 0], atol=1e-6)


def test_negative_cosine_and_byol(rng):
    from lightly.loss import NegativeCosineSimilarity

    p1, p2, z1, z2 = np.float32(rng.normal(size=(4, 5, 6)))
    loss = NegativeCosineSimilarity()
    theirs = [loss(*tensors(*pair)).item() for pair in ((p1, z2), (p2, z1))]
    np.testing.assert_allclose(negative_cosine(p1, z2), theirs[0], rtol=1e-5)
    np.testing.assert_allclose(
        byol_loss(p1, p2, z1, z2), 4 + 2 * sum(theirs), rtol=1e-5
    )


def copied(head, *parts):
    """Lightly's head with our weights: dense layers and batch norms, in order."""
    layers = [m for m in head.modules() if isinstance(m, torch.nn.Linear)]
    norms = [m for m in head.modules() if isinstance(m, torch.nn.BatchNorm1d)]
    ours = {name: part for params in parts for name, part in params.items()}
    for kind, modules in (("Dense", layers), ("BatchNorm", norms)):
        for i, module in enumerate(modules):
            given = ours.get(f"{kind}_{i}", {})
            if kind == "Dense":
                module.weight.data = torch.tensor(np.array(given["kernel"]).T.copy())
            if "scale" in given:
                module.weight.data = torch.tensor(np.array(given["scale"]))
            if "bias" in given:
                module.bias.data = torch.tensor(np.array(given["bias"]))
    return head.train()


@pytest.mark.parametrize("name", ["BYOL", "SimSiam"])
def test_projector_and_predictor(rng, name):
    import jax
    from lightly.models import modules

    backbone = Flat()
    if name == "BYOL":
        model = BYOL(backbone, (7, 5), (6, 5))
        sizes = (8, 7, 5), (5, 6, 5)
    else:
        model = SimSiam(backbone, dim=7, bottleneck=3)
        sizes = (8, 7, 7), (7, 3, 7)
    images = np.float32(rng.normal(size=(9, 2, 2, 2)))
    params = jax.jit(partial(model.init, train=True))(jax.random.key(0), images)
    params = jax.tree.map(lambda p: p + 0.1, params["params"])
    stats = jax.tree.map(np.asarray, model.init(jax.random.key(0), images, train=True))
    variables = {"params": params, "batch_stats": stats["batch_stats"]}
    (_, z, p), _ = model.apply(variables, images, train=True, mutable=["batch_stats"])
    projector = getattr(modules, f"{name}ProjectionHead")(*sizes[0])
    predictor = getattr(modules, f"{name}PredictionHead")(*sizes[1])
    theirs = copied(projector, params["projector"])(torch.from_numpy(images).flatten(1))
    np.testing.assert_allclose(z, theirs.detach(), rtol=1e-4, atol=1e-5)
    theirs = copied(predictor, params["predictor"])(theirs)
    np.testing.assert_allclose(p, theirs.detach(), rtol=1e-4, atol=1e-5)


def test_dino_head(rng):
    import jax
    from lightly.models.modules import DINOProjectionHead

    model = DINO(Flat(), 6, (7, 7, 5))
    images = np.float32(rng.normal(size=(4, 8)))
    params = jax.jit(partial(model.init, train=True))(jax.random.key(0), images)
    params = jax.tree.map(lambda p: p + 0.1, params["params"])
    _, scores = model.apply({"params": params}, images, train=True)
    last = np.asarray(params["last"]["kernel"])
    head = DINOProjectionHead(8, 7, 5, 6)
    head.last_layer.weight_v.data = torch.tensor(last.T.copy())
    layers = [m for m in head.layers if isinstance(m, torch.nn.Linear)]
    for i, layer in enumerate(layers):
        given = params["head"][f"Dense_{i}"]
        layer.weight.data = torch.tensor(np.array(given["kernel"]).T.copy())
        layer.bias.data = torch.tensor(np.array(given["bias"]))
    theirs = head(torch.from_numpy(images)).detach()
    np.testing.assert_allclose(scores, theirs, rtol=1e-5, atol=1e-6)
