"""Universal Binary JSON, draft 12: as much of it as XGBoost writes, and a little more.

`loads` makes objects of dicts, arrays of lists and typed arrays of NumPy arrays; `dumps`
is its inverse. All numbers are big-endian.

The trap is trust: lengths come from the file. Nothing is allocated before its bytes have
been seen, and nesting is bounded.

Reference: Kalinowski, "Universal Binary JSON Specification, Draft 12", 2018,
https://ubjson.org.
"""

import struct
from typing import Any

import numpy as np

from jaxml.export import export

MAX_DEPTH = 64
TYPES: dict[bytes, np.dtype[Any]] = {
    b"i": np.dtype(">i1"),
    b"U": np.dtype(">u1"),
    b"I": np.dtype(">i2"),
    b"l": np.dtype(">i4"),
    b"L": np.dtype(">i8"),
    b"d": np.dtype(">f4"),
    b"D": np.dtype(">f8"),
}
MARKS = {dtype.newbyteorder("="): mark for mark, dtype in TYPES.items()}
CONSTANTS = {b"Z": None, b"T": True, b"F": False}


@export("trees.ubjson.loads", since="0.1")
def loads(data: bytes) -> Any:
    """The value in `data`.

    Raises:
        ValueError: if it is not one whole value of the format.

    >>> loads(dumps({"a": [1, "b", None]}))
    {'a': [1, 'b', None]}
    """
    reader = _Reader(bytes(data))
    value = reader.value(reader.take(1), 0)
    if reader.at != len(reader.data):
        raise ValueError(
            f"UBJSON must end with its value, got {len(reader.data) - reader.at} bytes more"
        )
    return value


@export("trees.ubjson.dumps", since="0.1")
def dumps(value: Any) -> bytes:
    """Dicts, lists, strings, numbers, booleans, None and NumPy vectors as bytes.

    Raises:
        TypeError: for anything else.
    """
    out = bytearray()
    _write(value, out)
    return bytes(out)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        if count < 0 or count > len(self.data) - self.at:
            raise ValueError(
                f"UBJSON must hold {count} bytes at {self.at}, got "
                f"{len(self.data) - self.at}"
            )
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, mark: bytes) -> int | float:
        dtype = TYPES[mark]
        return np.frombuffer(self.take(dtype.itemsize), dtype)[0].item()

    def length(self) -> int:
        mark = self.take(1)
        if mark not in TYPES or mark in b"dD":
            raise ValueError(f"UBJSON must have an integer length, got marker {mark!r}")
        count = self.number(mark)
        if count < 0:
            raise ValueError(f"UBJSON lengths must not be negative, got {count}")
        return int(count)

    def text(self) -> str:
        try:
            return self.take(self.length()).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"UBJSON text must be UTF-8: {error}") from None

    def value(self, mark: bytes, depth: int) -> Any:
        while mark == b"N":
            mark = self.take(1)
        if mark in TYPES:
            return self.number(mark)
        if mark in CONSTANTS:
            return CONSTANTS[mark]
        if mark == b"S":
            return self.text()
        if mark == b"C":
            return self.take(1).decode("ascii")
        if mark == b"H":
            return float(self.text())
        if depth >= MAX_DEPTH:
            raise ValueError(f"UBJSON must not nest deeper than {MAX_DEPTH}")
        if mark == b"[":
            return self.array(depth + 1)
        if mark == b"{":
            return self.object(depth + 1)
        raise ValueError(f"UBJSON has no marker {mark!r} (at byte {self.at - 1})")

    def header(self) -> tuple[bytes | None, int | None]:
        """The type and the count that may stand at the head of a container."""
        kind = count = None
        if self.data[self.at : self.at + 1] == b"$":
            self.take(1)
            kind = self.take(1)
        if self.data[self.at : self.at + 1] == b"#":
            self.take(1)
            count = self.length()
        elif kind is not None:
            raise ValueError("UBJSON containers with a type must have a count")
        return kind, count

    def array(self, depth: int) -> Any:
        kind, count = self.header()
        if kind in TYPES and count is not None:
            raw = self.take(count * TYPES[kind].itemsize)
            array = np.frombuffer(raw, TYPES[kind])
            return array.astype(array.dtype.newbyteorder("="))
        if count is not None:
            if kind in CONSTANTS:
                raise ValueError("UBJSON cannot hold a constant many times in no byte")
            return [self.value(kind or self.take(1), depth) for _ in range(count)]
        items = []
        while (mark := self.take(1)) != b"]":
            items.append(self.value(mark, depth))
        return items

    def object(self, depth: int) -> dict[str, Any]:
        kind, count = self.header()
        found: dict[str, Any] = {}
        while count is None or len(found) < count:
            if count is None and self.data[self.at : self.at + 1] == b"}":
                self.take(1)
                break
            name = self.text()
            if name in found:
                raise ValueError(f"UBJSON keys must be different, got {name!r} twice")
            found[name] = self.value(kind or self.take(1), depth)
        return found


def _write(value: Any, out: bytearray) -> None:
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype in MARKS:
        mark = MARKS[value.dtype]
        out += b"[$" + mark + b"#" + _length(len(value))
        out += value.astype(TYPES[mark]).tobytes()
    elif value is None or isinstance(value, bool):
        out += {None: b"Z", True: b"T", False: b"F"}[value]
    elif isinstance(value, int):
        mark = b"l" if -(2**31) <= value < 2**31 else b"L"
        out += mark + value.to_bytes(TYPES[mark].itemsize, "big", signed=True)
    elif isinstance(value, float):
        out += b"d" + struct.pack(">f", value)
    elif isinstance(value, str):
        out += b"S" + _text(value)
    elif isinstance(value, list):
        out += b"[#" + _length(len(value))
        for item in value:
            _write(item, out)
    elif isinstance(value, dict):
        out += b"{"
        for name, item in value.items():
            out += _text(name)
            _write(item, out)
        out += b"}"
    else:
        raise TypeError(f"UBJSON cannot hold a {type(value).__name__}")


def _text(text: str) -> bytes:
    raw = text.encode("utf-8")
    return _length(len(raw)) + raw


def _length(count: int) -> bytes:
    return b"L" + count.to_bytes(8, "big")
