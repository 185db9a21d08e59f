"""Contrastive and clustering losses side by side with lightly's."""

import numpy as np
import pytest

from jaxml.losses import info_nce, nt_xent
from jaxml.ssl import sinkhorn, swav_loss

torch = pytest.importorskip("torch")
lightly = pytest.importorskip("lightly")
pytestmark = pytest.mark.oracle


def tensors(*arrays):
    return [torch.from_numpy(np.asarray(a)).requires_grad_() for a in arrays]


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
