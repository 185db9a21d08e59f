"""The rule of each primitive: what is seen is what a NaN spoils."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxml.ops.field_rules import ELEMENTWISE, RULES, follow

SHAPE = (6, 4)
BOTH = (0, 1)
LIST = np.array([2, 0, 5, 5])
KERNEL = np.arange(1.0, 7).reshape(3, 2, 1, 1).astype(np.float32)


def convolved(x):
    numbers = ("NHWC", "HWIO", "NHWC")
    x = x[None, :, :, None]
    options = {"lhs_dilation": (2, 1), "rhs_dilation": (1, 2)}
    return lax.conv_general_dilated(
        x, KERNEL, (1, 2), [(1, 0), (2, 1)], dimension_numbers=numbers, **options
    )[0, :, :, 0]


def pooled(x):
    options = {"window_dilation": (1, 2), "base_dilation": (2, 1)}
    return lax.reduce_window(
        x, 0.0, lax.add, (3, 2), (2, 1), [(1, 1), (0, 2)], **options
    )


def listed_in_front(x):
    numbers = lax.GatherDimensionNumbers(
        offset_dims=(1,), collapsed_slice_dims=(1,), start_index_map=(1,)
    )
    return lax.gather(x, LIST[:, None] % 4, numbers, (6, 1))


# primitive -> (a function of [6, 4], the axes that it sees as a whole)
CASES = {
    "conv_general_dilated": (convolved, ()),
    "reduce_window_sum": (pooled, ()),
    "pad": (lambda x: lax.pad(x, 0.0, [(2, -1, 1), (-1, 3, 0)]), ()),
    "slice": (lambda x: lax.slice(x, (1, 0), (6, 3), (2, 1)), ()),
    "transpose": (lambda x: x.T, ()),
    "broadcast_in_dim": (lambda x: jnp.broadcast_to(x[None], (3, *SHAPE)), ()),
    "squeeze": (lambda x: x[:1].squeeze(0), (0,)),
    "dot_general": (lambda x: jnp.eye(3, 6) @ x + 1 / (1 + x[:3]), (0,)),
    "concatenate": (lambda x: jnp.concatenate([x[:2], x]), (0,)),
    "reshape, cut": (lambda x: x.reshape(3, 2, 4).sum(1), ()),
    "reshape, joined": (lambda x: x.repeat(3, 0), ()),
    "reshape, mixed": (lambda x: x.reshape(-1), (0, 1)),
    "gather": (lambda x: x[LIST], ()),
    "gather, computed": (lambda x: x[:, jnp.arange(7) * 4 // 7], ()),
    "gather, in front": (listed_in_front, ()),
    "gather, negative": (lambda x: x[:, jnp.array([-1, -2])], ()),
    "reduce_sum": (lambda x: x.sum(1), (1,)),
    "elementwise": (lambda x: jax.nn.gelu(x) * x + 2, ()),
    "branches": (lambda x: x[1:] * x[:-1], ()),
}


def spoiled(function):
    """[6, 4, ...]: which outputs a NaN at each input reaches."""
    x = np.random.default_rng(0).uniform(1, 2, SHAPE).astype(np.float32)
    marks = np.where(np.eye(x.size).reshape(-1, *SHAPE) == 1, np.nan, x).astype(x.dtype)
    out = np.asarray(jax.jit(jax.vmap(function))(marks))
    return np.isnan(out).reshape(*SHAPE, *out.shape[1:])


@pytest.mark.parametrize("name", CASES)
def test_what_a_nan_spoils_has_seen_it(name):
    function, whole = CASES[name]
    with jax.numpy_rank_promotion("allow"):
        (seen,) = follow(
            jax.make_jaxpr(function)(np.ones(SHAPE, np.float32)), 0, BOTH, 2
        )
        hits = spoiled(function)
    assert seen.whole == set(whole)
    views = {end: view for end, view in enumerate(seen.axes) if view is not None}
    assert {view.axis for view in views.values()} | seen.whole == {*BOTH}
    for end, view in views.items():
        if view.axis in seen.whole:
            continue
        others = tuple(i for i in range(hits.ndim) if i not in (view.axis, 2 + end))
        pairs = hits.any(others)  # [inputs, outputs] of the two axes
        for index, column in enumerate(pairs.T):
            hit = np.flatnonzero(column)
            first, last = view.interval(index) or (1, 0)
            if first < 0 or last >= len(column):  # padding: some taps are not there
                assert all(first <= i <= last for i in hit)
            else:
                assert (
                    hit[[0, -1][: len(hit)]].tolist()
                    == [first, last][: last - first + 1]
                )


def test_every_rule_has_a_case():
    assert set(RULES) <= {name.partition(",")[0] for name in CASES}
    assert not set(RULES) & ELEMENTWISE


def refused(function):
    x = jnp.ones(SHAPE)
    with jax.numpy_rank_promotion("allow"):
        return follow(jax.make_jaxpr(function)(x), 0, BOTH, 2)


def test_what_no_rule_follows_is_refused_by_name():
    with pytest.raises(NotImplementedError, match="through 'cumsum'"):
        refused(lambda x: jnp.cumsum(x, 0))
    with pytest.raises(NotImplementedError, match="known at run time alone"):
        refused(lambda x: x[jnp.argsort(jnp.sin(jnp.arange(6.0)))])
    with pytest.raises(NotImplementedError, match="single entries of one axis"):
        refused(lambda x: x[LIST[:, None] % 4, LIST % 4])
    with pytest.raises(NotImplementedError, match="more than one operand"):
        refused(lambda x: x[jnp.argmax(x, 0)])


def test_what_sees_no_place_sees_the_same_behind_anything():
    (seen,) = refused(lambda x: jnp.sort(jnp.full(3, x.sum())))
    assert seen.axes == (None,)
    assert seen.whole == {*BOTH}
