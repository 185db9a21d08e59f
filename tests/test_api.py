"""The public names and signatures, against the list in `tests/api.txt`.

A change of the list is a change of the interface: it belongs in CHANGELOG.md too. Rewrite
the list with

    python -m tests.test_api --write
"""

import argparse
import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, get_origin

import flax.linen as nn
import jax
import pytest
from beartype import beartype
from jaxtyping import jaxtyped

from jaxml.export import Entry, catalogue, skipped

GOLDEN = Path(__file__).with_name("api.txt")
COMMAND = "python -m tests.test_api --write"
DESCRIPTORS = property | functools.cached_property | staticmethod | classmethod
GENERATED = {"parent", "name"}  # what linen adds to the fields of every module


def describe(entry: Entry) -> list[str]:
    """The lines of one entry: itself, its aliases, and its public methods."""
    symbol = inspect.unwrap(entry.symbol)
    what = f" = {_Text(entry.symbol)!r}" if entry.is_constant else signature(symbol)
    lines = [f"{entry.name}{what}  since {entry.since}{notice(entry, entry.name)}"]
    for alias in entry.aliases:
        lines.append(f"{alias} -> {entry.name}{notice(entry, alias)}")
    # A field whose default is a function is no method; `setup` is linen's to call.
    hidden = {"setup", *getattr(symbol, "__dataclass_fields__", ())}
    for name, member in vars(symbol).items() if isinstance(symbol, type) else ():
        public = name == "__call__" or not (name.startswith("_") or name in hidden)
        if public and (inspect.isfunction(member) or isinstance(member, DESCRIPTORS)):
            lines.append(f"{entry.name}.{name}{signature(member, bound=True)}")
    return lines


def notice(entry: Entry, name: str) -> str:
    return f"  deprecated {entry.deprecated[name]}" if name in entry.deprecated else ""


def signature(symbol: Any, *, bound: bool = False) -> str:
    """Names, kinds and defaults of the parameters; types are left to the reader.

    They read differently from one version of Python and JAX to the next.
    """
    if isinstance(symbol, property | functools.cached_property):
        return ""
    if isinstance(symbol, staticmethod | classmethod):
        bound, symbol = isinstance(symbol, classmethod), symbol.__func__
    is_error = isinstance(symbol, type) and issubclass(symbol, BaseException)
    if is_error and "__init__" not in vars(symbol):
        return "(...)"  # versions of Python differ in what they tell
    found = inspect.signature(symbol)
    parameters = list(found.parameters.values())[bound:]
    if isinstance(symbol, type) and issubclass(symbol, nn.Module):
        parameters = [p for p in parameters if p.name not in GENERATED]
    plain = []
    for parameter in parameters:
        default = parameter.default
        text = default if default is parameter.empty else _Text(default)
        plain.append(parameter.replace(annotation=parameter.empty, default=text))
    return str(inspect.Signature(plain))


class _Text:
    """A default value as it is written in source, without addresses."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        value = self.value
        if get_origin(value) is not None or isinstance(value, UnionType):
            return "<type>"
        if isinstance(value, functools.partial):
            return f"partial({_Text(value.func)!r}, ...)"
        if callable(value):
            return getattr(value, "__qualname__", type(value).__qualname__)
        if isinstance(value, tuple):
            items = ", ".join(repr(_Text(item)) for item in value)
            return f"({items},)" if len(value) == 1 else f"({items})"
        if isinstance(value, set | frozenset):
            return f"{{{', '.join(sorted(map(repr, value)))}}}"
        text = repr(value)
        return f"<{type(value).__qualname__}>" if " at 0x" in text else text


def listing(entries: Iterable[Entry]) -> list[str]:
    return sorted(line for entry in entries for line in describe(entry))


def difference(golden: Iterable[str], actual: Iterable[str]) -> str:
    """What to tell whoever changed the interface, or nothing."""
    lines = difflib.unified_diff(
        list(golden), list(actual), "announced", "actual", lineterm="", n=0
    )
    changes = [line for line in lines if not line.startswith("@@")]
    if not changes:
        return ""
    return "\n".join(
        ["the public interface changed:", *changes, f"if that is meant: {COMMAND}"]
    )


def test_the_interface_is_the_announced_one():
    golden, actual = GOLDEN.read_text("utf-8").splitlines(), listing(catalogue())
    # A folder that lacks an optional package cannot be compared here.
    partly = tuple(f"{name.split('.')[1]}." for name in skipped())
    golden, actual = (
        [line for line in lines if not line.startswith(partly)]
        for lines in (golden, actual)
    )
    message = difference(golden, actual)
    assert not message, message


# The listing itself.


def entry(symbol, name="ops.f", **changes) -> Entry:
    fields = {
        "module": "jaxml.ops.f",
        "since": "0.1",
        "aliases": (),
        "deprecated": {},
        "is_constant": False,
    }
    return Entry(name=name, symbol=symbol, **{**fields, **changes})


def plain(x: int, /, y=(1,), *rest, flag: bool = True, f=nn.relu, **options) -> int: ...


class Pair(NamedTuple):
    left: int
    right: float = 0.5

    def swapped(self, times: int = 1): ...


class Module(nn.Module):
    width: int = 3
    activation: Callable = nn.relu
    norm: Callable = functools.partial(nn.LayerNorm, epsilon=1e-6)

    def __call__(self, x, *, train): ...

    def setup(self): ...

    def _hidden(self): ...


class Thing:
    def __init__(self, a, b=None): ...

    @property
    def size(self): ...

    @classmethod
    def make(cls, n): ...

    @staticmethod
    def parse(text): ...


class PlainError(ValueError):
    """Has no signature of its own."""


@pytest.mark.parametrize(
    ("symbol", "expected"),
    [
        (plain, ["(x, /, y=(1,), *rest, flag=True, f=relu, **options)  since 0.1"]),
        (functools.partial(plain, 1, flag=False), None),
        (Pair, ["(left, right=0.5)  since 0.1", ".swapped(times=1)"]),
        (
            Module,
            [
                "(width=3, activation=relu, norm=partial(LayerNorm, ...))  since 0.1",
                ".__call__(x, *, train)",
            ],
        ),
        (Thing, ["(a, b=None)  since 0.1", ".make(n)", ".parse(text)", ".size"]),
        (PlainError, ["(...)  since 0.1"]),
    ],
)
def test_lines_say_names_kinds_and_defaults(symbol, expected):
    lines = [line.removeprefix("ops.f") for line in listing([entry(symbol)])]
    if expected is None:
        expected = ["(y=(1,), *rest, flag=False, f=relu, **options)  since 0.1"]
    assert lines == expected


def test_decorators_do_not_change_the_lines():
    for decorate in (jax.jit, jax.custom_vjp, jaxtyped(typechecker=beartype)):
        assert listing([entry(decorate(plain))]) == listing([entry(plain)])


def test_lines_tell_constants_aliases_and_deprecation():
    constant = entry((0.5, {"b", "a"}), "ops.K", is_constant=True)
    old = {"ops.g": "0.3: use ops.f"}
    aliased = entry(lambda: 0, aliases=("ops.g",), deprecated=old)
    step = entry(Callable[[int], int], "ops.Step", is_constant=True)
    assert listing([aliased, constant, step]) == [
        "ops.K = (0.5, {'a', 'b'})  since 0.1",
        "ops.Step = <type>  since 0.1",
        "ops.f()  since 0.1",
        "ops.g -> ops.f  deprecated 0.3: use ops.f",
    ]


def test_defaults_have_no_addresses():
    missing = object()
    (line,) = listing([entry(lambda x=missing, y=(print, 1), z=(missing,): 0)])
    assert line == "ops.f(x=<object>, y=(print, 1), z=(<object>,))  since 0.1"


def test_a_change_is_told_with_the_command():
    before = ["ops.f(x)  since 0.1", "ops.g(x)  since 0.1"]
    after = ["ops.f(x, y)  since 0.1", "ops.g(x)  since 0.1"]
    message = difference(before, after).splitlines()
    assert message[-1] == f"if that is meant: {COMMAND}"
    assert "-ops.f(x)  since 0.1" in message
    assert "+ops.f(x, y)  since 0.1" in message
    assert not [line for line in message if "ops.g" in line]
    assert difference(after, after) == ""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.test_api")
    parser.add_argument("--write", action="store_true", help=f"rewrite {GOLDEN.name}")
    text = "\n".join(listing(catalogue())) + "\n"
    if parser.parse_args().write:
        GOLDEN.write_text(text, "utf-8")
    else:
        print(text, end="")
