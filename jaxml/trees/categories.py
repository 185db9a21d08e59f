"""Splits by category: one against the rest, or a set against its complement.

Categories are bins of their own. With few of them each is tried alone; with more they are
put in the order of their best values, and the sets tried are the beginnings of that order,
among which the best of all 2^(n-1) is, for any convex loss. Missing rows go with either
side.

The trap: the set on the second child is the one that is written down, so that a category
which was never seen goes to the first.

Reference: Fisher, "On Grouping for Maximum Homogeneity", JASA 1958,
https://doi.org/10.1080/01621459.1958.10501479; Chen and Guestrin, "XGBoost: A Scalable Tree
Boosting System", KDD 2016, https://arxiv.org/abs/1603.02754 (candidates in the order of its
code, of equal gains the first).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from jaxml.trees.rule import Rule
from jaxml.typing import Array, Bool, Float, Int, UInt32


class Sets(NamedTuple):
    """The best set of every categorical column and slot.

    Attributes:
        gain: -inf where there is none.
        default_left: whether missing rows go to the first child.
        words: bits of the categories that go to the second.
        right: integer sums of the second child.
    """

    gain: Float[Array, "columns slots"]
    default_left: Bool[Array, "columns slots"]
    words: UInt32[Array, "columns slots words"]
    right: Int[Array, "channels columns slots"]


def best_sets(
    by_bin: Int[Array, "channels columns bins slots"],
    missing: Int[Array, "channels columns slots"],
    count: Int[Array, " columns"],
    gain: Callable[[Array], Array],
    rule: Rule,
    unit: Float[Array, " channels"],
    onehot_below: int,
    most: int,
) -> Sets:
    """Searches all columns; to be called inside `jax.enable_x64(True)`.

    Args:
        by_bin: sums of every category.
        missing: sums of the rows without one.
        count: categories of every column; the bins behind are empty.
        gain: integer sums of the second child -> gain of the split.
        rule: gives categories their order.
        unit: of the integers.
        onehot_below: columns with fewer categories than this are split one against the rest.
        most: how many categories a set of the order may reach.
    """
    bins = by_bin.shape[2]
    place = jnp.arange(bins, dtype=jnp.int32)[:, None, None]
    n = count[None, :, None]

    alone = jnp.stack((gain(by_bin), gain(by_bin + missing[:, :, None])))
    alone = jnp.moveaxis(alone, 2, 0)  # [bins, 2, columns, slots]
    alone = jnp.where(place[:, None] < n[None], alone, -jnp.inf)
    alone = alone.reshape(2 * bins, *alone.shape[2:])
    single, at = jnp.max(alone, axis=0), lax.argmax(alone, 0, jnp.int32)
    chosen = (place == (at // 2)[None]), at % 2 == 0

    sums = by_bin * unit[:, None, None, None]
    value = jnp.where(rule.admits(sums), rule.value(sums)[0], 0)
    value = jnp.moveaxis(value, 1, 0)
    value = jnp.where(place < n, value, jnp.inf)
    order = _ascending(value)
    rank = _ascending(order)
    by_place = jnp.moveaxis(by_bin, 2, 1)
    prefix = jnp.cumsum(jnp.take_along_axis(by_place, order[None], axis=1), axis=1)
    reach = jnp.minimum(n, most)
    swap = lambda x: jnp.moveaxis(x, 1, 2)  # noqa: E731
    forward = jnp.moveaxis(gain(swap(prefix)), 1, 0)
    forward = jnp.where(place < reach - 1, forward, -jnp.inf)
    before = jnp.pad(prefix, ((0, 0), (1, 0), (0, 0), (0, 0)))[:, :-1]
    backward = jnp.moveaxis(gain(swap(before + missing[:, None])), 1, 0)
    backward = jnp.where(place > n - reach, backward, -jnp.inf)
    both = jnp.concatenate((forward, jnp.flip(backward, axis=0)))
    ordered, at = jnp.max(both, axis=0), lax.argmax(both, 0, jnp.int32)
    taken = jnp.where(at < bins, at + 1, 2 * bins - 1 - at)
    parted = (rank < taken[None]), at < bins

    one = count[:, None] < onehot_below
    members = jnp.where(one[None], chosen[0], parted[0])
    default_left = jnp.where(one, chosen[1], parted[1])
    right = jnp.sum(jnp.where(members[None], by_place, 0), axis=1)
    right = right + jnp.where(default_left[None], 0, missing)
    best = jnp.where(one, single, ordered)
    return Sets(best, default_left, _words(members), right)


def _ascending(x: Array) -> Int[Array, "bins columns slots"]:
    """Places in ascending order, along the first axis."""
    place = lax.broadcasted_iota(jnp.int32, x.shape, 0)
    return lax.sort((x, place), dimension=0, is_stable=True, num_keys=1)[1]


def _words(members: Bool[Array, "bins columns slots"]) -> UInt32[Array, "..."]:
    bins = len(members)
    padded = jnp.pad(members, ((0, -bins % 32), (0, 0), (0, 0)))
    bits = padded.reshape(-1, 32, *members.shape[1:]).astype(jnp.uint32)
    shift = jnp.arange(32, dtype=jnp.uint32)[None, :, None, None]
    return jnp.moveaxis(jnp.sum(bits << shift, axis=1, dtype=jnp.uint32), 0, -1)


def holds(
    words: UInt32[Array, "slots words"], slot: Int[Array, " rows"], code: Array
) -> Bool[Array, " rows"]:
    """Whether each row's category is in the set of its slot; False for no category."""
    width = words.shape[1]
    known = (code >= 0) & (code < 32 * width)
    code = jnp.where(known, code, 0)
    flat = jnp.asarray(words).reshape(-1)
    word = flat.at[slot * width + (code >> 5)].get(mode="promise_in_bounds")
    bit = (word >> (code & 31).astype(jnp.uint32)) & jnp.uint32(1)
    return known & bit.astype(bool)


def is_member(columns: tuple[int, ...], width: int) -> Bool[Array, " columns"]:
    """A mask of the named columns."""
    return jnp.zeros(width, bool).at[jnp.asarray(columns, jnp.int32)].set(True)
