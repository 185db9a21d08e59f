"""Inpainting: fill in what is missing of an image. A context encoder.

Part of the image is covered; an encoder reads the rest, a layer that joins all places of a
channel, but no two channels, passes it on, and a decoder paints the whole. With M the mask
of what is missing (1 = hidden), widened by a few pixels into what can be seen:

    L_rec = mean over images of  sum w (x - F((1 - M) x))^2 / count of w > 0
            w = 1 where hidden, 10 in the seam around it, 0 elsewhere
    L     = 0.999 L_rec + 0.001 L_adv,
            L_adv = max_D  E log D(x) + E log(1 - D(F((1 - M) x)))

The seam makes the painting go on where the picture ends. D sees paintings and pictures
alone, never the context: it would find the edge of the hole and nothing else.

The traps: a hidden pixel must not reach the encoder; D must not learn from the painter's
term, nor the painter from D's (each gets a stop-gradient, and `painter_optimizer` gives D
an optimizer of its own); a hole that is always in one place lets the encoder learn its
border, so features are better of random regions; L_rec alone paints the mean, a blur.

Reference: Pathak et al., "Context Encoders: Feature Learning by Inpainting", CVPR 2016,
https://arxiv.org/abs/1604.07379 (equations 1 to 3, sections 3.1 to 3.3). Deviations: the
encoder is four strided convolutions with batch norm, any module will do; the decoder always
paints the whole image (D looks at `window`, for a hole in the middle); the painter
minimises the non-saturating form of its term. Holes stand in `jaxml.ssl.holes`.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxml.export import export
from jaxml.method import Batch, Method, Metrics, ModelState, Params
from jaxml.metrics.collapse import feature_std
from jaxml.nn.conv import Conv
from jaxml.nn.dense import Dense
from jaxml.nn.functional import apply_module, init_module
from jaxml.nn.norm import BatchNorm
from jaxml.ssl.holes import cover
from jaxml.typing import Array, Bool, Float, PRNGKeyArray


@export("ssl.ChannelwiseDense", since="0.1")
class ChannelwiseDense(nn.Module):
    """Joins all places of each channel, with weights of its own; `kernel` [c, n, n].

    For c channels of n places that are c n^2 weights, where a dense layer has c^2 n^2.
    """

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch rows columns channels"]
    ) -> Float[Array, "batch rows columns channels"]:
        places, channels = x.shape[1] * x.shape[2], x.shape[3]
        init = nn.initializers.lecun_normal(batch_axis=0)
        kernel = self.param("kernel", init, (channels, places, places))
        bias = self.param("bias", nn.initializers.zeros, (places, channels))
        dtype = jnp.promote_types(x.dtype, kernel.dtype)
        flat = x.reshape(len(x), places, channels).astype(dtype)
        y = jnp.einsum("bpc,cpq->bqc", flat, kernel.astype(dtype))
        return (y + bias[None].astype(dtype)).reshape(x.shape)


@export("ssl.ContextEncoder", since="0.1")
class ContextEncoder(nn.Module):
    """Encoder, channel-wise dense layer, decoder; any size, the output has that of the input.

    Attributes:
        widths: channels of the encoder's 4x4 convolutions of stride 2, and of the decoder's.
        channels: of the images.
        axis_name: mesh axis over which batch statistics are shared.
    """

    widths: Sequence[int] = (64, 128, 256, 512)
    channels: int = 3
    axis_name: str | None = None

    def setup(self) -> None:
        self.convs = [Conv(width, 4, 2, padding=0) for width in self.widths]
        self.norms = [BatchNorm(axis_name=self.axis_name) for _ in self.widths]
        self.join = ChannelwiseDense()
        self.mix = Conv(self.widths[-1], 1, use_bias=True)  # across channels
        outs = (*self.widths[-2::-1], self.channels)
        self.ups = [nn.ConvTranspose(width, (4, 4), (2, 2)) for width in outs]
        self.up_norms = [BatchNorm(axis_name=self.axis_name) for _ in outs[:-1]]

    def __call__(
        self, images: Float[Array, "batch height width channels"], *, train: bool
    ) -> tuple[
        Float[Array, "batch features"], Float[Array, "batch height width channels"]
    ]:
        """Returns features and the painting, in [0, 1]."""
        x, sizes = self._encode(images, train=train)
        h = jnp.mean(x, axis=(1, 2))
        x = nn.relu(self.mix(self.join(x)))
        for i, (up, (height, width)) in enumerate(
            zip(self.ups, reversed(sizes), strict=True)
        ):
            x = up(x)[:, :height, :width]  # odd sizes were rounded up on their way
            if i < len(self.up_norms):
                x = nn.relu(self.up_norms[i](x, train=train))
        return h, nn.sigmoid(x)

    def features(self, images: Array, *, train: bool) -> Float[Array, "batch features"]:
        """What transfers: the mean over space of the encoder's map."""
        return jnp.mean(self._encode(images, train=train)[0], axis=(1, 2))

    def _encode(
        self, images: Array, *, train: bool
    ) -> tuple[Array, list[tuple[int, int]]]:
        x, sizes = images, []
        for conv, norm in zip(self.convs, self.norms, strict=True):
            height, width = x.shape[1:3]
            sizes.append((height, width))
            x = jnp.pad(x, ((0, 0), (1, 1 + height % 2), (1, 1 + width % 2), (0, 0)))
            x = nn.leaky_relu(norm(conv(x), train=train), 0.2)
        return x, sizes


@export("ssl.PaintingCritic", since="0.1")
class PaintingCritic(nn.Module):
    """Tells pictures from paintings; returns logits.

    Attributes:
        widths: channels of its 4x4 convolutions of stride 2; batch norm after all but
            the first.
        axis_name: mesh axis over which batch statistics are shared.
    """

    widths: Sequence[int] = (64, 128, 256, 512)
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch"]:
        x = images
        for i, width in enumerate(self.widths):
            x = Conv(width, 4, 2, padding=1, use_bias=i == 0)(x)
            if i:
                x = BatchNorm(axis_name=self.axis_name)(x, train=train)
            x = nn.leaky_relu(x, 0.2)
        return Dense(1)(x.reshape(len(x), -1))[:, 0]


@export("ssl.painting_loss", since="0.1")
def painting_loss(
    painted: Float[Array, "batch height width channels"],
    images: Float[Array, "batch height width channels"],
    hole: Bool[Array, "batch height width 1"],
    *,
    overlap: int = 7,
    overlap_weight: float = 10.0,
) -> Float[Array, ""]:
    """The squared error where images are hidden, and with more weight in a seam around.

    Args:
        painted: what was made of the images.
        images: what they are.
        hole: True where they are hidden; an image without a hole counts 0.
        overlap: width of the seam in pixels, in all eight directions.
        overlap_weight: of the seam's errors.

    Returns:
        The mean over images of the weighted sum over the number of values in it.

    Raises:
        ValueError: if shapes differ or the overlap is negative.
    """
    if painted.shape != images.shape or hole.shape != (*images.shape[:3], 1):
        raise ValueError(
            "paintings and images must have one shape and the hole its own channel, got "
            f"{painted.shape}, {images.shape} and {hole.shape}"
        )
    if overlap < 0:
        raise ValueError(f"overlap must not be negative, got {overlap}")
    hidden = hole.astype(jnp.float32)
    window = (1, 2 * overlap + 1, 2 * overlap + 1, 1)
    wide = lax.reduce_window(hidden, 0.0, lax.max, window, (1, 1, 1, 1), "SAME")
    weight = hidden + overlap_weight * (wide - hidden)
    error = jnp.square(painted.astype(jnp.float32) - images.astype(jnp.float32))
    total = jnp.sum(weight * error, axis=(1, 2, 3))
    count = jnp.sum(wide, axis=(1, 2, 3)) * images.shape[3]
    return jnp.mean(total / jnp.maximum(count, 1))


@export("ssl.inpainting", since="0.1")
def inpainting(
    model: nn.Module,
    critic: nn.Module | None = None,
    *,
    adversarial: float = 0.001,
    overlap: int = 7,
    overlap_weight: float = 10.0,
    window: int | None = None,
    fill: float = 0.5,
    axis_name: str | None = None,
) -> Method:
    """The inpainting method; a batch holds `view` and `hole`, see `hole_views`.

    `predict` returns the features [batch, features] of `image`, of which nothing is
    hidden. The parameters are `painter` and, where the adversarial weight is not zero,
    `critic`. Metrics: the loss (its critic's term included), `reconstruction`, and
    `feature_std` of the features (near 1 healthy, 0 collapsed); with a critic also
    `adversarial`, the painter's term, and `critic_accuracy`, near one half where pictures
    and paintings cannot be told apart.

    Args:
        model: as `ContextEncoder`, with its `features`.
        critic: by default the paper's.
        adversarial: weight of that term; the reconstruction gets the rest of 1.
        overlap: of the seam, see `painting_loss`; 7 for 128 pixels a side.
        overlap_weight: of its errors.
        window: side of the square in the middle that the critic sees; None for all.
        fill: value of hidden pixels.
        axis_name: mesh axis the batch is split over, or None; give the model the same.

    Raises:
        ValueError: unless the adversarial weight is in [0, 1]; in `loss`, if the window
            does not fit.
    """
    if not 0 <= adversarial <= 1:
        raise ValueError(f"the adversarial weight must be in [0, 1], got {adversarial}")
    judge = critic or PaintingCritic(axis_name=axis_name)

    def seen(images: Array) -> Array:
        if window is None:
            return images
        height, width = images.shape[1:3]
        if not 1 <= window <= min(height, width):
            raise ValueError(
                f"the window must fit into {height} x {width} pixels, got {window}"
            )
        top, left = (height - window) // 2, (width - window) // 2
        return images[:, top : top + window, left : left + window]

    def init(key: PRNGKeyArray, batch: Batch) -> tuple[Params, ModelState]:
        painter_key, critic_key = jax.random.split(key)
        view = batch["view"]
        painter, stats = init_module(model, painter_key, view, train=True)
        params, model_state = {"painter": painter}, {"painter": stats}
        if adversarial:
            made, stats = init_module(judge, critic_key, seen(view), train=True)
            params["critic"], model_state["critic"] = made, stats
        return params, model_state

    def game(
        params: Params, stats: ModelState, view: Array, painted: Array
    ) -> tuple[Array, Array, ModelState, Array]:
        """Both losses, the critic's statistics after, and the share it tells right."""
        real, fake = seen(view), seen(painted)
        of_real, stats = apply_module(judge, params, stats, real, train=True)
        of_fake, stats = apply_module(
            judge, params, stats, lax.stop_gradient(fake), train=True
        )
        fooled, _ = apply_module(
            judge, lax.stop_gradient(params), stats, fake, train=True
        )
        told = jnp.mean(jax.nn.softplus(-of_real) + jax.nn.softplus(of_fake))
        right = jnp.mean(of_real > 0, dtype=jnp.float32)
        right += jnp.mean(of_fake < 0, dtype=jnp.float32)
        return jnp.mean(jax.nn.softplus(-fooled)), told, stats, right / 2

    def loss(
        params: Params, model_state: ModelState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[ModelState, Metrics]]:
        del key  # the holes are drawn before
        view, hole = batch["view"], batch["hole"]
        (h, painted), stats = apply_module(
            model,
            params["painter"],
            model_state["painter"],
            cover(view, hole, fill),
            train=True,
        )
        reconstruction = painting_loss(
            painted, view, hole, overlap=overlap, overlap_weight=overlap_weight
        )
        value, changed = (1 - adversarial) * reconstruction, {"painter": stats}
        metrics = {
            "reconstruction": reconstruction,
            "feature_std": feature_std(h, axis_name=axis_name),
        }
        if adversarial:
            fooled, told, changed["critic"], right = game(
                params["critic"], model_state["critic"], view, painted
            )
            value += adversarial * fooled + told
            metrics |= {"adversarial": fooled, "critic_accuracy": right}
        return value, (changed, {"loss": value, **metrics})

    def predict(
        params: Params, model_state: ModelState, batch: Batch
    ) -> Float[Array, "batch features"]:
        h, _ = apply_module(
            model,
            params["painter"],
            model_state["painter"],
            batch["image"],
            train=False,
            method="features",
        )
        return h

    return Method(init, loss, predict)


@export("ssl.painter_optimizer", since="0.1")
def painter_optimizer(
    painter: optax.GradientTransformation, critic: optax.GradientTransformation
) -> optax.GradientTransformation:
    """One optimizer for the painter, another for its critic (a tenth of its rate)."""
    return optax.partition(
        {"painter": painter, "critic": critic}, lambda params: {k: k for k in params}
    )
