"""Public names: what carries one, what must not, and how they are found again."""

import functools
import importlib
import inspect
import sys
import textwrap
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

from jaxml import export as export_module
from jaxml.export import (
    ExportError,
    InvalidNameError,
    NameCollisionError,
    Paper,
    SymbolAlreadyExportedError,
    catalogue,
    export,
    export_constant,
    exported_name,
    lookup,
    parse_paper,
    skipped,
)


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """An empty registry, so that no test leaves a name in the real one."""
    monkeypatch.setattr(export_module, "_entries", {})
    monkeypatch.setattr(export_module, "_skipped", {})


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A package `lib` made of {path: source} that stands in for the whole library."""

    def write(files):
        for path, source in files.items():
            file = tmp_path / "lib" / f"{path}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            for folder in file.relative_to(tmp_path).parents[:-1]:
                (tmp_path / folder / "__init__.py").touch()
            file.write_text(textwrap.dedent(source))
        importlib.invalidate_caches()

    monkeypatch.setattr(export_module, "_PACKAGE", "lib")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield write
    for name in [name for name in sys.modules if name.split(".")[0] == "lib"]:
        del sys.modules[name]


def make(name="f", module="jaxml.ops.fake"):
    """A fresh function that claims to live in `module`."""

    def f(x):
        """Returns x.

        More.
        """
        return x

    f.__module__, f.__name__, f.__qualname__ = module, name, name
    return f


def through_wraps(f):
    @functools.wraps(f)
    def wrapper(*args):
        return f(*args)

    return wrapper


def through_custom_vjp(f):
    f = jax.custom_vjp(f)
    f.defvjp(lambda x: (x, None), lambda _, g: (2 * g,))
    return f


DECORATORS = {
    "nothing": lambda f: f,
    "wraps": through_wraps,
    "jit": jax.jit,
    "custom_vjp": through_custom_vjp,
    "custom_jvp": jax.custom_jvp,
    "vmap": jax.vmap,
    "checkpoint": jax.checkpoint,
    "cache": functools.cache,
    "three": lambda f: through_wraps(jax.jit(through_wraps(f))),
}


@pytest.mark.parametrize("decorate", DECORATORS.values(), ids=DECORATORS.keys())
def test_a_name_is_found_on_both_ends_of_a_chain_of_decorators(decorate):
    f = make()
    symbol = decorate(f)
    assert export("ops.f", since="0.1")(symbol) is symbol
    assert exported_name(symbol) == exported_name(f) == "ops.f"
    assert lookup("ops.f") is symbol
    (entry,) = export_module._entries.values()
    assert (entry.module, entry.summary) == ("jaxml.ops.fake", "Returns x.")


@pytest.mark.parametrize("decorate", DECORATORS.values(), ids=DECORATORS.keys())
def test_decorators_may_come_after_the_export(decorate):
    f = export("ops.f", since="0.1")(make())
    assert exported_name(decorate(f)) == "ops.f"


def test_exported_functions_still_work():
    f = export("ops.f", since="0.1")(through_custom_vjp(make()))
    assert jax.jit(jax.grad(f))(3.0) == 2.0


def test_classes_and_named_tuples_carry_names():
    class Plain:
        pass

    class Point(NamedTuple):
        x: int

    for i, symbol in enumerate((Plain, Point)):
        symbol.__module__ = "jaxml.ops.fake"
        assert export(f"ops.c{i}", since="0.1")(symbol) is symbol
        assert exported_name(symbol) == f"ops.c{i}"
    assert Point(1) == (1,)
    assert len(jax.tree.leaves(Point(1))) == 1
    assert exported_name(Point(1)) is None  # an instance is another object


def test_a_subclass_does_not_inherit_the_name():
    class Parent:
        pass

    Parent.__module__ = "jaxml.ops.fake"
    export("ops.Parent", since="0.1")(Parent)

    class Child(Parent):
        pass

    assert exported_name(Child) is None
    Child.__module__ = "jaxml.ops.fake"
    export("ops.Child", since="0.1")(Child)
    assert exported_name(Child) == "ops.Child"
    assert exported_name(Parent) == "ops.Parent"


def test_a_partial_is_a_symbol_of_its_own(library):
    library(
        {
            "ops/scale": """
        import functools
        import jax
        from jaxml.export import export

        @export("ops.scale", since="0.1")
        def scale(x, factor):
            "Multiplies."
            return factor * x

        double = export("ops.double", since="0.1")(functools.partial(scale, factor=2))
        triple = functools.partial(scale, factor=3)
        functools.update_wrapper(triple, scale)
        triple = export("ops.triple", since="0.1")(triple)
        fast = export("ops.fast", since="0.1")(
            jax.jit(functools.partial(scale, factor=4))
        )
        """
        }
    )
    entries = {entry.name: entry for entry in catalogue()}
    assert list(entries) == ["ops.double", "ops.fast", "ops.scale", "ops.triple"]
    for name, factor in (("ops.double", 2), ("ops.triple", 3), ("ops.fast", 4)):
        assert lookup(name)(5) == 5 * factor
        assert exported_name(lookup(name)) == name
        assert entries[name].module == "lib.ops.scale"
        assert entries[name].summary == "Multiplies."


def test_a_partial_of_the_decorator_fixes_the_version():
    export_02 = functools.partial(export, since="0.2")
    export_02("ops.f")(make())
    assert export_module._entries["ops.f"].since == "0.2"


def test_constants_by_value_and_by_module(library):
    library(
        {
            "ops/color": '''
        from jaxml.export import export_constant

        MEAN = export_constant("ops.MEAN", (0.5, 0.5), since="0.1")
        """Mean of the images."""

        STD: float = 0.25
        """Their spread.

        In [0, 1].
        """
        export_constant("ops.STD", since="0.2", module=__name__)
        EPS = export_constant("ops.EPS", 1e-6, since="0.2")
        '''
        }
    )
    eps, mean, std = catalogue()
    assert (mean.name, mean.symbol, mean.since) == ("ops.MEAN", (0.5, 0.5), "0.1")
    assert (std.name, std.symbol, std.module) == ("ops.STD", 0.25, "lib.ops.color")
    assert (mean.summary, std.summary, eps.summary) == (
        "Mean of the images.",
        "Their spread.",
        "",
    )
    assert std.docstring == "Their spread.\n\nIn [0, 1]."
    assert lookup("ops.MEAN") is sys.modules["lib.ops.color"].MEAN
    assert exported_name(mean.symbol) is None
    assert not mean.is_method


def test_a_constant_lives_in_the_module_that_calls():
    scope = {"__name__": "jaxml.ops.fake", "export_constant": export_constant}
    exec('K = export_constant("ops.K", 1, since="0.1")', scope)
    assert export_module._entries["ops.K"].module == "jaxml.ops.fake"
    with pytest.raises(InvalidNameError, match="for a symbol of __main__"):
        export_constant("ops.K", 1, since="0.1")


def test_a_constant_must_exist():
    with pytest.raises(ExportError, match="must have the constant 'MEAN' already"):
        export_constant("ops.MEAN", since="0.1", module="jaxml.ops.absent")


def test_a_number_cannot_carry_a_name():
    with pytest.raises(ExportError, match=r"got float for 'ops\.EPS'.*export_constant"):
        export("ops.EPS", since="0.1")(1e-6)


def test_aliases_name_the_same_symbol():
    f = export("ops.f", since="0.1", aliases=("ops.g", "ops.h"))(make())
    assert lookup("ops.f") is lookup("ops.g") is lookup("ops.h") is f
    assert exported_name(f) == "ops.f"
    assert export_module._entries["ops.h"].aliases == ("ops.g", "ops.h")


def test_a_symbol_has_one_canonical_name():
    f = export("ops.f", since="0.1")(make())
    for again in (f, jax.jit(f), through_wraps(f)):
        with pytest.raises(
            SymbolAlreadyExportedError, match=r"got 'ops\.g' for .* 'ops\.f'.*aliases"
        ):
            export("ops.g", since="0.1")(again)
    assert "ops.g" not in export_module._entries
    faster = export("ops.f", since="0.1")(jax.jit(f))  # the same name is no conflict
    assert lookup("ops.f") is faster


@pytest.mark.parametrize("aliases", [(), ("ops.f",)])
def test_a_name_belongs_to_one_symbol(aliases):
    name = "ops.g" if aliases else "ops.f"
    first = export("ops.f", since="0.1")(make("f"))
    with pytest.raises(NameCollisionError, match=r"got 'ops\.f' for a symbol of"):
        export(name, since="0.1", aliases=aliases)(make("g"))
    assert set(export_module._entries) == {"ops.f"}  # all or nothing
    assert lookup("ops.f") is first


def test_functions_of_one_name_in_two_modules_collide():
    export("ops.f", since="0.1")(make("f", "jaxml.ops.one"))
    with pytest.raises(
        NameCollisionError, match=r"jaxml\.ops\.two and for 'ops\.f' of"
    ):
        export("ops.f", since="0.1")(make("f", "jaxml.ops.two"))


def test_a_constant_and_a_function_collide():
    export("ops.f", since="0.1")(make())
    with pytest.raises(NameCollisionError):
        export_constant("ops.f", 1.0, since="0.1", module="jaxml.ops.fake")


def test_a_module_may_be_reloaded(library):
    source = """
        import functools
        from jaxml.export import export, export_constant

        @export("ops.f", since="0.1", aliases={aliases})
        def f(x):
            return {value}

        @export("ops.C", since="0.1")
        class C:
            pass

        p = export("ops.p", since="0.1")(functools.partial(f, 1))
        K = export_constant("ops.K", {value}, since="0.1")
        """
    library({"ops/thing": source.format(aliases='("ops.g",)', value=1)})
    first = {entry.name: entry.symbol for entry in catalogue()}
    assert lookup("ops.g") is first["ops.f"]
    library({"ops/thing": source.format(aliases="()", value=2)})
    importlib.reload(sys.modules["lib.ops.thing"])
    second = {entry.name: entry.symbol for entry in catalogue()}
    assert first.keys() == second.keys() == {"ops.f", "ops.C", "ops.p", "ops.K"}
    assert lookup("ops.f")(0) == lookup("ops.K") == lookup("ops.p")() == 2
    assert second["ops.C"] is not first["ops.C"]
    with pytest.raises(LookupError):
        lookup("ops.g")  # the alias went with the old version


@pytest.mark.parametrize(
    "name",
    ["f", "ops.", ".f", "Ops.f", "ops.2f", "ops.f-g", "ops..f", "ops.f ", "ops._f", ""],
)
def test_malformed_names_are_refused(name):
    with pytest.raises(
        InvalidNameError, match=r"must be <lowercase folder>\.<identifier>, got"
    ):
        export(name, since="0.1")(make())
    with pytest.raises(InvalidNameError, match=r"lowercase folder"):
        export("ops.ok", since="0.1", aliases=(name,))(make())


@pytest.mark.parametrize(
    "module", ["jaxml.nn.fake", "optax.ops", "ops.fake", "jaxml", "jaxml.ops_extra.f"]
)
def test_the_first_part_is_the_folder_of_the_symbol(module):
    with pytest.raises(
        InvalidNameError, match=rf"got 'ops\.f' for a symbol of {module}"
    ):
        export("ops.f", since="0.1")(make(module=module))


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("ops.f", "jaxml.ops.fake"),
        ("compose.f", "jaxml.compose"),
        ("attention.flash.f", "jaxml.attention.flash.gpu"),
        ("ops.F2", "jaxml.ops.fake"),
    ],
)
def test_good_names_are_taken(name, module):
    assert exported_name(export(name, since="0.1")(make(module=module))) == name


@pytest.mark.parametrize("since", ["", "1", "v0.1", "0.1rc", "soon"])
def test_since_is_a_version(since):
    with pytest.raises(ExportError, match="since must be a version"):
        export("ops.f", since=since)(make())


def test_deprecated_names_warn_on_lookup():
    export("ops.f", since="0.1", aliases=("ops.g",), deprecated="0.3: use ops.h")(
        make()
    )
    for name in ("ops.f", "ops.g"):
        with pytest.warns(
            DeprecationWarning,
            match=rf"{name} is deprecated since jaxml 0\.3: use ops\.h",
        ) as caught:
            inspect.unwrap(lookup)(name)  # without the type checks around it
        assert caught[0].filename == __file__


def test_an_alias_alone_may_be_deprecated(recwarn):
    notice = {"ops.g": "0.3: use ops.f"}
    export("ops.f", since="0.1", aliases=("ops.g",), deprecated=notice)(make())
    lookup("ops.f")
    assert not recwarn
    with pytest.warns(DeprecationWarning, match=r"use ops\.f"):
        lookup("ops.g")


@pytest.mark.parametrize(
    ("deprecated", "message"),
    [
        ("use x", "must say"),
        ("0.3: ", "must say"),
        ({"ops.other": "0.3: use x"}, r"one of ops\.f, got .* of 'ops\.other'"),
    ],
)
def test_a_deprecation_says_since_when_and_what_to_use(deprecated, message):
    with pytest.raises(ExportError, match=message):
        export("ops.f", since="0.1", deprecated=deprecated)(make())


def test_lookup_imports_the_folder_and_suggests(library):
    library(
        {
            "ops/thing": """
        from jaxml.export import export

        @export("ops.resize", since="0.1")
        def resize(): ...
        """,
            "nn/broken": "raise RuntimeError('never imported')",
        }
    )
    assert lookup("ops.resize") is sys.modules["lib.ops.thing"].resize
    with pytest.raises(LookupError, match=r"'ops\.resise'.*did you mean ops\.resize\?"):
        lookup("ops.resise")
    with pytest.raises(LookupError, match=r"no public name 'absent\.f'"):
        lookup("absent.f")


def test_the_catalogue_imports_everything_and_is_sorted(library):
    library(
        {
            "zeta/last": """
        from jaxml.export import export

        @export("zeta.b", since="0.1", aliases=("zeta.a",))
        def b(): ...
        """,
            "alpha/deep/module": """
        from jaxml.export import export

        @export("alpha.c", since="0.1")
        def c(): ...
        """,
            "alpha/__main__": "raise SystemExit('a script was run')",
        }
    )
    entries = catalogue()
    assert [entry.name for entry in entries] == ["alpha.c", "zeta.b"]
    assert [entry.family for entry in entries] == ["alpha", "zeta"]
    assert catalogue() == entries


def test_an_absent_dependency_is_recorded(library):
    library(
        {
            "interop/exotic": "import a_package_nobody_has.part",
            "interop/plain": """
        from jaxml.export import export

        @export("interop.f", since="0.1")
        def f(): ...
        """,
        }
    )
    assert [entry.name for entry in catalogue()] == ["interop.f"]
    assert dict(skipped()) == {
        "lib.interop.exotic": "needs a_package_nobody_has, which is not installed"
    }


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("import lib.interop.absent", ModuleNotFoundError),
        ("from math import absent", ImportError),
        ("1 / 0", ZeroDivisionError),
    ],
)
def test_a_broken_module_is_not_passed_over(library, source, error):
    library({"interop/broken": source})
    with pytest.raises(error):
        catalogue()
    assert not skipped()


def test_a_method_is_known_by_its_annotation(library):
    library(
        {
            "ssl/thing": """
        from jaxml.export import export
        from jaxml.method import Method

        @export("ssl.builder", since="0.1")
        def builder() -> Method: ...

        @export("ssl.quoted", since="0.1")
        def quoted() -> "Method": ...

        @export("ssl.loss", since="0.1")
        def loss() -> float: ...

        @export("ssl.Module", since="0.1")
        class Module:
            def __call__(self) -> Method: ...

        @export("ssl.Failure", since="0.1")
        class Failure(Exception): ...  # has no signature to ask
        """
        }
    )
    assert {entry.name: entry.is_method for entry in catalogue()} == {
        "ssl.Failure": False,
        "ssl.Module": False,
        "ssl.builder": True,
        "ssl.loss": False,
        "ssl.quoted": True,
    }


def test_docstrings_are_the_symbols_own(library):
    library(
        {
            "ops/thing": """
        from dataclasses import dataclass
        from typing import NamedTuple
        from jaxml.export import export

        @export("ops.Documented", since="0.1")
        class Documented:
            "Says what it is."

        @export("ops.Silent", since="0.1")
        class Silent(Documented): ...

        @export("ops.Pair", since="0.1")
        class Pair(NamedTuple):
            x: int

        @export("ops.Data", since="0.1")
        @dataclass
        class Data:
            x: int
        """
        }
    )
    summaries = {entry.name: entry.summary for entry in catalogue()}
    assert summaries.pop("ops.Documented") == "Says what it is."
    assert set(summaries.values()) == {""}


def test_a_paper_comes_from_the_symbol_or_else_from_its_module(library):
    library(
        {
            "ssl/thing": '''
        """A thing.

        Reference: A and B, "The Module's", X 2020, https://arxiv.org/abs/2001.00001
        """
        from jaxml.export import export

        @export("ssl.own", since="0.1")
        def own():
            """Has its own.

            Reference: C, "The Function's", https://arxiv.org/abs/2001.00002
            """

        @export("ssl.shared", since="0.1")
        def shared():
            """Has none."""
        ''',
            "ssl/bare": """
        from jaxml.export import export

        @export("ssl.bare", since="0.1")
        def bare(): ...
        """,
        }
    )
    bare, own, shared = catalogue()
    assert bare.paper is None
    assert own.paper == Paper("The Function's", "https://arxiv.org/abs/2001.00002")
    assert shared.paper == Paper("The Module's", "https://arxiv.org/abs/2001.00001")


PAPER = Paper("A Title of Some Length", "https://arxiv.org/abs/2011.10566")
REFERENCES = {
    "one line": 'Reference: X, "A Title of Some Length", {url}',
    "house style": """
        The idea.

        Reference: Chen and He, "A Title of
        Some Length", CVPR 2021,
        {url} (equations 1 to 4, heads from section 3).
        """,
    "link ends the sentence": 'Reference: X, "A Title of Some Length" ({url}).',
    "comma inside": 'Reference: X, "A Title of Some Length," Y, {url}, section 2.',
    "typographic quotes": "Reference: X, “A Title of Some Length”, <{url}>",
    "plural, below": """
        References:
            X, "A Title of Some Length", {url}
            Y, "Another", https://arxiv.org/abs/1706.03762
        """,
    "code before the paper": 'Reference: https://x.org, "A Title of Some Length", {url}',
    "a book before it": 'Reference: W, "A Book", 1969; X, "A Title of Some Length", {url}',
    "own link first": """
        See https://example.org/code.

        Reference: X, "A Title of Some Length", {url}

        A later "quote", https://example.org/other.
        """,
}


@pytest.mark.parametrize("text", REFERENCES.values(), ids=REFERENCES.keys())
def test_references_are_parsed(text):
    assert parse_paper(text.format(url=PAPER.url)) == PAPER


def test_a_link_keeps_its_own_brackets():
    url = "https://doi.org/10.1016/0893-6080(91)90009-T"
    assert parse_paper(f'Reference: H, "T" ({url}).') == Paper("T", url)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "No reference.",
        'Reference: X, "A title without a link", 2020.',
        "Reference: X, no title, https://arxiv.org/abs/1",
        'A "title", https://arxiv.org/abs/1',
        'Reference: https://arxiv.org/abs/1, "T".',
        'Reference: X, "T", 2020.\n\nOther text, https://arxiv.org/abs/1',
    ],
)
def test_what_is_no_reference_gives_none(text):
    assert parse_paper(text) is None


def test_a_jitted_export_keeps_its_signature():
    f = export("ops.f", since="0.1")(jax.jit(make()))
    assert list(inspect.signature(f).parameters) == ["x"]
    assert f(jnp.float32(2.0)) == 2.0
