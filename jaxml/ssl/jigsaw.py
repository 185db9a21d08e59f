"""Jigsaw: tell by which permutation the tiles of an image were shuffled.

The image is cut into nine tiles, which one network codes apart from each other (it is
context-free); the codes, side by side in the order shown, are classified:

    shown_k = tile_{p(k)},    L = -log P(p | [f(shown_1), ..., f(shown_9)])

for a permutation p of a fixed set. The set is made greedily: the next permutation is the
one whose Hamming distances to those chosen add up to most (algorithm 1).

The traps: permutations that are alike make the puzzle ambiguous, and a set that changes
between runs makes a checkpoint worthless, so it lies in the model state. And the network
would rather do without objects: edges go on from tile to tile (tiles are cropped at random
inside their cells, which leaves a gap), brightness does so too (every tile is normalised on
its own), and chromatic aberration tells where a tile lies (some images are made gray, the
channels of the others are jittered).

Reference: Noroozi and Favaro, "Unsupervised Learning of Visual Representations by Solving
Jigsaw Puzzles", ECCV 2016, https://arxiv.org/abs/1603.09246 (sections 3 and 4, algorithm
1). Deviations: what of the image does not fill the
grid is left out on all sides; jittered channels stay inside their cell.
"""

import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxml.export import export
from jaxml.method import Batch, Method, Metrics, ModelState, Params
from jaxml.metrics.collapse import feature_std
from jaxml.nn.dense import Dense
from jaxml.nn.functional import apply_module, init_module
from jaxml.nn.mlp import Mlp
from jaxml.ops.augment import random_grayscale
from jaxml.parallel.collectives import sample_keys
from jaxml.typing import Array, Float, Int, PRNGKeyArray

Rule = Literal["mean", "max", "middle"]


@export("ssl.hamming_permutations", since="0.1")
def hamming_permutations(
    num: int, tiles: int = 9, *, rule: Rule = "mean", seed: int = 0
) -> Int[np.ndarray, "num tiles"]:
    """Distinct permutations far from each other, chosen greedily among all there are.

    The first is drawn with `seed`; of equally good ones the first in dictionary order is
    taken. The same arguments give the same set everywhere.

    Args:
        num: of permutations; 1000 in the paper's best set.
        tiles: to be permuted, at most 10.
        rule: "mean" takes the largest mean distance to those chosen (algorithm 1); "max"
            the largest of the smallest distances, and the largest mean among equals;
            "middle" the median mean distance, for comparison.
        seed: of the first permutation.

    Raises:
        ValueError: unless 2 <= tiles <= 10 and 1 <= num <= tiles!, or if the rule is
            unknown.

    >>> hamming_permutations(3, 3).tolist()
    [[2, 1, 0], [0, 2, 1], [1, 0, 2]]
    """
    if rule not in ("mean", "max", "middle"):
        raise ValueError(f"rule must be 'mean', 'max' or 'middle', got {rule!r}")
    if not 2 <= tiles <= 10:
        raise ValueError(f"tiles must be from 2 to 10, got {tiles}")
    everything = _all_permutations(tiles)
    if not 1 <= num <= everything.shape[1]:
        raise ValueError(
            f"num must be from 1 to {everything.shape[1]}, the permutations of {tiles}, "
            f"got {num}"
        )
    chosen = [int(np.random.default_rng(seed).integers(everything.shape[1]))]
    is_free = np.ones(everything.shape[1], bool)
    total = np.zeros(everything.shape[1], np.int32)
    least = np.full(everything.shape[1], tiles, np.int32)
    while len(chosen) < num:
        is_free[chosen[-1]] = False
        newest = everything[:, chosen[-1]]
        distance = np.zeros(everything.shape[1], np.uint8)
        for own, other in zip(everything, newest, strict=True):
            distance += own != other
        total += distance
        if rule == "middle":
            free = np.flatnonzero(is_free)
            order = np.argsort(total[free], kind="stable")
            chosen.append(int(free[order[len(free) // 2]]))
            continue
        score = total
        if rule == "max":
            np.minimum(least, distance, out=least)
            score = least * (num * tiles + 1) + total
        chosen.append(int(np.argmax(np.where(is_free, score, -1))))
    return everything[:, chosen].T.astype(np.int32)


@lru_cache(maxsize=1)
def _all_permutations(tiles: int) -> np.ndarray:
    """[tiles, tiles!] in dictionary order."""
    flat = itertools.chain.from_iterable(itertools.permutations(range(tiles)))
    return np.ascontiguousarray(np.fromiter(flat, np.uint8).reshape(-1, tiles).T)


@export("ssl.hamming_distances", since="0.1")
def hamming_distances(permutations: Int[Array, "num tiles"]) -> tuple[float, int]:
    """Mean and smallest number of places in which two of the permutations differ.

    >>> hamming_distances(np.array([[0, 1, 2], [1, 0, 2], [1, 2, 0]]))
    (2.3333333333333335, 2)
    """
    p = np.asarray(permutations)
    if len(p) < 2:
        raise ValueError(f"there must be two permutations at least, got {len(p)}")
    apart = sum((row[:, None] != row[None]).astype(np.int64) for row in p.T)
    pairs = apart[np.triu_indices(len(p), 1)]
    return float(pairs.mean()), int(pairs.min())


@export("ssl.cut_tiles", since="0.1")
def cut_tiles(
    key: PRNGKeyArray,
    image: Float[Array, "height width channels"],
    grid: tuple[int, int],
    size: int,
    *,
    channel_jitter: int = 0,
) -> Float[Array, "tiles size size channels"]:
    """A random crop of every cell of a grid, row by row.

    The paper cuts 64 pixels of cells of 75, and jitters channels by 2.

    Args:
        key: of this image.
        image: what does not fill the grid's cells is left out, on all sides alike.
        grid: rows and columns.
        size: of the crops, pixels a side.
        channel_jitter: pixels by which every channel of every tile is moved at most, on
            its own, inside the cell.

    Raises:
        ValueError: if a number is not positive, or the tiles do not fit into their cells.
    """
    rows, columns = grid
    height, width, channels = image.shape
    if min(rows, columns, size) < 1 or channel_jitter < 0:
        raise ValueError(
            f"grid, size and jitter must be positive, got {grid}, {size} and "
            f"{channel_jitter}"
        )
    cell = jnp.array([height // rows, width // columns])
    if size > min(height // rows, width // columns):
        raise ValueError(
            f"tiles of {size} pixels must fit into cells of {height // rows} x "
            f"{width // columns}, a {rows} x {columns} grid of {height} x {width}"
        )
    spare = jnp.array([height % rows, width % columns]) // 2
    number = jnp.arange(rows * columns)
    corners = jnp.stack([number // columns, number % columns], axis=1)
    corners = spare[None] + cell[None] * corners
    place_key, jitter_key = jax.random.split(key)
    inside = jax.random.randint(
        place_key, (len(number), 1, 2), 0, (cell - size + 1)[None, None]
    )
    inside += jax.random.randint(
        jitter_key, (len(number), channels, 2), -channel_jitter, channel_jitter + 1
    )
    places = corners[:, None] + jnp.clip(inside, 0, (cell - size)[None, None])

    def cut(place: Array, channel: Array) -> Array:
        return lax.dynamic_slice(image, (*place, channel), (size, size, 1))[..., 0]

    of_channels = jax.vmap(cut, out_axes=-1)
    return jax.vmap(lambda p: of_channels(p, jnp.arange(channels)))(places)


@export("ssl.jigsaw_views", since="0.1")
def jigsaw_views(
    grid: tuple[int, int],
    size: int,
    *,
    grayscale: float = 0.3,
    channel_jitter: int = 2,
) -> Any:
    """(key, image) -> {"tiles": [tiles, size, size, channels]}, in their true order.

    Args:
        grid: rows and columns.
        size: of the tiles, pixels a side.
        grayscale: share of images that are made gray.
        channel_jitter: see `cut_tiles`; for images that stay coloured.
    """

    def views(key: PRNGKeyArray, image: Array) -> dict[str, Array]:
        gray_key, key = jax.random.split(key)
        is_colour = image.shape[-1] == 3
        if is_colour:
            image = random_grayscale(gray_key, image, grayscale)
        jitter = channel_jitter if is_colour else 0
        tiles = cut_tiles(key, image, grid, size, channel_jitter=jitter)
        if is_colour and jitter:
            # Without jitter gray tiles stay gray.
            plain = cut_tiles(key, image, grid, size)
            is_gray = jnp.all(image == image[..., :1])
            tiles = jnp.where(is_gray, plain, tiles)
        return {"tiles": tiles}

    return views


@export("ssl.normalize_tiles", since="0.1")
def normalize_tiles(
    tiles: Float[Array, "*batch height width channels"], eps: float = 1e-4
) -> Float[Array, "*batch height width channels"]:
    """Every channel of every tile with mean 0 and deviation 1; a flat one becomes 0.

    >>> normalize_tiles(jnp.array([[[1.0], [3.0]]])).round(3).tolist()
    [[[-1.0], [1.0]]]
    """
    x = tiles.astype(jnp.promote_types(tiles.dtype, jnp.float32))
    x = x - jnp.mean(x, axis=(-3, -2), keepdims=True)
    variance = jnp.mean(jnp.square(x), axis=(-3, -2), keepdims=True)
    return (x * lax.rsqrt(variance + eps**2)).astype(tiles.dtype)


@export("ssl.Jigsaw", since="0.1")
class Jigsaw(nn.Module):
    """The context-free network: one backbone for every tile, and a classifier of all.

    Attributes:
        backbone: module taking (images, train) to features [batch, features].
        num_permutations: that are told apart.
        dim: of the code of a tile (fc6).
        widths: of the classifier's hidden layers (fc7).
        normalize: `normalize_tiles` of all that the backbone sees.
        axis_name: mesh axis the batch is split over; give the backbone the same.
    """

    backbone: nn.Module
    num_permutations: int = 1000
    dim: int = 512
    widths: Sequence[int] = (4096,)
    normalize: bool = True
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, tiles: Float[Array, "batch tiles height width channels"], *, train: bool
    ) -> tuple[Float[Array, "shown features"], Float[Array, "batch permutations"]]:
        """Returns the features of all tiles and logits of the permutations."""
        h = self.features(tiles.reshape(-1, *tiles.shape[2:]), train=train)
        codes = nn.relu(Dense(self.dim, name="code")(h))
        x = codes.reshape(len(tiles), -1)
        head = Mlp((*self.widths, self.num_permutations), normalize=False, name="head")
        return h, head(x, train=train)

    def features(self, images: Array, *, train: bool) -> Float[Array, "batch features"]:
        """What transfers, of tiles or of whole images."""
        seen = normalize_tiles(images) if self.normalize else images
        return self.backbone(seen, train=train)


@export("ssl.jigsaw", since="0.1")
def jigsaw(model: Jigsaw, permutations: Int[Array, "num tiles"]) -> Method:
    """The jigsaw method; a batch holds `tiles` in their true order, see `jigsaw_views`.

    Every step draws a permutation for each image. `predict` returns the features [batch,
    features] of `image`. The model state holds the `permutations`, so that a checkpoint
    knows its own. Metrics: the loss, which is ln num_permutations for uniform answers; the
    share of puzzles that are solved (`accuracy`); and `feature_std` of the tiles' features
    (near 1 healthy, 0 collapsed).

    Args:
        model: its `num_permutations` is the number of permutations.
        permutations: see `hamming_permutations`.

    Raises:
        ValueError: unless they are distinct permutations, as many as the model tells
            apart; in `init` and `loss`, unless there are as many tiles as they permute.
    """
    table = np.asarray(permutations, np.int32)
    num, count = table.shape
    if num != model.num_permutations:
        raise ValueError(
            f"the model must tell {num} permutations apart, got {model.num_permutations}"
        )
    if (np.sort(table) != np.arange(count)).any() or len(
        np.unique(table, axis=0)
    ) < num:
        raise ValueError(f"permutations must be distinct ones of {count} tiles")

    def read(batch: Batch) -> Array:
        tiles = batch["tiles"]
        if tiles.shape[1] != count:
            raise ValueError(f"there must be {count} tiles, got {tiles.shape[1]}")
        return tiles

    def init(key: PRNGKeyArray, batch: Batch) -> tuple[Params, ModelState]:
        params, stats = init_module(model, key, read(batch), train=True)
        return params, {"encoder": stats, "permutations": jnp.asarray(table)}

    def loss(
        params: Params, model_state: ModelState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[ModelState, Metrics]]:
        tiles = read(batch)
        keys = sample_keys(key, len(tiles), model.axis_name)
        drawn = jax.vmap(lambda key: jax.random.randint(key, (), 0, num))(keys)
        shown = shuffle_tiles(tiles, model_state["permutations"][drawn])
        (h, logits), stats = apply_module(
            model, params, model_state["encoder"], shown, train=True
        )
        logits = logits.astype(jnp.float32)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, drawn)
        value, is_right = jnp.mean(losses), jnp.argmax(logits, axis=1) == drawn
        return value, (
            {**model_state, "encoder": stats},
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
            model_state["encoder"],
            batch["image"],
            train=False,
            method="features",
        )
        return h

    return Method(init, loss, predict)


@export("ssl.shuffle_tiles", since="0.1")
def shuffle_tiles(
    tiles: Float[Array, "batch tiles height width channels"],
    permutations: Int[Array, "batch tiles"],
) -> Float[Array, "batch tiles height width channels"]:
    """Tile p(k) of each image at place k; with `jnp.argsort` of p they go back."""
    return jnp.take_along_axis(tiles, permutations[..., None, None, None], axis=1)
