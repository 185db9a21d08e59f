"""BEiT: hide blocks of patches, and tell which visual words stood there.

A tokenizer, trained before (`jaxml.ssl.image_tokenizer`), turns an image into one of K
codes z_p for each patch. In the place of hidden patches, H, a vision transformer sees a
mask token, and it is asked for their codes:

    L = mean over p in H of  -log P(z_p | image with a mask token at H).

Patches are hidden in blocks, so that the answer is not next door: rectangles of at least 16
patches, whose sides have a ratio in [0.3, 1 / 0.3], until 40% are hidden.

The traps: the loss is of hidden patches alone; hidden patches keep their place; and the
tokenizer gets no gradient.

Reference: Bao, Dong, Piao and Wei, "BEiT: BERT Pre-Training of Image Transformers", ICLR
2022, https://arxiv.org/abs/2106.08254 (sections 2.3 and 2.4, algorithm 1). As in the
authors' code 75 of 196 patches are hidden, and no block may go beyond. Deviation: the
number is exact; what blocks leave open after `tries` is filled with single patches.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxml.export import export
from jaxml.method import Batch, Method, Metrics, ModelState, Params
from jaxml.nn.dense import Dense
from jaxml.nn.functional import init_module
from jaxml.nn.vit import VisionTransformer
from jaxml.ops.resize import resize_image
from jaxml.parallel.collectives import sample_keys
from jaxml.ssl.image_tokenizer import ImageTokenizer
from jaxml.typing import Array, Bool, Float, Int, PRNGKeyArray

Images = Float[Array, "batch height width channels"]
Hidden = Bool[Array, "batch patches"]


@export("ssl.blockwise_masking", since="0.1")
def blockwise_masking(
    key: PRNGKeyArray,
    grid: tuple[int, int],
    count: int,
    *,
    min_block: int = 16,
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
    tries: int = 64,
) -> Bool[Array, "patches"]:
    """Hides exactly `count` patches of one image, in blocks; True is hidden.

    A block has between `min_block` and as many patches as are still to be hidden; it is
    left out where it does not fit or would hide too many.

    Args:
        key: of this image.
        grid: (rows, columns) of patches.
        count: how many to hide.
        min_block: least size of a block, in patches.
        aspect: least and greatest ratio of height to width, on a logarithmic scale.
        tries: number of blocks that are drawn.

    Raises:
        ValueError: if the count does not leave a patch, or blocks cannot be.
    """
    rows, columns = grid
    low, high = aspect
    if not 0 < count < rows * columns:
        raise ValueError(
            f"count must hide some of {rows * columns} patches, not all, got {count}"
        )
    if not 0 < low <= high or min_block < 1 or tries < 1:
        raise ValueError(
            "aspect must ascend above 0, min_block and tries be positive, "
            f"got {aspect}, {min_block} and {tries}"
        )
    draw_key, rest_key = jax.random.split(key)
    row, column = jnp.arange(rows)[:, None], jnp.arange(columns)[None]

    def put(hidden: jax.Array, u: jax.Array) -> tuple[jax.Array, None]:
        left = count - jnp.sum(hidden)
        size = min_block + u[0] * (left - min_block)
        ratio = jnp.exp(math.log(low) + u[1] * math.log(high / low))
        high_, wide = jnp.round(jnp.sqrt(jnp.stack([size * ratio, size / ratio])))
        top = jnp.floor(u[2] * (rows - high_ + 1))
        start = jnp.floor(u[3] * (columns - wide + 1))
        block = (row >= top) & (row < top + high_)
        block = block & (column >= start) & (column < start + wide)
        new = jnp.sum(block & ~hidden)
        fits = (high_ <= rows) & (wide <= columns) & (new > 0) & (new <= left)
        return jnp.where(fits, hidden | block, hidden), None

    draws = jax.random.uniform(draw_key, (tries, 4))
    noise = jax.random.uniform(rest_key, grid)
    # Nothing, but made of the key: inside `shard_map` it varies as what follows does.
    hidden, _ = lax.scan(put, noise < 0, draws)
    hidden, noise = hidden.reshape(-1), noise.reshape(-1)
    rank = jnp.argsort(jnp.argsort(jnp.where(hidden, -1.0, noise)))
    return rank < count


@export("ssl.beit_loss", since="0.1")
def beit_loss(
    logits: Float[Array, "batch places codes"], codes: Int[Array, "batch places"]
) -> Float[Array, ""]:
    """Cross-entropy in nats per hidden patch.

    Args:
        logits: of the hidden patches, equally many in every sample.
        codes: what the tokenizer says of them.

    Raises:
        ValueError: if there are not as many codes as logits.
    """
    if logits.shape[:2] != codes.shape:
        raise ValueError(f"codes must be {logits.shape[:2]}, got {codes.shape}")
    return jnp.mean(
        optax.softmax_cross_entropy_with_integer_labels(
            logits.astype(jnp.float32), codes
        )
    )


@export("ssl.hidden_places", since="0.1")
def hidden_places(hidden: Hidden, count: int) -> Int[Array, "batch {count}"]:
    """Numbers of the hidden patches, ascending; every sample has `count` of them."""
    return jnp.argsort(~hidden, axis=1, stable=True)[:, :count]


@export("ssl.BEiT", since="0.1")
class BEiT(nn.Module):
    """A vision transformer, its mask token, and a classifier of codes.

    The paper's encoder has `VisionTransformer`'s options position="none",
    relative_position="shared" and layer_scale=0.1.

    Attributes:
        encoder: without a classifier, and with its norm before the pool.
        vocab_size: number of codes.
    """

    encoder: VisionTransformer
    vocab_size: int = 8192

    def setup(self) -> None:
        vit, small = self.encoder, nn.initializers.truncated_normal(0.02)
        if vit.num_classes is not None or vit.pool_norm:
            raise ValueError(
                "the encoder must not classify, nor have its norm behind the pool, "
                f"got {vit.num_classes} and {vit.pool_norm}"
            )
        kinds = {"dtype": vit.dtype, "param_dtype": vit.param_dtype}
        self.mask_token = self.param("mask_token", small, (vit.width,), vit.param_dtype)
        self.codes = Dense(self.vocab_size, kernel_init=small, **kinds)

    def __call__(
        self,
        images: Images,
        hidden: Hidden,
        places: Int[Array, "batch places"] | None = None,
        *,
        train: bool,
    ) -> Float[Array, "batch places codes"]:
        """Returns logits of the codes at the places (None: of every patch)."""
        vit = self.encoder
        x = vit.tokens(images, train=train, hidden=hidden, mask_token=self.mask_token)
        x = x[:, int(vit.class_token) + vit.registers :]
        if places is not None:
            x = jnp.take_along_axis(x, places[..., None], axis=1)
        return self.codes(x)

    def features(
        self, images: Images, *, train: bool
    ) -> Float[Array, "batch features"]:
        """What transfers: the encoder's features of the whole image."""
        return self.encoder(images, train=train)


@export("ssl.beit", since="0.1")
def beit(
    model: BEiT,
    tokenizer: ImageTokenizer | None = None,
    pretrained: Params | None = None,
    *,
    mask_ratio: float = 75 / 196,
    min_block: int = 16,
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
) -> Method:
    """The BEiT method; a batch holds one augmented image, `view`, in [0, 1].

    What is hidden is drawn in every step, for each sample from its own key; a batch may
    bring `hidden` [batch, patches] instead, and `code` [batch, patches], in the place of
    the tokenizer. `predict` returns the encoder's features [batch, features] of `image`.
    Model state: `tokenizer`, its parameters. Metrics: the loss, that of uniform answers
    (`loss_at_chance`), and the share of hidden patches told right (`accuracy`).

    Args:
        model: encoder and classifier.
        tokenizer: what tells the codes; it sees the view in the size that gives it the
            encoder's grid. None: every batch brings `code`.
        pretrained: its parameters.
        mask_ratio: share of the patches that are hidden, rounded to patches.
        min_block: see `blockwise_masking`.
        aspect: likewise.

    Raises:
        ValueError: if there is a tokenizer without parameters, or with more codes than
            the model tells.
    """
    if (tokenizer is None) != (pretrained is None):
        raise ValueError("tokenizer and its parameters must be given together")
    if tokenizer is not None and tokenizer.vocab_size > model.vocab_size:
        raise ValueError(
            f"the tokenizer must have at most {model.vocab_size} codes, "
            f"got {tokenizer.vocab_size}"
        )
    vit = model.encoder

    def grid_of(batch: Batch) -> tuple[int, int]:
        height, width = batch["view"].shape[1:3]
        return height // vit.patch_size, width // vit.patch_size

    def drawn(key: PRNGKeyArray, batch: Batch) -> tuple[Hidden, Int[Array, "..."]]:
        """What is hidden, and its places."""
        grid = grid_of(batch)
        count = round(mask_ratio * grid[0] * grid[1])
        if "hidden" in batch:
            return batch["hidden"], hidden_places(batch["hidden"], count)
        options: dict[str, Any] = {"min_block": min_block, "aspect": aspect}
        hidden = jax.vmap(lambda k: blockwise_masking(k, grid, count, **options))(
            sample_keys(key, len(batch["view"]), vit.axis_name)
        )
        return hidden, hidden_places(hidden, count)

    def told(model_state: ModelState, batch: Batch) -> Int[Array, "batch patches"]:
        if tokenizer is None:
            return batch["code"]
        view, side = batch["view"], 2**tokenizer.downsamples
        size = tuple(n // vit.patch_size * side for n in view.shape[1:3])
        if size != view.shape[1:3]:
            view = jax.vmap(lambda image: resize_image(image, size))(view)
        variables = {"params": model_state["tokenizer"]}
        codes: Any = tokenizer.apply(variables, view, method="tokens")
        return lax.stop_gradient(codes)

    def init(key: PRNGKeyArray, batch: Batch) -> tuple[Params, ModelState]:
        rows, columns = grid_of(batch)
        hidden = jnp.zeros((len(batch["view"]), rows * columns), bool)
        params, _ = init_module(model, key, batch["view"], hidden, train=False)
        copied = jax.tree.map(lambda x: jnp.array(x, copy=True), pretrained or {})
        return params, {"tokenizer": copied}

    def loss(
        params: Params, model_state: ModelState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[ModelState, Metrics]]:
        mask_key, key = jax.random.split(key)
        hidden, places = drawn(mask_key, batch)
        codes = jnp.take_along_axis(told(model_state, batch), places, axis=1)
        logits: Any = model.apply(
            {"params": params},
            batch["view"],
            hidden,
            places,
            train=True,
            rngs={"dropout": key},
        )
        value = beit_loss(logits, codes)
        right = jnp.argmax(logits, axis=2) == codes
        metrics = {
            "loss": value,
            "loss_at_chance": jnp.float32(math.log(model.vocab_size)),
            "accuracy": jnp.mean(right, dtype=jnp.float32),
        }
        return value, (model_state, metrics)

    def predict(
        params: Params, model_state: ModelState, batch: Batch
    ) -> Float[Array, "batch features"]:
        h: Any = model.apply(
            {"params": params}, batch["image"], train=False, method="features"
        )
        return h

    return Method(init, loss, predict)
