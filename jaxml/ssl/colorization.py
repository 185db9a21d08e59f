"""Colorization: tell the colours of an image from its lightness.

The ab plane of CIE Lab is cut into a grid; at every place of a coarse map a network says how
probable each bin is. The truth Z is spread over the five bins nearest to it by a Gaussian,
rare colours count more, and colours come from a mean that is annealed towards the mode:

    L = mean over places of  - w_{argmax Z} sum_q Z_q log P_q
    w ~ 1 / ((1 - lambda) p~ + lambda / Q),    sum_q p~_q w_q = 1
    ab = sum_q q softmax(log P / T)_q,    T = 0.38

with p~ the share of each bin in the training set, smoothed. The traps: means, of squares or
of T = 1, give brown where an object may have several colours, and so does a loss without
weights, since most pixels are nearly gray; the bins are those inside the gamut of sRGB, to
be computed and not guessed; and a bin's weight is its truth's, not its prediction's.

Reference: Zhang, Isola and Efros, "Colorful Image Colorization", ECCV 2016,
https://arxiv.org/abs/1603.08511 (equations 2 to 5, section 2, appendix for the network).
Deviations: the authors' table has 313 bins of 10 x 10, of which those that hold a colour of
sRGB are 261; lightness is scaled to [-1, 1].
"""

from collections.abc import Sequence
from functools import cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxml.export import export
from jaxml.method import Batch, Method, Metrics, ModelState, Params
from jaxml.metrics.collapse import feature_std
from jaxml.nn.conv import Conv
from jaxml.nn.functional import apply_module, init_module
from jaxml.nn.norm import BatchNorm
from jaxml.ops.augment import to_float
from jaxml.ops.lab import lab_to_rgb, rgb_to_lab
from jaxml.ops.resize import resize_image
from jaxml.parallel.collectives import pmean
from jaxml.typing import Array, Float, PRNGKeyArray

Block = tuple[int, int, int, int]
"""Channels, convolutions, stride of the last of them, dilation of all."""

BLOCKS: tuple[Block, ...] = (
    (64, 2, 2, 1),
    (128, 2, 2, 1),
    (256, 3, 2, 1),
    (512, 3, 1, 1),
    (512, 3, 1, 2),
    (512, 3, 1, 2),
    (512, 3, 1, 1),
)
"""conv1 to conv7 of the paper's network."""


@export("ssl.gamut_bins", since="0.1")
def gamut_bins(grid: int = 10) -> Float[np.ndarray, "bins 2"]:
    """The points (a, b) of a grid whose cells hold a colour of sRGB, in order of a and b.

    Colours are those of 8 bits on the faces of the RGB cube. What lies inside it has the
    ab of a face too: going up or down in lightness alone, one comes to the surface.

    Args:
        grid: distance of the points.

    Raises:
        ValueError: unless the distance is positive.

    >>> gamut_bins().shape, gamut_bins(20).shape
    ((261, 2), (77, 2))
    """
    if grid < 1:
        raise ValueError(f"grid must be positive, got {grid}")
    return _gamut_bins(grid).copy()


@cache
def _gamut_bins(grid: int) -> np.ndarray:
    levels = np.arange(256, dtype=np.float32) / 255
    plane = np.stack(np.meshgrid(levels, levels, indexing="ij"), axis=-1)
    faces = [np.insert(plane, i, end, axis=-1) for i in range(3) for end in (0, 1)]
    with jax.ensure_compile_time_eval():
        ab = np.asarray(rgb_to_lab(np.stack(faces)))[..., 1:].reshape(-1, 2)
    return grid * np.unique(np.round(ab / grid), axis=0).astype(np.float32)


@export("ssl.soft_encode", since="0.1")
def soft_encode(
    ab: Float[Array, "*batch 2"],
    bins: Float[Array, "bins 2"],
    *,
    neighbours: int = 5,
    sigma: float = 5.0,
) -> Float[Array, "*batch bins"]:
    """Colours as distributions over bins: Gaussian weights of the nearest ones.

    Args:
        ab: colours of Lab.
        bins: see `gamut_bins`.
        neighbours: number of bins that get a share.
        sigma: of the Gaussian, in units of Lab.

    Raises:
        ValueError: unless 1 <= neighbours <= bins and sigma is positive.
    """
    if not 1 <= neighbours <= len(bins) or not sigma > 0:
        raise ValueError(
            f"neighbours must be from 1 to {len(bins)} and sigma positive, got "
            f"{neighbours} and {sigma}"
        )
    square = _squares(ab, bins)
    nearest, which = lax.top_k(-square, neighbours)
    # Far outside of the gamut all five would underflow: the softmax does not.
    shares = jax.nn.softmax(nearest / (2 * sigma**2))
    empty = jnp.zeros_like(square)
    return jnp.put_along_axis(empty, which, shares, axis=-1, inplace=False)


@export("ssl.color_prior", since="0.1")
def color_prior(
    images: Array, bins: Float[Array, "bins 2"]
) -> Float[np.ndarray, "bins"]:
    """The share of all pixels whose nearest bin each is.

    Args:
        images: RGB [n, height, width, 3], uint8 or floats in [0, 1].
        bins: see `gamut_bins`.
    """

    def count(image: Array) -> Array:
        ab = rgb_to_lab(to_float(image))[..., 1:].reshape(-1, 2)
        nearest = jnp.argmin(_squares(ab, bins), axis=1)
        return jnp.bincount(nearest, length=len(bins))

    counts = jax.jit(lambda x: lax.map(count, x))(images)
    total = np.asarray(counts).sum(axis=0, dtype=np.float64)
    return total / total.sum()


@export("ssl.color_weights", since="0.1")
def color_weights(
    prior: Float[Array, "bins"],
    bins: Float[Array, "bins 2"],
    *,
    mix: float = 0.5,
    sigma: float = 5.0,
) -> Float[np.ndarray, "bins"]:
    """What each bin counts, so that a pixel drawn from the smoothed prior counts 1.

    Args:
        prior: share of each bin, see `color_prior`.
        bins: see `gamut_bins`.
        mix: lambda, the share of the uniform distribution; 1 makes all weights 1.
        sigma: of the Gaussian that smooths the prior, in units of Lab.

    Raises:
        ValueError: unless mix is in (0, 1], sigma positive and the prior a distribution.
    """
    p = np.asarray(prior, np.float64)
    if not 0 < mix <= 1 or not sigma > 0:
        raise ValueError(
            f"mix must be in (0, 1] and sigma positive, got {mix} and {sigma}"
        )
    if p.min() < 0 or abs(p.sum() - 1) > 1e-4:
        raise ValueError(
            f"prior must be shares that add up to 1, got sum {p.sum():.4g}"
        )
    points = np.asarray(bins, np.float64)
    square = np.square(points[:, None] - points[None]).sum(axis=-1)
    kernel = np.exp(-square / (2 * sigma**2))
    smooth = (kernel / kernel.sum(axis=0, keepdims=True)) @ p
    weights = 1 / ((1 - mix) * smooth + mix / len(p))
    return weights / (smooth @ weights)


@export("ssl.annealed_mean", since="0.1")
def annealed_mean(
    logits: Float[Array, "*batch bins"],
    bins: Float[Array, "bins 2"],
    temperature: float = 0.38,
) -> Float[Array, "*batch 2"]:
    """Colours of distributions: 1 is the mean, near 0 the most probable bin.

    Raises:
        ValueError: unless the temperature is positive.
    """
    if not temperature > 0:
        raise ValueError(f"the temperature must be positive, got {temperature}")
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    p = jax.nn.softmax(wide / temperature)
    return jnp.matmul(p, jnp.asarray(bins, p.dtype), precision="highest")


@export("ssl.colorize", since="0.1")
def colorize(
    images: Float[Array, "batch height width channels"],
    logits: Float[Array, "batch rows columns bins"],
    bins: Float[Array, "bins 2"],
    temperature: float = 0.38,
) -> Float[Array, "batch height width 3"]:
    """RGB with the lightness of images (RGB or gray) and the colours of a map."""
    ab = annealed_mean(logits, bins, temperature)
    ab = _resized(ab, images.shape[1:3])
    lab = jnp.concatenate([_lightness(images), ab.astype(images.dtype)], axis=-1)
    return lab_to_rgb(lab)


@export("ssl.Colorization", since="0.1")
class Colorization(nn.Module):
    """Blocks of convolutions, doubled in size once, and a distribution at each place.

    Attributes:
        blocks: of the encoder; batch norm follows each.
        up_width: channels after the doubling (conv8).
        num_bins: of the distributions.
        axis_name: mesh axis over which batch statistics are shared.
    """

    blocks: Sequence[Block] = BLOCKS
    up_width: int = 256
    num_bins: int = 261
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, lightness: Float[Array, "batch height width 1"], *, train: bool
    ) -> tuple[Float[Array, "batch features"], Float[Array, "batch rows columns bins"]]:
        """Returns the encoder's features, their mean over space, and logits of bins."""
        x = lightness
        for width, count, stride, dilation in self.blocks:
            for i in range(count):
                last = stride if i == count - 1 else 1
                x = Conv(width, 3, last, dilation=dilation, use_bias=True)(x)
                x = nn.relu(x)
            x = BatchNorm(axis_name=self.axis_name)(x, train=train)
        h = jnp.mean(x, axis=(1, 2))
        x = nn.relu(nn.ConvTranspose(self.up_width, (4, 4), (2, 2))(x))
        for _ in range(2):
            x = nn.relu(Conv(self.up_width, 3, use_bias=True)(x))
        return h, Conv(self.num_bins, 1, use_bias=True, name="bins")(x)


@export("ssl.colorization", since="0.1")
def colorization(
    model: Colorization,
    bins: Float[Array, "bins 2"] | None = None,
    weights: Float[Array, "bins"] | None = None,
    *,
    temperature: float = 0.38,
) -> Method:
    """The colorization method; a batch holds one RGB image, `view`.

    `predict` returns the features [batch, features] of `image`, RGB or gray. Metrics: the
    loss, which without weights is at most about ln num_bins; the share of places whose
    most probable bin is the nearest one (`accuracy`); `ab_error`, the root of the mean
    square distance of the annealed mean, in units of Lab; `chroma`, how colourful it is
    beside the truth (1 is right, 0 gray); and `feature_std` of the features (near 1
    healthy, 0 collapsed).

    Args:
        model: its `num_bins` is the number of bins.
        bins: by default `gamut_bins()`.
        weights: of the bins, see `color_weights`; None counts all pixels alike.
        temperature: of the annealed mean, for the metrics alone.

    Raises:
        ValueError: unless bins and weights are as many as the model's; in `loss`, unless
            images have colours.
    """
    points = jnp.asarray(gamut_bins() if bins is None else bins, jnp.float32)
    counts = jnp.ones(len(points)) if weights is None else jnp.asarray(weights)
    counts = counts.astype(jnp.float32)
    if not model.num_bins == len(points) == len(counts):
        raise ValueError(
            "bins and weights must be as many as the model's, got "
            f"{len(points)}, {len(counts)} and {model.num_bins}"
        )

    def init(key: PRNGKeyArray, batch: Batch) -> tuple[Params, ModelState]:
        return init_module(model, key, _lightness(batch["view"]) / 50 - 1, train=True)

    def loss(
        params: Params, model_state: ModelState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[ModelState, Metrics]]:
        del key  # the view is drawn before
        view = batch["view"]
        if view.shape[-1] != 3:
            raise ValueError(f"images must be RGB, got {view.shape[-1]} channels")
        lab = rgb_to_lab(view.astype(jnp.float32))
        light = (lab[..., :1] / 50 - 1).astype(view.dtype)
        (h, logits), model_state = apply_module(
            model, params, model_state, light, train=True
        )
        ab = _resized(lab[..., 1:], logits.shape[1:3])
        logits, truth = logits.astype(jnp.float32), soft_encode(ab, points)
        nearest = jnp.argmax(truth, axis=-1)
        losses = -jnp.sum(truth * jax.nn.log_softmax(logits), axis=-1)
        value = jnp.mean(counts[nearest] * losses)
        is_right = jnp.argmax(logits, axis=-1) == nearest
        guess = annealed_mean(logits, points, temperature)
        square, chroma, wanted = pmean(
            (
                jnp.mean(jnp.sum(jnp.square(guess - ab), axis=-1)),
                jnp.mean(jnp.linalg.norm(guess, axis=-1)),
                jnp.mean(jnp.linalg.norm(ab, axis=-1)),
            ),
            model.axis_name,
        )
        return value, (
            model_state,
            {
                "loss": value,
                "accuracy": jnp.mean(is_right, dtype=jnp.float32),
                "ab_error": jnp.sqrt(square),
                "chroma": chroma / jnp.maximum(wanted, 1e-3),
                "feature_std": feature_std(h, axis_name=model.axis_name),
            },
        )

    def predict(
        params: Params, model_state: ModelState, batch: Batch
    ) -> Float[Array, "batch features"]:
        light = _lightness(batch["image"]) / 50 - 1
        (h, _), _ = apply_module(model, params, model_state, light, train=False)
        return h

    return Method(init, loss, predict)


def _lightness(images: Array) -> Float[Array, "batch height width 1"]:
    """L in [0, 100] of RGB or gray images."""
    return rgb_to_lab(jnp.broadcast_to(images, (*images.shape[:-1], 3)))[..., :1]


def _squares(
    ab: Float[Array, "*batch 2"], bins: Float[Array, "bins 2"]
) -> Float[Array, "*batch bins"]:
    """Squared distances, from differences: products would lose the small ones."""
    points = jnp.asarray(bins, ab.dtype)
    shape = (1,) * (ab.ndim - 1) + (len(points),)
    a, b = (ab[..., i : i + 1] - points[:, i].reshape(shape) for i in range(2))
    return jnp.square(a) + jnp.square(b)


def _resized(x: Array, size: Sequence[int]) -> Array:
    height, width = size
    return jax.vmap(lambda image: resize_image(image, (height, width)))(x)
