"""TreeSHAP: what every feature adds to a prediction, by Shapley's rule, in polynomial time.

A forest is a sum over its root-to-leaf paths. On one path feature j is either known to
satisfy its conditions (o_j in {0, 1}) or followed in proportion to the covers (z_j), so
the game of a path is a product, and the Shapley value of i in it an integral,

    phi_i = v (o_i - z_i) integral_0^1 prod_(j != i) (z_j (1 - t) + o_j t) dt,

of a polynomial of degree < depth in t: Gauss-Legendre quadrature with depth / 2 points is
exact. All terms but the first factor are positive, so nothing cancels.

The trap: a feature that a path reads several times is one player, with the product of its
fractions; conditions are merged to one interval before anything is summed.

Reference: Lundberg et al., "Consistent Individualized Feature Attribution for Tree
Ensembles", 2018, https://arxiv.org/abs/1802.03888 (algorithm 2 has the same values; the
paths as intervals are those of Mitchell et al., "GPUTreeShap", 2020,
https://arxiv.org/abs/2010.13972; the integral is new here).
"""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxml.export import export
from jaxml.trees.model import Model
from jaxml.trees.tree import Tree, in_blocks
from jaxml.typing import Array, Bool, Float, Int, UInt32

CHUNK = 32
"""Paths that are looked at together."""


class Paths(NamedTuple):
    """The paths of a forest; slots that a path does not need have z = o = 1.

    Attributes:
        feature: of each slot.
        low, high: the slot's condition is low <= x < high,
        allowed: and, where it reads categories, that the bit of x is set,
        beyond: or that x is no category of the words.
        missing: whether NaN satisfies it.
        share: z, the share of the cover that satisfies it.
        value: of the leaf, times the weight of the tree.
        output: to which it adds.
    """

    feature: Int[Array, "paths slots"]
    low: Float[Array, "paths slots"]
    high: Float[Array, "paths slots"]
    allowed: UInt32[Array, "paths slots words"]
    beyond: Bool[Array, "paths slots"]
    missing: Bool[Array, "paths slots"]
    share: Float[Array, "paths slots"]
    value: Float[Array, " paths"]
    output: Int[Array, " paths"]


@export("trees.shap.shap_values", since="0.1")
def shap_values(
    model: Model, x: Float[Array, "rows columns"]
) -> Float[Array, "rows outputs columns+1"]:
    """Contributions of the features to the margins; the last column is the bias.

    They add up to the margins: `shap_values(model, x).sum(-1)` is
    `predict(model, x, output_margin=True)`. The function prepares the paths in NumPy, and
    is not for `jit`.

    Args:
        model: trees of one output each, or a linear model.
        x: features; NaN is missing.

    Raises:
        ValueError: if x has another number of columns than the model was fitted to, or a
            tree has several outputs.
    """
    if np.ndim(x) != 2 or x.shape[1] != model.num_features:
        raise ValueError(
            f"x must be [rows, {model.num_features}], got {tuple(np.shape(x))}"
        )
    x = jnp.asarray(x, jnp.float32)
    outputs = len(model.start)
    if model.linear is not None:
        filled = jnp.where(jnp.isnan(x), 0, x)
        parts = filled[:, None, :] * model.linear[:-1].T[None]
        bias = (model.linear[-1] + model.start)[None, :, None]
        bias = jnp.broadcast_to(bias, (len(x), outputs, 1))
        return jnp.concatenate((parts, bias), axis=2)
    if model.trees.value.shape[-1] > 1:
        raise ValueError("trees must have one output each")
    if model.best_iteration is not None:
        model = model.up_to_best()
    paths, bias = _paths(model)
    points, weights = np.polynomial.legendre.leggauss((paths.feature.shape[1] + 1) // 2)
    quadrature = np.stack(((points + 1) / 2, weights / 2)).astype(np.float32)
    phi = jnp.asarray(_shap(paths, x, jnp.asarray(quadrature), outputs))
    return phi.at[:, :, -1].add((model.start + bias)[None])


def _paths(model: Model) -> tuple[Paths, Float[np.ndarray, " outputs"]]:
    """All paths of all trees, in chunks, and the expected margin without the start."""
    model = jax.tree.map(np.asarray, model)
    rows: list[tuple] = []
    bias = np.zeros(len(model.start), np.float64)
    for index in range(len(model.group)):
        tree = jax.tree.map(lambda leaf, i=index: leaf[i], model.trees)
        for slots, share, leaf in _walk(tree):
            value = float(tree.value[leaf, 0]) * float(model.weight[index])
            bias[model.group[index]] += value * share
            rows.append((slots, value, int(model.group[index])))
    depth = max(1, *(len(slots) for slots, _, _ in rows))
    count = -(-len(rows) // CHUNK) * CHUNK
    words = model.trees.categories.shape[-1]
    paths = Paths(
        feature=np.zeros((count, depth), np.int32),
        low=np.full((count, depth), -np.inf, np.float32),
        high=np.full((count, depth), np.inf, np.float32),
        allowed=np.full((count, depth, words), 2**32 - 1, np.uint32),
        beyond=np.ones((count, depth), bool),
        missing=np.ones((count, depth), bool),
        share=np.ones((count, depth), np.float32),
        value=np.zeros(count, np.float32),
        output=np.zeros(count, np.int32),
    )
    for at, (slots, value, output) in enumerate(rows):
        paths.value[at], paths.output[at] = value, output
        for place, (feature, slot) in enumerate(slots.items()):
            paths.feature[at, place] = feature
            (
                paths.low[at, place],
                paths.high[at, place],
                paths.allowed[at, place],
                paths.beyond[at, place],
                paths.missing[at, place],
                paths.share[at, place],
            ) = slot
    return paths, bias.astype(np.float32)


def _walk(tree: Tree) -> Iterator[tuple[dict, float, int]]:
    """(slots by feature, share of the cover, leaf) of every path of one tree."""
    words = tree.categories.shape[-1]
    whole = (-np.inf, np.inf, np.full(words, 2**32 - 1, np.uint32), True, True, 1.0)
    stack: list[tuple[int, dict, float]] = [(0, {}, 1.0)]
    while stack:
        node, slots, share = stack.pop()
        first = int(tree.left[node])
        if not first:
            yield slots, share, node
            continue
        feature, t = int(tree.feature[node]), float(tree.threshold[node])
        chosen = tree.categories[node]
        by_category = bool((chosen != 0).any())
        default = bool(tree.default_left[node])
        cover = float(tree.cover[first]) + float(tree.cover[first + 1])
        for side in (0, 1):
            low, high, allowed, beyond, missing, z = slots.get(feature, whole)
            part = float(tree.cover[first + side]) / cover if cover > 0 else 0.5
            if by_category:
                allowed = allowed & (chosen if side else ~chosen)
                beyond = beyond and not side
            elif side:
                low = max(low, t)
            else:
                high = min(high, t)
            slot = (
                low,
                high,
                allowed,
                beyond,
                missing and default == (not side),
                z * part,
            )
            stack.append((first + side, {**slots, feature: slot}, share * part))


@partial(jax.jit, static_argnums=3)
def _shap(
    paths: Paths, x: Array, quadrature: Array, outputs: int
) -> Float[Array, "rows outputs columns"]:
    points, weights = quadrature
    width = x.shape[1] + 1
    count = len(paths.value) // CHUNK
    chunks = jax.tree.map(lambda p: p.reshape(count, CHUNK, *p.shape[1:]), paths)

    def block(rows: Array) -> Array:
        def add(phi: Array, path: Paths) -> tuple[Array, None]:
            o = _satisfies(path, rows).astype(jnp.float32)
            z = path.share[None]
            t = points[None, None, None]
            factor = z[..., None] * (1 - t) + o[..., None] * t
            others = _products_of_others(factor, axis=2)
            integral = jnp.einsum("rpsq,q->rps", others, weights, precision="highest")
            part = path.value[None, :, None] * (o - z) * integral
            at = path.output[:, None] * width + path.feature
            part = part.reshape(len(rows), -1)
            return jnp.asarray(phi).at[:, at.reshape(-1)].add(part), None

        zero = jnp.zeros((len(rows), outputs * width), jnp.float32)
        return lax.scan(add, zero, chunks)[0]

    return in_blocks(block, x, 256).reshape(len(x), outputs, width)


def _satisfies(path: Paths, rows: Array) -> Bool[Array, "rows paths slots"]:
    value = rows[:, path.feature]
    known = (value >= path.low[None]) & (value < path.high[None])
    words = path.allowed.shape[-1]
    if words:
        inside = (value >= 0) & (value < 32 * words)
        code = jnp.where(inside, value, 0).astype(jnp.uint32)
        place = (code >> 5).astype(jnp.int32)[..., None]
        allowed = jnp.broadcast_to(path.allowed[None], (*value.shape, words))
        word = jnp.take_along_axis(allowed, place, axis=-1)[..., 0]
        bit = ((word >> (code & jnp.uint32(31))) & jnp.uint32(1)).astype(bool)
        known &= jnp.where(inside, bit, path.beyond[None])
    return jnp.where(jnp.isnan(value), path.missing[None], known)


def _products_of_others(x: Array, axis: int) -> Array:
    """The product over an axis without each entry itself, by what is before and behind."""
    x = jnp.moveaxis(x, axis, 0)
    one = jnp.ones_like(x[:1])
    before = jnp.cumprod(jnp.concatenate((one, x[:-1])), axis=0)
    behind = jnp.cumprod(jnp.concatenate((one, x[:0:-1])), axis=0)[::-1]
    return jnp.moveaxis(before * behind, 0, axis)
