"""Public names: what `@export("ssl.simclr", since="0.1")` records, and how to list it.

A name belongs to one symbol and to no other. It is kept on the symbol under its
decorators (`jax.jit`, `jax.custom_vjp`, `functools.wraps` all leave the way down
open), together with the symbol it was given to, so that neither a subclass, which
inherits attributes, nor a wrapper, which copies them, can pass for the original.

The trap is import order: a name exists once its module has been imported. `lookup`
and `catalogue` import what they need; `exported_name` does not have to. This module
imports nothing but the standard library, so that `import jaxml` stays light.
"""

import ast
import functools
import importlib
import inspect
import pkgutil
import re
import sys
import warnings
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from itertools import pairwise
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple, TypeVar

_T = TypeVar("_T")
_PACKAGE = __name__.partition(".")[0]
_TAG = "_jaxml_entry"
_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*\.[A-Za-z][A-Za-z0-9_]*")
_VERSION = re.compile(r"\d+(\.\d+)+")
_NOTICE = re.compile(r"\d+(\.\d+)+: \S.*")
_REFERENCE = re.compile(r"^[ \t]*References?:\s*(.+?)(?:\n\s*\n|\Z)", re.M | re.S)
_LINK = r"https?://(?:[^\s()<>\"”]|\([^\s()]*\))+"
_PAPER = re.compile(rf'["“]([^"“”]+)["”][^"“”]*?({_LINK})')


class ExportError(ValueError):
    """A public name could not be given."""


class InvalidNameError(ExportError):
    """The name is malformed, or names another folder than the symbol's."""


class NameCollisionError(ExportError):
    """The name belongs to another symbol."""


class SymbolAlreadyExportedError(ExportError):
    """The symbol has another canonical name."""


class Paper(NamedTuple):
    """Where an algorithm was published."""

    title: str
    url: str


@dataclass(frozen=True, eq=False)
class Entry:
    """One public name of the library.

    Attributes:
        name: the canonical name, such as `ssl.simclr`.
        symbol: what the name stands for, with all its decorators.
        module: where the symbol lives, such as `jaxml.ssl.simclr`.
        since: the version of jaxml that brought the name.
        aliases: other names of the same symbol.
        deprecated: name -> "version: what to use instead".
        is_constant: True for a value that cannot carry its name itself.
    """

    name: str
    symbol: Any
    module: str
    since: str
    aliases: tuple[str, ...]
    deprecated: Mapping[str, str]
    is_constant: bool

    @property
    def family(self) -> str:
        """The top folder: the first part of the name."""
        return self.name.partition(".")[0]

    @property
    def docstring(self) -> str:
        """The symbol's own docstring; for a constant the string under its assignment.

        Empty where there is none: an inherited or generated one describes nothing.
        """
        bare = _bare(self.symbol)
        if self.is_constant:
            return _constant_docstring(sys.modules[self.module], self.name)
        if isinstance(bare, functools.partial):  # its class has a docstring too
            doc = vars(bare).get("__doc__") or bare.func.__doc__
        else:
            doc = bare.__doc__
        generated = f"{getattr(bare, '__name__', '')}("
        return inspect.cleandoc(doc) if doc and not doc.startswith(generated) else ""

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        return self.docstring.partition("\n")[0].strip()

    @property
    def paper(self) -> Paper | None:
        """The first paper under `Reference:`, in the docstring or else the module's."""
        module = sys.modules[self.module].__doc__ or ""
        return parse_paper(self.docstring) or parse_paper(module)

    @property
    def is_method(self) -> bool:
        """Whether the symbol is annotated to return a `jaxml.method.Method`."""
        bare = _bare(self.symbol)
        if self.is_constant or isinstance(bare, type) or not callable(bare):
            return False
        returned = inspect.signature(bare).return_annotation
        if isinstance(returned, str):
            return returned.rpartition(".")[2] == "Method"
        return returned is getattr(sys.modules.get("jaxml.method"), "Method", None)


_entries: dict[str, Entry] = {}  # by every name, aliases included
_skipped: dict[str, str] = {}


@dataclass(frozen=True)
class export:  # noqa: N801  (it is read as a decorator)
    """Gives a function, a class or a callable object its public name.

    The name's first part is the top folder of the module in which the symbol lives;
    the symbol comes back unchanged.

    Args:
        name: the canonical name, `<folder>.<symbol>`.
        since: the version of jaxml that brings the name.
        aliases: other names under which `lookup` finds the symbol.
        deprecated: "version: what to use instead" for all names of the symbol, or one
            such notice per name; `lookup` under that name then warns.

    Raises:
        InvalidNameError: if a name is malformed or in the wrong folder.
        NameCollisionError: if a name belongs to another symbol.
        SymbolAlreadyExportedError: if the symbol has another canonical name.

    A folder that exports much can fix the version once:

        export = functools.partial(jaxml.export.export, since="0.2")
    """

    name: str
    _: KW_ONLY
    since: str
    aliases: tuple[str, ...] = ()
    deprecated: str | Mapping[str, str] | None = None

    def __call__(self, symbol: _T) -> _T:
        bare = _bare(symbol)
        if not hasattr(bare, "__dict__"):
            raise ExportError(
                f"a symbol must be able to carry its name, got {type(bare).__name__} "
                f"for {self.name!r}; use export_constant"
            )
        owned = _own_entry(symbol)
        if owned is not None and owned.name != self.name:
            raise SymbolAlreadyExportedError(
                f"a symbol must have one canonical name, got {self.name!r} for the "
                f"symbol of {owned.name!r}; pass the second name in `aliases`"
            )
        # A partial's class lives in functools; the object lives where it is exported.
        is_partial = isinstance(bare, functools.partial)
        module = _calling_module() if is_partial else bare.__module__
        entry = self._entry(symbol, module, is_constant=False)
        _register(entry)
        setattr(bare, _TAG, entry)
        return symbol

    def _entry(self, symbol: Any, module: str, *, is_constant: bool) -> Entry:
        """The checked record of `symbol`, not yet registered."""
        names = (self.name, *self.aliases)
        for name in names:
            _check_name(name, module)
        if not _VERSION.fullmatch(self.since):
            raise ExportError(f"since must be a version, got {self.since!r}")
        notices = self.deprecated or {}
        if isinstance(notices, str):
            notices = dict.fromkeys(names, notices)
        for name, notice in notices.items():
            if name not in names or not _NOTICE.fullmatch(notice):
                raise ExportError(
                    f'deprecated must say "version: what to use" of one of '
                    f"{', '.join(names)}, got {notice!r} of {name!r}"
                )
        aliases, deprecated = tuple(self.aliases), MappingProxyType(dict(notices))
        return Entry(
            self.name, symbol, module, self.since, aliases, deprecated, is_constant
        )


def export_constant(
    name: str,
    value: Any = ...,
    *,
    module: str | None = None,
    since: str,
    aliases: tuple[str, ...] = (),
    deprecated: str | Mapping[str, str] | None = None,
) -> Any:
    """Gives a constant its public name, and returns the constant.

    A float or a tuple cannot carry its name, and equal constants may be one object:
    `exported_name` does not know them, `lookup` and `catalogue` do.

    Args:
        name: the canonical name, `<folder>.<CONSTANT>`.
        value: the constant; without it, what `module` has under the name's last part.
        module: where the constant lives; without it, the module that calls.
        since, aliases, deprecated: as for `export`.

    Raises:
        ExportError: as for `export`, or if there is neither a value nor an attribute.

        IMAGENET_MEAN = export_constant("ops.IMAGENET_MEAN", (0.485, ...), since="0.1")
    """
    module = module or _calling_module()
    if value is ...:
        attribute = name.rpartition(".")[2]
        value = getattr(sys.modules.get(module), attribute, ...)
        if value is ...:
            raise ExportError(f"{module} must have the constant {attribute!r} already")
    decorator = export(name, since=since, aliases=aliases, deprecated=deprecated)
    _register(decorator._entry(value, module, is_constant=True))
    return value


def exported_name(symbol: Any) -> str | None:
    """The canonical name of a symbol, or None; decorators around it do not matter.

    A subclass, an instance or a `functools.partial` of an exported symbol is another
    symbol, and has no name of its own.
    """
    return getattr(_own_entry(symbol), "name", None)


def lookup(name: str) -> Any:
    """The symbol of a public name or alias; imports its folder if need be.

    Warns with `DeprecationWarning` if the name is deprecated.

    Raises:
        LookupError: if no symbol has the name.
    """
    if name not in _entries:
        _import_all(f"{_PACKAGE}.{name.partition('.')[0]}")
    if name not in _entries:
        from difflib import get_close_matches

        near = get_close_matches(name, _entries, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise LookupError(f"no public name {name!r} in {_PACKAGE}{hint}")
    entry = _entries[name]
    if name in entry.deprecated:
        version, _, instead = entry.deprecated[name].partition(": ")
        warnings.warn(
            f"{name} is deprecated since {_PACKAGE} {version}: {instead}",
            DeprecationWarning,
            stacklevel=2,
        )
    return entry.symbol


def catalogue() -> tuple[Entry, ...]:
    """Every public name of the library, sorted; imports all of its modules.

    A module that needs a package which is not installed is left out, and `skipped`
    says so; any other error in a module is raised.
    """
    _import_all(_PACKAGE)
    return tuple(sorted(set(_entries.values()), key=lambda entry: entry.name))


def skipped() -> Mapping[str, str]:
    """The modules that could not be imported so far, and the reason of each."""
    return MappingProxyType(_skipped)


def parse_paper(docstring: str) -> Paper | None:
    """The first title of the `Reference:` paragraph that a link follows, or None.

    >>> text = 'Reference: Chen et al., "A Simple Framework", https://arxiv.org/abs/1'
    >>> parse_paper(text)
    Paper(title='A Simple Framework', url='https://arxiv.org/abs/1')
    """
    reference = _REFERENCE.search(inspect.cleandoc(docstring))
    text = " ".join(reference[1].split()) if reference else ""
    paper = _PAPER.search(text)
    return paper and Paper(paper[1].strip(" ,."), paper[2].rstrip(".,;:'"))


def _bare(symbol: Any) -> Any:
    """The symbol under its decorators. A partial is a symbol, not a decorator."""
    return inspect.unwrap(symbol, stop=lambda s: isinstance(s, functools.partial))


def _own_entry(symbol: Any) -> Entry | None:
    bare = _bare(symbol)
    entry = getattr(bare, "__dict__", {}).get(_TAG)
    # `functools.update_wrapper` copies the tag: ask whose it is.
    return entry if entry is not None and _bare(entry.symbol) is bare else None


def _calling_module() -> str:
    """The module of the library that is being executed, through any wrapper."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name.startswith(f"{_PACKAGE}.") and name != __name__:
            return name
        frame = frame.f_back  # type: ignore[assignment]
    return "__main__"


def _check_name(name: str, module: str) -> None:
    if not _NAME.fullmatch(name):
        raise InvalidNameError(
            f"a public name must be <lowercase folder>.<identifier>, got {name!r}"
        )
    package, _, rest = module.partition(".")
    folder = rest.partition(".")[0]
    if package != _PACKAGE or name.partition(".")[0] != folder:
        raise InvalidNameError(
            f"the first part of a public name must be the folder of its symbol in "
            f"{_PACKAGE}, got {name!r} for a symbol of {module}"
        )


def _identity(entry: Entry) -> tuple[Any, ...]:
    """What stays the same when a module is reloaded."""
    bare = _bare(entry.symbol)
    if entry.is_constant:
        return entry.module, "constant", entry.name
    if isinstance(bare, functools.partial):
        bare = bare.func
        name = getattr(bare, "__qualname__", repr(bare))
        return entry.module, "partial", bare.__module__, name
    return entry.module, getattr(bare, "__qualname__", type(bare).__qualname__)


def _register(entry: Entry) -> None:
    names = (entry.name, *entry.aliases)
    for name in names:
        other = _entries.get(name)
        if other is not None and _identity(other) != _identity(entry):
            raise NameCollisionError(
                f"a public name must belong to one symbol, got {name!r} for a symbol "
                f"of {entry.module} and for {other.name!r} of {other.module}"
            )
    previous = _entries.get(entry.name)
    for name in (previous.name, *previous.aliases) if previous else ():
        del _entries[name]
    _entries.update(dict.fromkeys(names, entry))


def _import_all(name: str) -> None:
    """Imports a module and all below it; notes those whose dependency is absent."""
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or str(error)
        if missing == name and "." in name:
            return  # no such module here
        if missing.partition(".")[0] == _PACKAGE:
            raise
        _skipped[name] = f"needs {missing}, which is not installed"
        return
    _skipped.pop(name, None)
    for child in pkgutil.iter_modules(getattr(module, "__path__", ()), f"{name}."):
        if not child.name.endswith(".__main__"):
            _import_all(child.name)


def _constant_docstring(module: ModuleType, name: str) -> str:
    """The string literal under the assignment of a constant."""
    attribute = name.rpartition(".")[2]
    for node, below in pairwise(ast.parse(inspect.getsource(module)).body):
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        if any(getattr(target, "id", None) == attribute for target in targets):
            value = getattr(below, "value", None)
            text = value.value if isinstance(value, ast.Constant) else ""
            return inspect.cleandoc(text) if isinstance(text, str) else ""
    return ""
