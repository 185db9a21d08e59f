"""MAE: a masked autoencoder. See a quarter of the patches of an image, paint the others.

The encoder, a vision transformer, gets the visible patches alone, with their positions. A
light decoder gets what it made of them, a mask token in the place of every other patch,
and the positions again, and paints pixels. With x_p the pixels of patch p, H the hidden
patches and D their number of pixels:

    L = mean over p in H of  |y_p - t_p|^2 / D,
        t_p = (x_p - mean(x_p)) / sqrt(var(x_p) + 1e-6),    var with D - 1 below.

For what follows the decoder is thrown away, and the encoder sees all patches.

The traps: positions are added before patches are left out, or they would be those of the
order of the shuffle; the loss of visible patches teaches to copy; and the variance is the
unbiased one, without which the loss is off in its third digit.

Reference: He, Chen, Xie, Li, Dollar and Girshick, "Masked Autoencoders Are Scalable Vision
Learners", CVPR 2022, https://arxiv.org/abs/2111.06377 (section 3, appendix A.1).
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxml.export import export
from jaxml.method import Batch, Method, Metrics, ModelState, Params
from jaxml.nn.dense import Dense
from jaxml.nn.functional import apply_module, init_module
from jaxml.nn.positions import sincos_positions
from jaxml.nn.transformer import TransformerBlock
from jaxml.nn.vit import VisionTransformer
from jaxml.ops.patches import patchify, unpatchify
from jaxml.parallel.collectives import sample_keys
from jaxml.typing import Array, Bool, Float, Int, PRNGKeyArray

xavier_uniform = nn.initializers.xavier_uniform()
Patches = Float[Array, "batch patches pixels"]


@export("ssl.Masking", since="0.1")
class Masking(NamedTuple):
    """Which patches are seen.

    Attributes:
        keep: numbers of the visible patches, in the order in which they are encoded.
        restore: where a patch stands in (visible, hidden), to put them back in order.
        hidden: True where a patch is not seen.
    """

    keep: Int[Array, "batch kept"]
    restore: Int[Array, "batch patches"]
    hidden: Bool[Array, "batch patches"]


@export("ssl.random_masking", since="0.1")
def random_masking(
    noise: Float[Array, "batch patches"], mask_ratio: float = 0.75
) -> Masking:
    """Keeps the patches of least noise, int(patches (1 - mask_ratio)) of every sample.

    Args:
        noise: a row for each sample; uniform noise makes every choice equally likely.
        mask_ratio: share of the patches that are hidden.

    Raises:
        ValueError: if no patch would be visible, or none hidden.

    >>> random_masking(jnp.array([[0.3, 0.1, 0.9, 0.5]]), 0.5).hidden.tolist()
    [[False, False, True, True]]
    """
    patches = noise.shape[1]
    kept = int(patches * (1 - mask_ratio))
    if not 0 < kept < patches:
        raise ValueError(
            "mask_ratio must hide some patches and leave some, "
            f"got {mask_ratio} of {patches}"
        )
    shuffle = jnp.argsort(noise, axis=1)
    restore = jnp.argsort(shuffle, axis=1)
    return Masking(shuffle[:, :kept], restore, restore >= kept)


@export("ssl.mae_targets", since="0.1")
def mae_targets(
    images: Float[Array, "batch height width channels"],
    side: int,
    *,
    normalize: bool = True,
) -> Patches:
    """The pixels of every patch, which has mean 0 and (unbiased) variance 1.

    Args:
        images: in any range.
        side: of a patch, in pixels.
        normalize: False leaves the pixels as they are.
    """
    patches = patchify(images.astype(jnp.float32), side)
    if not normalize:
        return patches
    mean, deviation = _statistics(patches)
    return (patches - mean) / deviation


@export("ssl.mae_loss", since="0.1")
def mae_loss(
    painted: Patches,
    images: Float[Array, "batch height width channels"],
    hidden: Bool[Array, "batch patches"],
    side: int,
    *,
    normalize: bool = True,
) -> Float[Array, ""]:
    """The mean squared error of the hidden patches, at least 0.

    Args:
        painted: of every patch; what is visible does not count.
        images: the truth.
        hidden: True where a patch was not seen; of as many patches in every sample.
        side: of a patch, in pixels.
        normalize: compare with patches of mean 0 and variance 1.

    Raises:
        ValueError: if the shapes do not fit one another.
    """
    targets = mae_targets(images, side, normalize=normalize)
    if painted.shape != targets.shape or hidden.shape != targets.shape[:2]:
        raise ValueError(
            f"painted patches must be {targets.shape} and hidden {targets.shape[:2]}, "
            f"got {painted.shape} and {hidden.shape}"
        )
    error = jnp.mean(jnp.square(painted.astype(jnp.float32) - targets), axis=2)
    return jnp.sum(error * hidden) / jnp.maximum(jnp.sum(hidden), 1)


@export("ssl.MAE", since="0.1")
class MAE(nn.Module):
    """Encoder and decoder.

    Attributes:
        encoder: without a classifier; in the paper with "sincos" positions. Its `pool`
            makes the features, its `axis_name` is that of the batch.
        decoder_width: of the decoder's residual stream, a multiple of four.
        decoder_depth: number of its blocks.
        decoder_heads: of their attention.
        decoder_mlp_ratio: hidden width of their feedforward layers, in widths.
        mask_ratio: share of the patches that are hidden.
        channels: of the images.
    """

    encoder: VisionTransformer
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    decoder_mlp_ratio: float = 4.0
    mask_ratio: float = 0.75
    channels: int = 3

    def setup(self) -> None:
        vit, width = self.encoder, self.decoder_width
        if vit.num_classes is not None:
            raise ValueError(f"the encoder must not classify, got {vit.num_classes}")
        kinds = {"dtype": vit.dtype, "param_dtype": vit.param_dtype}
        self.embed = Dense(width, kernel_init=xavier_uniform, **kinds)
        small = nn.initializers.normal(0.02)
        self.mask_token = self.param("mask_token", small, (width,), vit.param_dtype)
        self.blocks = [
            TransformerBlock(
                self.decoder_heads,
                int(self.decoder_mlp_ratio * width),
                vit.attention,
                epsilon=vit.epsilon,
                axis_name=vit.axis_name,
                **kinds,
            )
            for _ in range(self.decoder_depth)
        ]
        self.norm = nn.LayerNorm(vit.epsilon, **kinds)
        pixels = vit.patch_size**2 * self.channels
        self.paint = Dense(pixels, kernel_init=xavier_uniform, **kinds)

    def __call__(
        self,
        images: Float[Array, "batch height width channels"],
        noise: Float[Array, "batch patches"],
        *,
        train: bool,
    ) -> tuple[Patches, Bool[Array, "batch patches"]]:
        """Returns the painted patches, and which of them were hidden."""
        masking = random_masking(noise, self.mask_ratio)
        tokens = self.encoder.tokens(images, train=train, keep=masking.keep)
        height, width = images.shape[1:3]
        painted = self.decode(tokens, masking.restore, (height, width), train=train)
        return painted, masking.hidden

    def decode(
        self,
        tokens: Float[Array, "batch tokens dim"],
        restore: Int[Array, "batch patches"],
        size: tuple[int, int],
        *,
        train: bool,
    ) -> Patches:
        """Paints all patches of images of a size from the tokens of some."""
        vit, x = self.encoder, self.embed(tokens)
        first = int(vit.class_token) + vit.registers
        before, x = jnp.split(x, [first], axis=1)
        absent = (len(x), restore.shape[1] - x.shape[1], x.shape[2])
        token = jnp.broadcast_to(self.mask_token.astype(x.dtype)[None, None], absent)
        x = jnp.concatenate([x, token], axis=1)
        x = jnp.take_along_axis(x, restore[..., None], axis=1)
        rows, columns = (n // vit.patch_size for n in size)
        x += sincos_positions(rows, columns, self.decoder_width).astype(x.dtype)[None]
        x = jnp.concatenate([before, x], axis=1)
        for block in self.blocks:
            x = block(x, train=train)
        return self.paint(self.norm(x)[:, first:])

    def features(
        self, images: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch features"]:
        """What transfers: the encoder's features of all patches."""
        return self.encoder(images, train=train)


@export("ssl.mae", since="0.1")
def mae(
    model: MAE,
    *,
    normalize: bool = True,
    prepare: Callable[[Array], Array] | None = None,
) -> Method:
    """The MAE method; a batch holds one augmented image, `view`.

    Which patches are hidden is drawn in every step, for each sample from its own key; a
    batch may bring `noise` [batch, patches] instead. `predict` returns the encoder's
    features [batch, features] of `image`. The loss is about 1 for gray paintings where
    patches are normalized.

    To fine-tune, give the encoder to `FineTuned` and `params["encoder"]` to `fine_tune`:

        FineTuned(encoder, 10), fine_tune(..., ({"backbone": params["encoder"]}, {}))

    Args:
        model: encoder and decoder.
        normalize: compare with patches of mean 0 and variance 1.
        prepare: what is done to images before all else, such as `jaxml.ops.normalize`.
    """
    axis_name = model.encoder.axis_name

    def prepared(images: Array) -> Array:
        return images if prepare is None else prepare(images)

    def num_patches(batch: Batch) -> int:
        size, side = batch["view"].shape, model.encoder.patch_size
        return (size[1] // side) * (size[2] // side)

    def drawn(key: PRNGKeyArray, batch: Batch) -> Float[Array, "batch patches"]:
        if "noise" in batch:
            return batch["noise"]
        keys = sample_keys(key, len(batch["view"]), axis_name)
        shape = (num_patches(batch),)
        return jax.vmap(lambda k: jax.random.uniform(k, shape))(keys)

    def init(key: PRNGKeyArray, batch: Batch) -> tuple[Params, ModelState]:
        noise = jnp.zeros((len(batch["view"]), num_patches(batch)))
        return init_module(model, key, prepared(batch["view"]), noise, train=False)

    def loss(
        params: Params, model_state: ModelState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[ModelState, Metrics]]:
        mask_key, key = jax.random.split(key)
        images = prepared(batch["view"])
        (painted, hidden), model_state = apply_module(
            model,
            params,
            model_state,
            images,
            drawn(mask_key, batch),
            train=True,
            rngs={"dropout": key},
        )
        side = model.encoder.patch_size
        value = mae_loss(painted, images, hidden, side, normalize=normalize)
        return value, (model_state, {"loss": value})

    def predict(
        params: Params, model_state: ModelState, batch: Batch
    ) -> Float[Array, "batch features"]:
        images = prepared(batch["image"])
        h, _ = apply_module(
            model, params, model_state, images, train=False, method="features"
        )
        return h

    return Method(init, loss, predict)


@export("ssl.mae_pictures", since="0.1")
def mae_pictures(
    painted: Patches,
    images: Float[Array, "batch height width channels"],
    hidden: Bool[Array, "batch patches"],
    side: int,
    *,
    normalize: bool = True,
) -> tuple[
    Float[Array, "batch height width channels"],
    Float[Array, "batch height width channels"],
]:
    """(what was seen, what was made of it): pictures with gray holes, and filled in.

    Args:
        painted: of every patch.
        images: the truth, in [0, 1].
        hidden: True where a patch was not seen.
        side: of a patch, in pixels.
        normalize: the patches were compared normalized; each gets the mean and the
            deviation of its truth back, which the network was not asked for.
    """
    grid = images.shape[1] // side, images.shape[2] // side
    patches = patchify(images.astype(jnp.float32), side)
    painted = painted.astype(jnp.float32)
    if normalize:
        mean, deviation = _statistics(patches)
        painted = painted * deviation + mean
    gray = jnp.full_like(patches, 0.5)
    seen, filled = (
        unpatchify(jnp.where(hidden[..., None], x, patches), grid, side)
        for x in (gray, jnp.clip(painted, 0, 1))
    )
    return seen, filled


def _statistics(patches: Patches) -> tuple[Array, Array]:
    """Mean and deviation of each patch, with the paper's code's floor."""
    mean = jnp.mean(patches, axis=2, keepdims=True)
    variance = jnp.var(patches, axis=2, keepdims=True, ddof=1)
    return mean, jnp.sqrt(variance + 1e-6)
