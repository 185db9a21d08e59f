"""Deformable convolution against loops in float64 and torchvision's operator."""

from functools import partial
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxml.nn import convolve
from jaxml.ops import deform_conv
from jaxml.ops.deform_conv import deform_conv2d
from jaxml.parallel import data_mesh

OPTIONS = [  # as in tests/oracle/write_golden_sampling.py
    {"stride": 1, "padding": 1, "dilation": 1, "offset_groups": 1},
    {"stride": 2, "padding": 0, "dilation": 1, "offset_groups": 1},
    {"stride": 1, "padding": 2, "dilation": 2, "offset_groups": 2},
    {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2), "offset_groups": 2},
]


@pytest.fixture(scope="module")
def golden():
    return np.load(Path(__file__).parent / "golden" / "deform_conv.npz")


@pytest.mark.parametrize("form", ["gather", "matmul"])
@pytest.mark.parametrize("case", range(4))
def test_torchvision(golden, case, form, monkeypatch):
    for name in ("PLACES_PER_BLOCK", "PLACES_PER_GRADIENT"):
        monkeypatch.setattr(deform_conv, name, 8)  # several, and one not full
    monkeypatch.setattr(deform_conv, "CHANNELS_PER_PRODUCT", 8)  # likewise
    last = lambda name: np.moveaxis(golden[f"{name}{case}"], 1, -1)
    names = ["inputs", "offsets", "kernel", "bias", "mask"]
    if f"d_mask{case}" not in golden:
        names.remove("mask")
    kernel = golden[f"kernel{case}"].transpose(2, 3, 1, 0)
    special = {"kernel": kernel, "bias": golden[f"bias{case}"]}
    arrays = [special.get(n) if n in special else last(n) for n in names]

    @jax.jit
    def both(pull, *arrays):
        f = lambda x, o, k, b, m=None: deform_conv2d(
            x, o, k, bias=b, mask=m, form=form, **OPTIONS[case]
        )
        out, transpose = jax.vjp(f, *arrays)
        return out, transpose(pull)

    out, gradients = both(last("pull"), *arrays)
    chex.assert_trees_all_close(out, last("out"), rtol=1e-4, atol=1e-5)
    special = {"bias": golden[f"d_bias{case}"]}
    special["kernel"] = golden[f"d_kernel{case}"].transpose(2, 3, 1, 0)
    for name, gradient in zip(names, gradients, strict=True):
        expected = special[name] if name in special else last(f"d_{name}")
        chex.assert_trees_all_close(gradient, expected, rtol=1e-4, atol=2e-5)


def deform_numpy(x, offsets, kernel, mask):
    """The definition: 3 x 3 taps around every pixel, one image of one group."""
    height, width, _ = x.shape
    out = np.zeros((height, width, kernel.shape[-1]))
    for i, j in np.ndindex(height, width):
        for t, (a, b) in enumerate(np.ndindex(3, 3)):
            y, z = np.array([i + a - 1, j + b - 1]) + offsets[i, j, 2 * t : 2 * t + 2]
            for u, v in np.ndindex(height, width):
                weight = max(0, 1 - abs(y - u)) * max(0, 1 - abs(z - v))
                out[i, j] += weight * mask[i, j, t] * (x[u, v] @ kernel[a, b])
    return out


def draw(rng, channels=2, features=3, side=(4, 5)):
    x, k = (
        rng.normal(size=(*side, channels)),
        rng.normal(size=(3, 3, channels, features)),
    )
    return x, 2 * rng.normal(size=(*side, 18)), k, rng.random((*side, 9))


def test_the_definition_also_far_off_the_image(rng):
    x, offsets, kernel, mask = draw(rng)
    offsets[0, 0] = 1e6 * np.resize([1, -1], 18)
    expected = deform_numpy(x, offsets, kernel, mask)
    x, offsets, kernel, mask = (
        jnp.asarray(a, jnp.float32) for a in (x, offsets, kernel, mask)
    )
    actual = deform_conv2d(x[None], offsets[None], kernel, mask=mask[None])[0]
    chex.assert_trees_all_close(actual, np.float32(expected), rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_equal(actual[0, 0], jnp.zeros(3))


@pytest.mark.parametrize("form", ["gather", "matmul"])
def test_gradients(rng, form):
    x, offsets, kernel, mask = draw(rng, side=(3, 3))
    offsets = np.floor(offsets) + rng.uniform(0.1, 0.9, offsets.shape)  # off the kinks
    x, offsets, kernel, mask = (
        jnp.asarray(a, jnp.float32)
        for a in (x[None], offsets[None], kernel, mask[None])
    )
    f = jax.jit(
        lambda x, o, k, m: jnp.sum(deform_conv2d(x, o, k, mask=m, form=form) ** 2)
    )
    chex.assert_numerical_grads(
        f, (x, offsets, kernel, mask), order=1, eps=1e-3, atol=1e-2, modes=["rev"]
    )


def test_without_moves_it_is_a_convolution(rng):
    x = jnp.asarray(rng.normal(size=(2, 5, 6, 4)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 2, 6)), jnp.float32)
    still = jnp.zeros((2, 3, 3, 18))
    actual = deform_conv2d(x, still, kernel, stride=2)
    expected = convolve(x, kernel, stride=2, groups=2)
    chex.assert_trees_all_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_batches_devices_and_bfloat16(rng):
    """vmap, and a kernel that eight devices share."""
    arrays = [draw(rng) for _ in range(8)]
    x, o, m = (
        jnp.asarray(np.stack([a[i] for a in arrays]), jnp.float32) for i in (0, 1, 3)
    )
    kernel = jnp.asarray(arrays[0][2], jnp.float32)
    value = lambda kernel, x, o, m: jnp.sum(deform_conv2d(x, o, kernel, mask=m) ** 2)
    expected = jax.jit(jax.grad(value, (0, 1, 2, 3)))(kernel, x, o, m)

    @jax.jit
    @partial(
        jax.shard_map, mesh=data_mesh(), in_specs=(P(), *[P("data")] * 3), out_specs=P()
    )
    def shared(*args):
        return jax.grad(lambda k: jax.lax.psum(value(k, *args[1:]), "data"))(args[0])

    chex.assert_trees_all_close(
        shared(kernel, x, o, m), expected[0], rtol=1e-4, atol=1e-3
    )
    apart = jax.jit(jax.vmap(jax.grad(value, (0, 1)), (None, 0, 0, 0)))
    kernels, images = apart(kernel, x[:, None], o[:, None], m[:, None])
    chex.assert_trees_all_close(kernels.sum(0), expected[0], rtol=1e-4, atol=1e-3)
    chex.assert_trees_all_close(images[:, 0], expected[1], rtol=1e-4, atol=1e-4)
    half = deform_conv2d(x.astype(jnp.bfloat16), o, kernel.astype(jnp.bfloat16), mask=m)
    assert half.dtype == jnp.bfloat16
    full = deform_conv2d(x, o, kernel, mask=m)
    chex.assert_trees_all_close(half.astype(jnp.float32), full, rtol=0.1, atol=0.1)


def test_bad_input_is_refused():
    x, o, k = jnp.zeros((1, 4, 5, 4)), jnp.zeros((1, 4, 5, 18)), jnp.zeros((3, 3, 4, 2))
    with pytest.raises(ValueError, match=r"offsets must .* \(1, 4, 5, 36\), got"):
        deform_conv2d(x, o, k, offset_groups=2)
    with pytest.raises(
        ValueError, match=r"offset_groups must divide 4 channels, got 3"
    ):
        deform_conv2d(x, o, k, offset_groups=3)
    with pytest.raises(ValueError, match=r"groups must divide the channels"):
        deform_conv2d(x, o, jnp.zeros((3, 3, 3, 2)))
    with pytest.raises(ValueError, match=r"mask must have the shape \(1, 4, 5, 9\)"):
        deform_conv2d(x, o, k, mask=jnp.zeros((1, 4, 5, 8)))
    with pytest.raises(ValueError, match=r"the kernel must fit in the padded image"):
        deform_conv2d(x, o, k, padding=0, dilation=4)
    with pytest.raises(ValueError, match=r"form must be one of"):
        deform_conv2d(x, o, k, form="einsum")
