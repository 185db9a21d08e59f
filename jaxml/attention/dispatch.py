"""One door to attention, and a plain answer to which backend is behind it, and why.

`attention` takes what `jax.nn.dot_product_attention` takes, and more, and gives the same
numbers. Backends stand in one table in order of preference. The first that takes the
call runs it; `explain` shows what became of the others. The memory is linear in length
whichever runs: the quadratic `reference` answers by name alone. A kernel of ours is taken
unasked only on a device where it was measured, and won or stands alone; by the name of
"flash" it runs wherever the program does, in one trace for all platforms.

The one difference from `jax.nn`: a query that may see no key gives 0 and lse = -inf, not
the mean of all values.

Reference: Vaswani et al., "Attention Is All You Need", NeurIPS 2017,
https://arxiv.org/abs/1706.03762 (equation 1); Ainslie et al., "GQA", EMNLP 2023,
https://arxiv.org/abs/2305.13245 (shared keys); Beltagy et al., "Longformer", 2020,
https://arxiv.org/abs/2004.05150 (windows); Gemma Team, "Gemma 2", 2024,
https://arxiv.org/abs/2408.00118 (soft cap); Xiao et al., "Efficient Streaming Language
Models with Attention Sinks", ICLR 2024, https://arxiv.org/abs/2309.17453 (a learned sink
logit is their "learnable sink token" with value 0).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxml.attention.chunked import chunked
from jaxml.attention.flash.backends import (
    USUAL,
    Call,
    by_platform,
    kernels,
    not_chosen,
    objection,
)
from jaxml.attention.flash.rule import flash
from jaxml.attention.reference import reference
from jaxml.attention.spec import Context, Operands, SegmentIds, Spec, prepare
from jaxml.export import export
from jaxml.typing import Array, Bool, Float, Int, Key, PRNGKeyArray

Run = Callable[[Spec, Operands, Context], tuple[Array, Array]]


class Backend(NamedTuple):
    """A way to compute attention.

    Attributes:
        name: as in `implementation`.
        platforms: where it runs; None, everywhere.
        run: what it runs; None for kernels, see `flash.backends`.
        by_name_only: why it is never chosen unasked, or None.
        has_interpreter: whether it can be run without its device.
    """

    name: str
    platforms: frozenset[str] | None
    run: Run | None = None
    by_name_only: str | None = None
    has_interpreter: bool = False


BACKENDS = (
    Backend("mosaic_gpu", frozenset({"gpu"}), has_interpreter=True),
    Backend("cudnn", frozenset({"gpu"})),
    Backend("pallas_tpu", frozenset({"tpu"}), has_interpreter=True),
    Backend("chunked", None, chunked),
    Backend("reference", None, reference, "its memory grows with queries x keys"),
)
# Asked for by this name, our kernels run wherever the program turns out to run.
OURS = ("mosaic_gpu", "pallas_tpu", "chunked")
PLATFORMS = ("gpu", "tpu", "cpu")


@export("attention.Plan", since="0.1")
class Plan(NamedTuple):
    """What runs, and why nothing before it did.

    Attributes:
        implementation: the name of the backend.
        reasons: (backend, why it runs or does not), in order of preference.
    """

    implementation: str
    reasons: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return "\n".join(f"{name}: {reason}" for name, reason in self.reasons)


def plan(
    platform: str, implementation: str | None, interpret: bool, call: Call = USUAL
) -> Plan:
    """The backend of a call: a pure function of what is known before it runs.

    Raises:
        ValueError: if the implementation is unknown or cannot take the call.
    """
    names = [backend.name for backend in BACKENDS]
    if implementation not in (None, "flash", *names):
        raise ValueError(
            f"implementation must be None, flash or one of {', '.join(names)}, "
            f"got {implementation!r}"
        )
    asked = OURS if implementation == "flash" else (implementation,)
    reasons: list[tuple[str, str]] = []
    chosen = None
    for backend in BACKENDS:
        if implementation is None or backend.name in asked:
            against = _objection(backend, platform, interpret, call)
            if against is None and implementation is None:
                against = _reserve(backend, call)
            if against is None and chosen is None:
                chosen, against = backend.name, _runs(backend, call)
            reasons.append((backend.name, against or f"not needed, {chosen} runs"))
    if chosen is None:
        why = "; ".join(f"{name}: {reason}" for name, reason in reasons)
        raise ValueError(f"some implementation must take the call, got {why}")
    return Plan(chosen, tuple(reasons))


def _objection(
    backend: Backend, platform: str, interpret: bool, call: Call
) -> str | None:
    """Why it cannot take the call there."""
    here = backend.platforms is None or platform in backend.platforms
    if not here and not (interpret and backend.has_interpreter):
        return (
            f"runs on {', '.join(sorted(backend.platforms or ()))}, not on {platform}"
        )
    if interpret and not backend.has_interpreter:
        return "has no kernel to interpret"
    return None if backend.run else objection(backend.name, call, interpret)


def _runs(backend: Backend, call: Call) -> str:
    """What is said of the one that runs."""
    if backend.run is None and call.bias is not None:
        return "runs; a gradient of the bias, where it is used, comes from chunked"
    return "runs"


def _reserve(backend: Backend, call: Call) -> str | None:
    """Why it is not taken unasked."""
    if backend.by_name_only:
        return f"only by name: {backend.by_name_only}"
    return None if backend.run else not_chosen(backend.name, call)


def _runner(implementation: str | None, interpret: bool, call: Call) -> Run:
    """What runs: one backend, or one for each platform in one program."""
    here = jax.default_backend()
    if implementation not in (None, "flash") or interpret:
        return _run_of(plan(here, implementation, interpret, call), interpret)
    plans = {p: plan(p, implementation, False, call) for p in PLATFORMS}
    names = [plans[p].implementation for p in PLATFORMS]
    if len(set(names)) == 1 or "cudnn" in names:  # which this program cannot leave
        return _run_of(plans[here if here in plans else "cpu"], False)
    return partial(flash, by_platform(*names[:2]))


def _run_of(chosen: Plan, interpret: bool) -> Run:
    (run,) = (b.run for b in BACKENDS if b.name == chosen.implementation)
    return run or partial(flash, kernels(chosen.implementation, interpret))


@export("attention.attention", since="0.1")
def attention(
    query: Float[Array, "*batch queries heads dim"],
    key: Float[Array, "*batch keys kv_heads dim"],
    value: Float[Array, "*batch keys kv_heads value_dim"],
    bias: Float[Array, "..."] | None = None,
    mask: Bool[Array, "..."] | None = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    causal_offset: str | int | Int[Array, "..."] = "top_left",
    query_seq_lengths: Int[Array, "..."] | None = None,
    key_value_seq_lengths: Int[Array, "..."] | None = None,
    segment_ids: SegmentIds | None = None,
    local_window_size: int | tuple[int | None, int | None] | None = None,
    logits_soft_cap: float | None = None,
    sinks: Float[Array, "heads"] | None = None,
    dropout_rate: float = 0.0,
    dropout_key: PRNGKeyArray | Key[Array, "batch"] | None = None,
    deterministic: bool = True,
    return_lse: bool = False,
    implementation: str | None = None,
    interpret: bool = False,
) -> Any:
    """softmax(scale q k^T + bias) v of every head, in memory linear in length.

    Any lengths, also 0; any dims, of values another than of queries; differentiable to
    any order, forward and backward; the sums in float32 at least.

    Args:
        query: with a batch axis or without.
        key: of as many heads as the query, or fewer, each shared by a group of
            consecutive query heads.
        value: of as many heads as the key.
        bias: added to the logits, broadcast against [batch, heads, queries, keys]; an
            axis of one takes no memory.
        mask: True where a query may see a key; broadcast as the bias is.
        scale: of the products; None is dim^-1/2.
        is_causal: no query sees a key after its own position.
        causal_offset: the position of the first query among the keys, for the causal
            mask and for the window: "top_left" (0), "bottom_right" (keys - queries), a
            number, or one per sample.
        query_seq_lengths: real queries of every sample; the rest give 0.
        key_value_seq_lengths: real keys of every sample; the rest are not seen.
        segment_ids: [batch, length] of queries and keys, or a pair of them; who has not
            the same number is not seen.
        local_window_size: (left, right), how many keys before and after its position a
            query sees; None on a side is no bound, one number is both.
        logits_soft_cap: cap tanh(logits / cap) before bias and mask.
        sinks: a logit per head that takes its share of the softmax and gives nothing.
        dropout_rate: probability that a weight is zeroed; the rest is scaled up.
        dropout_key: one key, or one per sample; which weights fall depends on it, on
            sample, head and positions alone, not on how the call is computed.
        deterministic: the same bits on every run; False lets a kernel sum gradients in
            any order. `chunked` always is.
        return_lse: also return the log-sum-exp of the logits.
        implementation: a backend by name; "flash" is our kernel wherever the program
            turns out to run, and `chunked` where it has none; None chooses, see
            `explain`. A kernel has no plain forward derivative (`jax.jvp`), all others.
        interpret: run a kernel without its device.

    Returns:
        [*batch, queries, heads, value_dim] in the query's dtype, and if asked for lse,
        [*batch, queries, heads], natural logarithm, float32 or wider. Both carry
        gradient. A query that sees no key gives 0 and -inf (with a sink, its logit).

    Raises:
        ValueError: if shapes or dtypes do not fit, an option is out of range, or the
            implementation cannot take the call.

    >>> q = k = v = jnp.ones((2, 5, 4, 8))
    >>> attention(q, k[:, :, :2], v[:, :, :2], is_causal=True).shape
    (2, 5, 4, 8)
    """
    del deterministic  # every backend of this version always is
    spec, operands, context = prepare(
        query,
        key,
        value,
        bias,
        mask,
        scale=scale,
        is_causal=is_causal,
        causal_offset=causal_offset,
        query_seq_lengths=query_seq_lengths,
        key_value_seq_lengths=key_value_seq_lengths,
        segment_ids=segment_ids,
        local_window_size=local_window_size,
        logits_soft_cap=logits_soft_cap,
        dropout_rate=dropout_rate,
        dropout_key=dropout_key,
    )
    aligned = _aligned(causal_offset, query, key)
    wants_lse = return_lse or sinks is not None
    call = Call.of(spec, operands, context, aligned, wants_lse)
    out, lse = _runner(implementation, interpret, call)(spec, operands, context)
    if sinks is not None:
        out, lse = _with_sinks(out, lse, jnp.asarray(sinks))
    shape = (*query.shape[:-1], value.shape[-1])
    out, lse = out.reshape(shape), lse.reshape(shape[:-1])
    return (out, lse) if return_lse else out


@export("attention.attention_weights", since="0.1")
def attention_weights(
    query: Float[Array, "*batch queries heads dim"],
    key: Float[Array, "*batch keys kv_heads dim"],
    bias: Float[Array, "..."] | None = None,
    mask: Bool[Array, "..."] | None = None,
    **options: Any,
) -> Float[Array, "*batch heads queries keys"]:
    """The weights themselves, to be looked at: quadratic in length, by nature.

    Args:
        query: as for `attention`.
        key: as for `attention`.
        bias: as for `attention`.
        mask: as for `attention`.
        options: more of `attention`, which gives them as the mean of unit vectors.

    >>> attention_weights(jnp.ones((1, 2, 1, 4)), jnp.ones((1, 4, 1, 4))).tolist()
    [[[[0.25, 0.25, 0.25, 0.25], [0.25, 0.25, 0.25, 0.25]]]]
    """
    keys = key.shape[-3]
    units = jnp.broadcast_to(
        jnp.eye(keys, dtype=key.dtype)[:, None], (*key.shape[:-1], keys)
    )
    weights = attention(query, key, units, bias, mask, **options)
    return jnp.moveaxis(weights, -2, -3)


def _with_sinks(
    out: Float[Array, "B T N V"], lse: Float[Array, "B T N"], sinks: Float[Array, "N"]
) -> tuple[Array, Array]:
    """One more key per head, with its logit and the value 0."""
    if sinks.shape != lse.shape[2:]:
        raise ValueError(
            f"sinks must be one logit per head, {lse.shape[2:]}, got {sinks.shape}"
        )
    sinks = jnp.broadcast_to(sinks.astype(lse.dtype), lse.shape)
    share = jax.nn.sigmoid(lse - sinks)[..., None]
    return (out * share).astype(out.dtype), jnp.logaddexp(lse, sinks)


def _aligned(offset: Any, query: Any, key: Any) -> bool:
    """Whether it is known that the first query stands at the first key."""
    if offset == "bottom_right":
        return query.shape[-3] == key.shape[-3]
    return isinstance(offset, str | int) and offset in ("top_left", 0)


@export("attention.explain", since="0.1")
def explain(
    *args: Any,
    implementation: str | None = None,
    interpret: bool = False,
    platform: str = "",
    return_lse: bool = False,
    **options: Any,
) -> Plan:
    """Which backend a call of `attention` gets, and what became of the others.

    Args:
        args: as for `attention`, arrays or their types; none stands for a usual call,
            self-attention of dim 128 in bfloat16.
        implementation: as for `attention`.
        interpret: as for `attention`.
        platform: "cpu", "gpu" or "tpu"; empty, where JAX runs now.
        return_lse: as for `attention`.
        options: more of `attention`.

    Raises:
        ValueError: if no implementation takes the call.

    >>> explain(platform="cpu").implementation
    'chunked'
    """
    call = USUAL
    if args:
        options.pop("deterministic", None)
        wants_lse = return_lse or options.pop("sinks", None) is not None
        aligned = _aligned(options.get("causal_offset", 0), *args[:2])
        call = _described(args, options, aligned, wants_lse)
    return plan(platform or jax.default_backend(), implementation, interpret, call)


def _described(
    args: tuple[Any, ...], options: dict[str, Any], aligned: bool, wants_lse: bool
) -> Call:
    """The description of a call of which there may be no arrays."""
    calls: list[Call] = []

    def record(arrays: Any, given: Any) -> None:
        prepared = prepare(*arrays, **given, **fixed)
        calls.append(Call.of(*prepared, aligned, wants_lse))

    given = {name: x for name, x in options.items() if _holds_arrays(x)}
    fixed = {name: x for name, x in options.items() if name not in given}
    jax.eval_shape(record, args, given)
    return calls[0]


def _holds_arrays(x: Any) -> bool:
    return any(hasattr(leaf, "shape") for leaf in jax.tree.leaves(x))
