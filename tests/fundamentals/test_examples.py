"""Every example of the family runs: docstrings, and the page on tapes and `jax.grad`."""

import doctest
import importlib
from pathlib import Path

import pytest

import jaxml.fundamentals
from jaxml.fundamentals import autograd

FOLDER = Path(autograd.__file__).parent
PAGE = FOLDER / "autograd_and_jax_grad.md"
OPTIONS = doctest.ELLIPSIS


def test_every_claim_of_the_page(capsys):
    text = PAGE.read_text("utf-8").replace(
        "```\n", "\n"
    )  # a fence ends what is printed
    examples = doctest.DocTestParser().get_doctest(text, {}, PAGE.name, PAGE.name, 0)
    result = doctest.DocTestRunner(optionflags=OPTIONS).run(examples)
    assert not result.failed, capsys.readouterr().out
    assert result.attempted > 100
    sections = text.split("\n## ")[1:]
    bare = [s.partition("\n")[0] for s in sections if ">>> " not in s]
    assert bare == ["From one to the other"]  # a table of what was shown


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda p: p.stem)
def test_docstrings(path):
    name = jaxml.fundamentals.__name__ + f".{path.stem}"
    result = doctest.testmod(importlib.import_module(name), optionflags=OPTIONS)
    assert not result.failed


def test_the_page_is_found_from_where_one_would_look():
    for path in (Path(autograd.__file__), FOLDER / "__init__.py"):
        assert PAGE.name in path.read_text("utf-8")
