"""UBJSON there and back, and files that lie."""

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxml.trees.ubjson import dumps, loads

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(width=32, allow_nan=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(VALUES)
@settings(max_examples=100, deadline=None)
def test_values_come_back(value):
    assert loads(dumps(value)) == value


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "i4", "i8", "f4", "f8"])
def test_vectors_come_back_with_their_type(dtype):
    vector = np.arange(5).astype(dtype)
    back = loads(dumps({"v": vector}))["v"]
    assert back.dtype == vector.dtype
    assert (back == vector).all()


def test_the_bytes_are_the_format():
    assert dumps({"a": [True, "x"]}) == (
        b"{L" + bytes(7) + b"\x01a[#L" + bytes(7) + b"\x02TSL" + bytes(7) + b"\x01x}"
    )
    assert (
        dumps(np.array([1.5], np.float32)) == b"[$d#L" + bytes(7) + b"\x01?\xc0\x00\x00"
    )


def test_integers_are_short_where_they_can_be():
    for value, data in ((-(2**31), b"l\x80\0\0\0"), (2**31 - 1, b"l\x7f\xff\xff\xff")):
        assert dumps(value) == data
    for value in (-(2**31) - 1, 2**31):
        assert dumps(value) == b"L" + value.to_bytes(8, "big", signed=True)


def test_what_others_write_is_read():
    assert loads(b"{i\x01aI\x01\x00i\x01bD?\xf8\0\0\0\0\0\0}") == {"a": 256, "b": 1.5}
    assert loads(b"[NNZTFCxHi\x031.5]") == [None, True, False, "x", 1.5]
    assert loads(b"{#i\x01i\x01kU\xff") == {"k": 255}
    assert loads(b"{$U#i\x01i\x01k\x07") == {"k": 7}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "must hold 1 bytes"),
        (b"?", "no marker"),
        (b"i", "must hold 1 bytes"),
        (b"Si\x05abc", "must hold 5 bytes"),
        (b"Si\xffabc", "must not be negative"),
        (b"Sd\0\0\0\0", "integer length"),
        (b"Si\x01\xff", "UTF-8"),
        (b"[$d#L\x7f" + b"\xff" * 7, "must hold"),
        (b"[#L\x7f" + b"\xff" * 7, "must hold"),
        (b"{#L\x7f" + b"\xff" * 7, "must hold"),
        (b"[$Z#L\0\0\0\0\x7f\0\0\0", "cannot hold"),
        (b"[[$T#i\x01]", "cannot hold"),
        (b"C\xff", "ascii"),
        (b"[$d]", "must have a count"),
        (b"[" * 65 + b"]" * 65, "deeper"),
        (b"{i\x01aTi\x01aT}", "twice"),
        (b"TT", "1 bytes more"),
    ],
)
def test_files_that_lie_are_told(data, message):
    with pytest.raises(ValueError, match=message):
        loads(data)


@given(st.binary(max_size=60))
@settings(max_examples=300, deadline=None)
def test_noise_never_does_worse(data):
    with contextlib.suppress(ValueError):
        loads(data)


@given(st.integers(0, 200), st.integers(0, 255))
@settings(max_examples=100, deadline=None)
def test_neither_does_a_changed_byte(at, byte):
    data = bytearray(dumps({"a": np.arange(4.0), "b": [1, {"c": "text"}]}))
    data[at % len(data)] = byte
    with contextlib.suppress(ValueError):
        loads(bytes(data))


def test_what_is_nested_as_deep_as_may_be_is_read():
    assert loads(b"[" * 64 + b"]" * 64)


@pytest.mark.parametrize(("value", "name"), [(1j, "complex"), (np.eye(2), "ndarray")])
def test_other_values_are_refused(value, name):
    with pytest.raises(TypeError, match=name):
        dumps([value])
