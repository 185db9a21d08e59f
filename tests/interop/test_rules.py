"""Rules: there and back is nothing, and a report names whatever does not fit."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxml.interop.rules import (
    CONV,
    DENSE,
    SAME,
    Conversion,
    ConversionError,
    Rule,
    convert,
    export_state,
    joined,
    leading,
    patches,
)

QKV = ("b.{i}.q.weight", "b.{i}.k.weight", "b.{i}.v.weight")
CONVERSION = Conversion(
    (
        Rule("params/blocks_{i}/qkv/kernel", QKV, joined(DENSE, 3)),
        Rule("params/blocks_{i}/qkv/kernel", ("b.{i}.qkv.weight",), DENSE),
        Rule("params/blocks_{i}/norm/scale", ("b.{i}.norm.weight",)),
        Rule("params/class", ("net.token",), leading(2)),
        Rule("params/head/kernel", ("head.weight",), DENSE),
        Rule("params/head/bias", ("head.bias",)),
    ),
    prefixes=("module.", "net."),
    ignored=(r".*\.num_batches_tracked", "pooler"),
)


def variables(rng, classes=3, dtype=np.float32):
    draw = lambda *shape: rng.normal(size=shape).astype(dtype)
    block = lambda: {"qkv": {"kernel": draw(4, 12)}, "norm": {"scale": draw(4)}}
    head = {"kernel": draw(4, classes), "bias": draw(classes)}
    blocks = {"blocks_0": block(), "blocks_11": block()}
    return {"params": {**blocks, "class": draw(4), "head": head}}


@pytest.mark.parametrize(
    "layout, theirs, ours",
    [
        (SAME, [(3, 5)], (3, 5)),
        (DENSE, [(3, 5)], (5, 3)),
        (CONV, [(2, 3, 4, 5)], (4, 5, 3, 2)),
        (leading(2), [(1, 1, 5)], (5,)),
        (leading(1), [(1, 4, 5)], (4, 5)),
        (patches(2), [(7, 3, 2, 2)], (12, 7)),
        (joined(DENSE, 3), [(4, 6)] * 3, (6, 12)),
        (joined(SAME, 2), [(4,)] * 2, (8,)),
    ],
)
def test_layouts_are_inverses(layout, theirs, ours, rng):
    tensors = tuple(rng.normal(size=shape) for shape in theirs)
    x = layout.to_ours(tensors)
    assert x.shape == ours
    chex.assert_trees_all_equal(layout.to_theirs(x), tensors)
    y = rng.normal(size=ours)
    np.testing.assert_array_equal(layout.to_ours(layout.to_theirs(y)), y)


def test_layouts_mean_what_they_say(rng):
    """Against loops: the convolution that the flat patches stand for, and q, k, v."""
    kernel, image = rng.normal(size=(5, 3, 2, 2)), rng.normal(size=(2, 2, 3))
    expected = [
        sum(kernel[o, c, y, x] * image[y, x, c] for c, y, x in np.ndindex(3, 2, 2))
        for o in range(5)
    ]
    flat = patches(2).to_ours((kernel,))
    np.testing.assert_allclose(image.ravel() @ flat, expected)
    convolved = np.einsum("yxc,yxco->o", image, CONV.to_ours((kernel,)))
    np.testing.assert_allclose(convolved, expected)
    three, x = tuple(rng.normal(size=(3, 4, 6))), rng.normal(size=6)
    parts = np.split(x @ joined(DENSE, 3).to_ours(three), 3)
    np.testing.assert_allclose(parts, [w @ x for w in three])


def test_there_and_back(rng):
    ours = variables(rng)
    state = export_state(ours, CONVERSION)
    assert set(state) == {
        *(f"b.{i}.{m}.weight" for i in (0, 11) for m in ("q", "k", "v", "norm")),
        *("net.token", "head.weight", "head.bias"),
    }
    again, report = convert(state, CONVERSION, ours)
    chex.assert_trees_all_equal(again, jax.tree.map(jnp.asarray, ours))
    assert report.exact
    assert not report.converted
    names = ("b.11.q.weight", "b.11.k.weight", "b.11.v.weight")
    assert report.matched["params/blocks_11/qkv/kernel"] == names
    assert str(report) == "7 of 7 arrays loaded"


def test_other_names_and_prefixes(rng):
    ours = variables(rng)
    state = export_state(ours, CONVERSION)
    for i in (0, 11):
        three = [state.pop(f"b.{i}.{m}.weight") for m in "qkv"]
        state[f"b.{i}.qkv.weight"] = np.concatenate(three)
    state = {f"module.{name}": x for name, x in state.items()}
    state["module.net.pooler"] = state["bn.num_batches_tracked"] = np.zeros(())
    again, report = convert(state, CONVERSION, ours)
    chex.assert_trees_all_equal(again, jax.tree.map(jnp.asarray, ours))
    assert report.ignored == ("bn.num_batches_tracked", "module.net.pooler")
    assert "without a counterpart here (2)" in str(report)
    with pytest.raises(ConversionError, match=r"got module\.head\.bias and head\.bias"):
        convert(state | {"head.bias": np.zeros(3)}, CONVERSION, ours)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"b.0.q.weight": None},
            r"missing.*\n.*blocks_0/qkv/kernel: .*b\.0\.q\.weight",
        ),
        ({"b.0.q.weight": (4, 5)}, r"b\.0\.q\.weight is \(4, 5\), must be \(4, 4\)"),
        ({"head.weight": (4, 3)}, r"head\.weight is \(4, 3\), must be \(3, 4\)"),
        ({"net.token": (2, 2, 4)}, r"\(2, 2, 4\), must be \(1, 1, 4\)"),
        ({"other": (1,)}, r"unexpected \(1\):\n    other"),
    ],
)
def test_what_does_not_fit_is_named(change, message, rng):
    state = export_state(variables(rng), CONVERSION)
    for name, shape in change.items():
        state.pop(name, None)
        if shape:
            state[name] = np.zeros(shape, np.float32)
    with pytest.raises(ConversionError, match=message):
        convert(state, CONVERSION, variables(rng))


def test_integers_are_no_weights(rng):
    state = export_state(variables(rng), CONVERSION)
    state["head.bias"] = np.zeros(3, np.int64)
    with pytest.raises(ConversionError, match="int64, must be floating-point"):
        convert(state, CONVERSION, variables(rng))


@pytest.mark.parametrize("given", [5, None])
def test_a_new_head_starts_at_zero(given, rng):
    ours = variables(rng, classes=3)
    state = export_state(variables(rng, classes=given or 3), CONVERSION)
    if given is None:
        state = {n: x for n, x in state.items() if not n.startswith("head")}
    with pytest.raises(ConversionError, match="params/head/kernel"):
        convert(state, CONVERSION, ours)
    new, report = convert(state, CONVERSION, ours, fresh=("params/head",))
    assert not np.any(new["params"]["head"]["kernel"])
    assert np.all(new["params"]["class"] != 0)
    lists = report.missing if given is None else report.mismatched
    assert set(lists) == {"params/head/kernel", "params/head/bias"}
    assert not report.exact
    state.pop("net.token")  # nothing else may be new
    with pytest.raises(ConversionError, match="params/class"):
        convert(state, CONVERSION, ours, fresh=("params/head",))


def test_a_head_can_be_left_out(rng):
    ours = variables(rng)
    state = export_state(ours, CONVERSION)
    del ours["params"]["head"]
    with pytest.raises(ConversionError, match=r"unexpected \(2\)"):
        convert(state, CONVERSION, ours)
    _, report = convert(state, CONVERSION, ours, fresh=("params/head",))
    assert report.unexpected == ("head.bias", "head.weight")
    state["other"] = np.zeros(1, np.float32)
    with pytest.raises(ConversionError, match="other"):
        convert(state, CONVERSION, ours, fresh=("params/head",))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.float64])
def test_dtypes_are_converted_and_told(dtype, rng):
    ours = variables(rng, dtype=dtype)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), ours)
    new, report = convert(export_state(ours, CONVERSION), CONVERSION, like)
    chex.assert_trees_all_equal_dtypes(new, like)
    chex.assert_trees_all_equal(new, jax.tree.map(lambda x: jnp.float32(x), ours))
    assert report.converted["params/class"] == f"{np.dtype(dtype)} to float32"


def test_memory_is_not_shared():
    like = {"params": {"blocks_0": {"norm": {"scale": np.zeros(64, np.float32)}}}}
    state = {"b.0.norm.weight": np.ones(64, np.float32)}
    new, _ = convert(state, CONVERSION, like)
    state["b.0.norm.weight"][:] = 2
    assert np.all(new["params"]["blocks_0"]["norm"]["scale"] == 1)


def test_a_leaf_without_a_rule(rng):
    ours = {"params": {"surprise": np.zeros(3, np.float32)}}
    with pytest.raises(ConversionError, match="no rule tells where params/surprise"):
        convert({}, CONVERSION, ours)
    with pytest.raises(ConversionError, match="no rule tells where params/surprise"):
        export_state(ours, CONVERSION)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=4, unique=True))
def test_numbers_are_the_same_on_both_sides(numbers):
    ours = {
        "params": {f"blocks_{i}": {"norm": {"scale": np.float32([i])}} for i in numbers}
    }
    state = export_state(ours, CONVERSION)
    assert {n: x.tolist() for n, x in state.items()} == {
        f"b.{i}.norm.weight": [i] for i in numbers
    }
    chex.assert_trees_all_equal(convert(state, CONVERSION, ours)[0], ours)
