"""Ring attention: a sequence longer than a device, its keys travelling in a circle.

Every one of P devices holds 1/P of the queries, keys and values. In P rounds it attends
to the keys at hand, merges the result with what it has by their log-sum-exp, and passes
the keys on to its neighbour: no device ever holds more than its own part and one other.

    (out, L) <- merge((out, L), attention(q, k_p, v_p)),    k, v <- from the neighbour

The derivative is that of `chunked`, with L over all keys: every round adds what its keys
change, and the transpose, which is the backward pass, sends to every device the gradient
of its keys. A round's keys are fetched from their owner again instead of being kept, in
log2 P leaps: so the backward pass too holds few foreign parts at a time, and it, forward
mode and higher orders come out of one rule.

A causal mask makes rounds unequal: with contiguous parts the last device sees all keys
and the first only its own. In `zigzag` order the sequence is cut into 2 P pieces, and
device p holds pieces p and 2 P - 1 - p, so that all have the same work in every round:
of the four pairs of pieces of two devices, two are whole or one and two halves, the rest
is empty and skipped.

The trap is the order of the sequence: outside, tokens stand as they always do; on the
devices they stand in zigzag. `zigzag` and `unzigzag` take an array there and back, and
everything between them that looks at positions must know.

Reference: Liu et al., "Ring Attention with Blockwise Transformers for Near-Infinite
Context", ICLR 2024, https://arxiv.org/abs/2310.01889 (section 3); Brandon et al.,
"Striped Attention", 2023, https://arxiv.org/abs/2311.09431 (the imbalance; theirs deals
single tokens out, pieces in pairs as here were used for Llama 3,
https://arxiv.org/abs/2407.21783, section 3.3.2).
"""

from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxml.attention.chunked import (
    change_of_results,
    chunked,
    known_changes,
    partial_change,
)
from jaxml.attention.online_softmax import (
    SoftmaxState,
    finished_state,
    log_total,
    mean,
    merge,
)
from jaxml.attention.spec import Context, Operands, Spec, prepare
from jaxml.export import export
from jaxml.typing import Array, Float


@export("attention.ring_attention", since="0.1")
def ring_attention(
    query: Float[Array, "batch queries heads dim"],
    key: Float[Array, "batch keys kv_heads dim"],
    value: Float[Array, "batch keys kv_heads value_dim"],
    *,
    axis_name: str,
    is_causal: bool = False,
    is_zigzag: bool = False,
    scale: float | None = None,
    logits_soft_cap: float | None = None,
    return_lse: bool = False,
) -> Any:
    """Attention over a sequence that is split over the devices of a mesh axis.

    To be called inside `jax.shard_map`, by every device with its own part.

    Args:
        query: this device's queries.
        key: this device's keys, of one length on all devices.
        value: this device's values.
        axis_name: the mesh axis that the sequence is split over, in order.
        is_causal: no query sees a key after its own position in the whole sequence;
            queries and keys are then equally many.
        is_zigzag: the whole sequence was reordered by `zigzag` before it was split.
        return_lse: also return the log-sum-exp over all keys.
        scale: as for `attention`.
        logits_soft_cap: as for `attention`.

    Returns:
        This device's part of what `attention` gives for the whole sequence.

    Raises:
        ValueError: if the shapes do not fit.
    """
    if is_causal and query.shape[1] != key.shape[1]:
        raise ValueError(
            "query and key must have one length if causal, "
            f"got {query.shape[1]} and {key.shape[1]}"
        )
    if is_zigzag and key.shape[1] % 2:
        raise ValueError(
            f"a part must be of even length in zigzag order, got {key.shape[1]}"
        )
    spec, operands, _ = prepare(
        query,
        key,
        value,
        is_causal=is_causal,
        scale=scale,
        logits_soft_cap=logits_soft_cap,
    )
    plan = _Ring(axis_name, lax.axis_size(axis_name), is_causal, is_zigzag)
    out, maximum, total = _attend(plan, spec, operands)
    lse = log_total(maximum, total)
    return (out, lse) if return_lse else out


class _Ring(NamedTuple):
    axis_name: str
    devices: int
    is_causal: bool
    is_zigzag: bool

    def shift(self, tree: Any, distance: int) -> Any:
        """What the device `distance` places before this one holds."""
        pairs = [(p, (p + distance) % self.devices) for p in range(self.devices)]
        return lax.ppermute(tree, self.axis_name, pairs)

    def fetch(self, tree: Any, distance: Array) -> Any:
        """`shift` by a distance that a loop counts: in leaps of 1, 2, 4, ... places."""
        for bit in range((self.devices - 1).bit_length()):
            leaps = distance >> bit & 1 == 1
            moved = self.shift(tree, 1 << bit)
            tree = jax.tree.map(partial(jnp.where, leaps), moved, tree)
        return tree

    def pieces(self, part: Array, owner: Array) -> list[tuple[Array, Array]]:
        """The runs of consecutive tokens in a device's part, and where each starts."""
        if not self.is_zigzag:
            return [(part, owner * part.shape[1])]
        half, last = part.shape[1] // 2, 2 * self.devices - 1
        return [(part[:, :half], owner * half), (part[:, half:], (last - owner) * half)]

    def context(self, queries_at: Array, keys_at: Array) -> Context:
        return Context(offset=jnp.reshape(queries_at - keys_at, (1,)))


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _attend(ring: _Ring, spec: Spec, operands: Operands) -> tuple[Array, Array, Array]:
    me = lax.axis_index(ring.axis_name)
    query, *own, _ = operands

    def attend_to(keys: Any, owner: Array) -> SoftmaxState:
        """My queries on the keys of `owner`: pieces on pieces, most of them empty."""
        # In float32 at least: half precision would be rounded in every round.
        wide, *keys = (x.astype(operands.accumulator) for x in (query, *keys))
        columns = [ring.pieces(x, owner) for x in keys]
        states = []
        for q, q_at in ring.pieces(wide, me):
            parts = [
                chunked(spec, Operands(q, k, v), ring.context(q_at, at))
                for (k, at), (v, _) in zip(*columns, strict=True)
            ]
            states.append(reduce(merge, [finished_state(*part) for part in parts]))
        return jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *states)

    def one_round(carry: Any, step: Array) -> tuple[Any, None]:
        state, keys = carry
        # Sent before they are used, so that sending and computing may overlap.
        following = ring.shift(keys, 1)
        part = attend_to(keys, (me - step) % ring.devices)
        return (merge(state, part), following), None

    state = attend_to(own, me)
    if ring.devices > 1:
        rounds = jnp.arange(1, ring.devices - 1)
        (state, keys), _ = lax.scan(one_round, (state, ring.shift(own, 1)), rounds)
        state = merge(state, attend_to(keys, (me + 1) % ring.devices))
    return mean(state).astype(query.dtype), state.maximum, state.total


def _attend_jvp(
    ring: _Ring, spec: Spec, primals: tuple[Operands], tangents: tuple[Operands]
) -> tuple[Any, Any]:
    (operands,) = primals
    results = _attend(ring, spec, operands)
    changes, me = known_changes(tangents[0]), lax.axis_index(ring.axis_name)

    @partial(jax.checkpoint, prevent_cse=False)
    def one_round(step: Array) -> tuple[Array, Array]:
        away = lambda x: x._replace(query=None)  # noqa: E731
        keys, moves = ring.fetch((away(operands), away(changes)), step)
        owner, sums = (me - step) % ring.devices, []

        def pieces(x: Operands, q: Array | None) -> list[Operands]:
            """By queries, then keys."""
            cuts = [
                [None] * 2 if y is None else [z for z, _ in ring.pieces(y, me)]
                for y in (q, x.key, x.value)
            ]
            return [Operands(*c) for c in zip(cuts[0], cuts[1], cuts[2], strict=False)]

        here, moved = pieces(keys, operands.query), pieces(moves, changes.query)
        start = [at for _, at in ring.pieces(operands.query, me)]
        there = [at for _, at in ring.pieces(keys.key, owner)]
        bases = [[x for x, _ in ring.pieces(r, me)] for r in results[1:]]
        for i, q_at in enumerate(start):
            parts = [
                partial_change(
                    spec,
                    here[j]._replace(query=here[i].query),
                    moved[j]._replace(query=moved[i].query),
                    ring.context(q_at, k_at),
                    bases[0][i],
                    bases[1][i],
                )
                for j, k_at in enumerate(there)
            ]
            sums.append(jax.tree.map(lambda *x: sum(x), *parts))
        return jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *sums)

    # A loop, so that in the transpose too one round's keys come after the other's.
    total, _ = lax.scan(
        lambda total, step: (jax.tree.map(jnp.add, total, one_round(step)), None),
        one_round(jnp.int32(0)),
        jnp.arange(1, ring.devices),
    )
    return results, change_of_results(results, total)


_attend.defjvp(_attend_jvp, symbolic_zeros=True)


@export("attention.zigzag", since="0.1")
def zigzag(x: Array, devices: int, *, axis: int = 1) -> Array:
    """Reorders a whole sequence so that device p gets pieces p and 2 devices - 1 - p.

    Raises:
        ValueError: if twice the devices do not divide the length.

    >>> zigzag(jnp.arange(8), 2, axis=0).tolist()
    [0, 1, 6, 7, 2, 3, 4, 5]
    """
    return _reordered(x, _zigzag_order(devices), axis)


@export("attention.unzigzag", since="0.1")
def unzigzag(x: Array, devices: int, *, axis: int = 1) -> Array:
    """The inverse of `zigzag`.

    >>> unzigzag(zigzag(jnp.arange(8), 2, axis=0), 2, axis=0).tolist()
    [0, 1, 2, 3, 4, 5, 6, 7]
    """
    order = _zigzag_order(devices)
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return _reordered(x, inverse, axis)


def _zigzag_order(devices: int) -> list[int]:
    return [n for p in range(devices) for n in (p, 2 * devices - 1 - p)]


def _reordered(x: Array, order: list[int], axis: int) -> Array:
    if x.shape[axis] % len(order):
        raise ValueError(
            f"the sequence must divide into {len(order)} pieces, got {x.shape[axis]}"
        )
    pieces = jnp.split(jnp.asarray(x), len(order), axis=axis)
    return jnp.concatenate([pieces[n] for n in order], axis=axis)
