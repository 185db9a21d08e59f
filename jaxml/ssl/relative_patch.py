"""Relative patch: tell on which side of one patch another one lies.

A patch and one of its eight neighbours, cut from one image, go through one encoder; what
comes out is joined late and classified:

    h1 = f(patch1),   h2 = f(patch2),   L = -log P(direction | [h1, h2]).

To do that a network must know how the parts of an object lie. It would rather not, and the
traps are its shortcuts. Edges that go on from patch to patch: patches have a gap between
them and are jittered. Chromatic aberration, which tells where in the picture a patch lies
by how its green is displaced: of every patch one colour alone is kept (`drop_colors`), or
the difference of green and magenta is projected away (`project_colors`). And the border
of the image: the first patch lies where it has all eight neighbours, so that by itself it
tells nothing.

Reference: Doersch, Gupta and Efros, "Unsupervised Visual Representation Learning by Context
Prediction", ICCV 2015, https://arxiv.org/abs/1505.05192 (section 3, figures 2 and 3, the
matrix B in section 3.1). Deviations: places are drawn anywhere, not on one grid per image;
images are in [0, 1] and not centred, so colours are dropped for noise around one half; how
often patches are pixelated is not in the paper.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxml.export import export, export_constant
from jaxml.method import Batch, Method, Metrics, ModelState, Params
from jaxml.metrics.collapse import feature_std
from jaxml.nn.dense import Dense
from jaxml.nn.functional import apply_module, init_module
from jaxml.nn.mlp import Mlp
from jaxml.ops.augment import apply_with_probability
from jaxml.ops.resize import resize_weights
from jaxml.typing import Array, Float, Int, PRNGKeyArray

DIRECTIONS = export_constant(
    "ssl.DIRECTIONS",
    ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)),
    since="0.1",
)
"""(down, right) of the eight neighbours, in reading order."""


@export("ssl.patch_pair", since="0.1")
def patch_pair(
    key: PRNGKeyArray,
    image: Float[Array, "height width channels"],
    size: int,
    *,
    gap: int,
    jitter: int = 0,
) -> tuple[
    Float[Array, "size size channels"],
    Float[Array, "size size channels"],
    Int[Array, ""],
]:
    """A random patch, one of its eight neighbours, and its index in `DIRECTIONS`.

    The paper's are 96 pixels large, 48 apart and jittered by 7.

    Args:
        key: of this image.
        image: at least `3 size + 2 gap + 2 jitter` pixels a side.
        size: pixels a side.
        gap: pixels between neighbours.
        jitter: pixels by which either is moved at most, along each axis.

    Raises:
        ValueError: if a number is negative, neighbours could overlap, or they do not fit.
    """
    if size < 1 or jitter < 0 or gap < 2 * jitter:
        raise ValueError(
            "size must be positive, and the gap at least twice the jitter, got size "
            f"{size}, gap {gap} and jitter {jitter}"
        )
    step, extent = size + gap, 3 * size + 2 * gap + 2 * jitter
    height, width, channels = image.shape
    if min(height, width) < extent:
        raise ValueError(
            f"the image must be at least {extent} pixels a side, for three patches of "
            f"{size}, gaps and jitter, got {height} x {width}"
        )
    place_key, direction_key, jitter_key = jax.random.split(key, 3)
    free = jnp.array([height - extent, width - extent])
    first = step + jitter + jax.random.randint(place_key, (2,), 0, free + 1)
    direction = jax.random.randint(direction_key, (), 0, len(DIRECTIONS))
    places = jnp.stack([first, first + step * jnp.array(DIRECTIONS)[direction]])
    places += jax.random.randint(jitter_key, (2, 2), -jitter, jitter + 1)

    def cut(place: Array) -> Array:
        return lax.dynamic_slice(image, (*place, 0), (size, size, channels))

    return cut(places[0]), cut(places[1]), direction


@export("ssl.drop_colors", since="0.1")
def drop_colors(
    key: PRNGKeyArray, patch: Float[Array, "height width 3"]
) -> Float[Array, "height width 3"]:
    """One colour, drawn anew for each patch; the others become noise around one half.

    Its deviation is a hundredth of that of the colour which is kept.
    """
    which_key, noise_key = jax.random.split(key)
    kept = jax.random.randint(which_key, (), 0, 3)
    colour = lax.dynamic_index_in_dim(patch, kept, axis=2)
    noise = jax.random.normal(noise_key, patch.shape, patch.dtype)
    noise = 0.5 + jnp.std(colour).astype(patch.dtype) / 100 * noise
    return jnp.where(jnp.arange(3)[None, None] == kept, colour, noise)


@export("ssl.project_colors", since="0.1")
def project_colors(
    images: Float[Array, "*batch height width 3"],
) -> Float[Array, "*batch height width 3"]:
    """Colours without what tells green from magenta: x (I - a^T a / (a a^T)).

    With a = (-1, 2, -1). Gray stays what it is; others can leave [0, 1] by a sixth.

    >>> project_colors(jnp.array([[[0.0, 0.75, 0.0]]])).tolist()
    [[[0.25, 0.25, 0.25]]]
    """
    red, green, blue = (images[..., i] for i in range(3))
    off = (2 * green - red - blue) / 6
    return jnp.stack([red + off, green - 2 * off, blue + off], axis=-1)


@export("ssl.pixelate", since="0.1")
def pixelate(
    key: PRNGKeyArray,
    patch: Float[Array, "size size channels"],
    least: float | int = 100,
) -> Float[Array, "size size channels"]:
    """The patch made smaller, to a random number of pixels, and large again.

    Args:
        key: of this patch.
        patch: square.
        least: pixels it is reduced to at most; patches that have no more stay whole.
    """
    size = patch.shape[0]
    low = min(least**0.5, size)
    side = jnp.round(jax.random.uniform(key, minval=low, maxval=size))
    # As many rows as the patch has, of which the first `side` are those of the small one.
    down = resize_weights(size, size, 0, size * size / side)
    down = jnp.where(jnp.arange(size)[:, None] < side, down, 0)
    there_and_back = jnp.matmul(
        resize_weights(size, size, 0, side), down, precision="highest"
    ).astype(patch.dtype)
    return jnp.einsum(
        "ih,jw,hwc->ijc", there_and_back, there_and_back, patch, precision="highest"
    )


@export("ssl.pair_views", since="0.1")
def pair_views(
    size: int, *, gap: int, jitter: int = 0, drop: bool = True, pixelated: float = 0.0
) -> Any:
    """(key, image) -> {"patch1", "patch2", "direction"}.

    Args:
        size: of the patches, pixels a side.
        gap: pixels between them.
        jitter: pixels by which either is moved at most.
        drop: keep one colour of every patch; for gray images it is left out.
        pixelated: probability that a patch is pixelated.
    """

    def change(key: PRNGKeyArray, patch: Array) -> Array:
        drop_key, pixel_key = jax.random.split(key)
        if drop and patch.shape[-1] == 3:
            patch = drop_colors(drop_key, patch)
        return apply_with_probability(pixel_key, pixelated, pixelate, patch)

    def views(key: PRNGKeyArray, image: Array) -> dict[str, Array]:
        key, *keys = jax.random.split(key, 3)
        *patches, direction = patch_pair(key, image, size, gap=gap, jitter=jitter)
        patch1, patch2 = map(change, keys, patches)
        return {"patch1": patch1, "patch2": patch2, "direction": direction}

    return views


@export("ssl.RelativePatch", since="0.1")
class RelativePatch(nn.Module):
    """One backbone for both patches, and a classifier of both features.

    Attributes:
        backbone: module taking (images, train) to features [batch, features].
        widths: of the classifier's hidden layers (fc7 and fc8), batch-normalised.
        project: `project_colors` of all that the backbone sees.
        axis_name: mesh axis the batch is split over; give the backbone the same.
    """

    backbone: nn.Module
    widths: Sequence[int] = (4096, 4096)
    project: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, patch1: Array, patch2: Array, *, train: bool
    ) -> tuple[Float[Array, "batch features"], Float[Array, "batch 8"]]:
        """Returns the features of the first patches, and logits of the directions."""
        # In one batch, so that batch norm treats both alike.
        h = self.features(jnp.concatenate([patch1, patch2]), train=train)
        h1, h2 = jnp.split(h, 2)
        x = jnp.concatenate([h1, h2], axis=1)
        if self.widths:
            head = Mlp(
                self.widths,
                normalize_last=True,
                axis_name=self.axis_name,
                name="head",
            )
            x = nn.relu(head(x, train=train))
        return h1, Dense(len(DIRECTIONS), name="directions")(x)

    def features(self, images: Array, *, train: bool) -> Float[Array, "batch features"]:
        """What transfers, of patches or of whole images."""
        seen = project_colors(images) if self.project else images
        return self.backbone(seen, train=train)


@export("ssl.relative_patch", since="0.1")
def relative_patch(model: RelativePatch) -> Method:
    """The relative-patch method; a batch is what `pair_views` makes.

    `predict` returns the features [batch, features] of `image`. Metrics: the loss, which
    is ln 8 for uniform answers; the share of directions that are told right
    (`accuracy`); and `feature_std` of the features (near 1 healthy, 0 collapsed).
    """

    def init(key: PRNGKeyArray, batch: Batch) -> tuple[Params, ModelState]:
        return init_module(model, key, batch["patch1"], batch["patch2"], train=True)

    def loss(
        params: Params, model_state: ModelState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[ModelState, Metrics]]:
        del key  # the patches are drawn before
        (h, logits), model_state = apply_module(
            model, params, model_state, batch["patch1"], batch["patch2"], train=True
        )
        logits, direction = logits.astype(jnp.float32), batch["direction"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, direction)
        value, is_right = jnp.mean(losses), jnp.argmax(logits, axis=1) == direction
        return value, (
            model_state,
            {
                "loss": value,
                "accuracy": jnp.mean(is_right, dtype=jnp.float32),
                "feature_std": feature_std(h, axis_name=model.axis_name),
            },
        )

    def predict(
        params: Params, model_state: ModelState, batch: Batch
    ) -> Float[Array, "batch features"]:
        h, _ = apply_module(
            model,
            params,
            model_state,
            batch["image"],
            train=False,
            method="features",
        )
        return h

    return Method(init, loss, predict)
