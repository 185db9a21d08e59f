"""README.md against the code: its table is generated, its commands and example run.

Rewrite the table with

    python -m jaxml --write README.md
"""

import dataclasses
import importlib
import importlib.util
import re
import sys
import types
from pathlib import Path

import pytest

from jaxml.__main__ import MARKS, SHOWN, main, markdown_table, with_table
from jaxml.export import Entry, catalogue, skipped

ROOT = Path(__file__).parents[1]
EMPTY = f"# Title\n\n{MARKS[0]}\nold rows\n{MARKS[1]}\n\nEnd.\n"


@pytest.fixture(scope="module")
def readme() -> str:
    path = ROOT / "README.md"
    if not path.exists():
        pytest.skip("README.md is not written yet")
    return path.read_text("utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def section(text: str, title: str) -> str:
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, re.M | re.S)[1]


def test_the_table_is_the_catalogue(readme):
    table = markdown_table(catalogue())
    if skipped():
        pytest.skip(f"needs every module: {dict(skipped())}")
    assert readme == with_table(readme, table), "run python -m jaxml --write README.md"


def test_two_commands_suffice(readme):
    commands = [
        text.strip() for text in blocks(section(readme, "Two commands"), "bash")
    ]
    learn, test = commands
    assert all(command.startswith("python3 -m venv .venv && ") for command in commands)
    assert not any("\n" in command for command in commands)
    assert re.search(r"pip install .*python -m experiments\.\w+\.\w+$", learn)
    assert re.search(r"pip install .*\[dev\].*python -m pytest -n 2$", test)


def test_commands_name_modules_and_options_that_exist(readme):
    commands = re.findall(r"python -m ((?:experiments|jaxml)[\w.]*\w)([^`\n]*)", readme)
    assert commands
    for module, rest in commands:
        assert importlib.util.find_spec(module), module
        options = {name.replace("-", "_") for name in re.findall(r"--([\w-]+)", rest)}
        if options:
            config = importlib.import_module(module).Config
            assert options <= {field.name for field in dataclasses.fields(config)}


def test_links_and_paths_lead_somewhere(readme):
    links = re.findall(r"\]\((?!https?://)([^)#]+)\)", readme)
    paths = re.findall(r"`((?:jaxml|experiments|tests|colabs)/[\w./]*)`", readme)
    assert not [path for path in links + paths if not (ROOT / path).exists()]


def test_the_quickstart_runs(readme, tmp_path, monkeypatch):
    (code,) = blocks(section(readme, "Quickstart"), "python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    steps = int(re.search(r"num_steps=(\d+)", code)[1])
    assert names["state"].step == steps
    assert not list(tmp_path.iterdir())  # nothing is written that was not asked for


def test_weights_of_others_come_and_go(readme, tmp_path, monkeypatch, capsys):
    (code,) = blocks(section(readme, "Weights of others"), "python")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    assert names["model"].num_classes == 5
    assert set(names["report"].mismatched) == {"params/head/kernel", "params/head/bias"}
    assert "params/head/kernel" in capsys.readouterr().out
    files = {path.name for path in (tmp_path / "vit").iterdir()}
    assert files == {"config.json", "model.safetensors"}


# The generator.


@pytest.fixture
def entry(monkeypatch):
    """Makes an entry of a module with, or without, a paper."""

    def make(name, module, doc="What it is.\n\nMore.", paper=True, **changes) -> Entry:
        reference = '\n\nReference: X, "A | B", https://arxiv.org/abs/1' * paper
        fake = types.ModuleType(f"jaxml.{module}", doc + reference)
        fake.__file__ = str(ROOT / "jaxml" / f"{module.replace('.', '/')}.py")
        monkeypatch.setitem(sys.modules, fake.__name__, fake)
        fields = {
            "symbol": object(),
            "module": fake.__name__,
            "since": "0.1",
            "aliases": (),
            "deprecated": {},
            "is_constant": False,
        }
        return Entry(name=name, **fields | changes)

    return make


def test_a_row_says_module_sentence_names_and_paper(entry):
    row = markdown_table(
        [
            entry("trees.Tree", "trees.cart", "Keeps | drops.\n\nMore."),
            entry("trees.cart.fit", "trees.cart", "Keeps | drops.\n\nMore."),
        ]
    )
    assert row.splitlines()[2:] == [
        "| [trees.cart](jaxml/trees/cart.py) | Keeps &#124; drops. "
        "| `fit`, `Tree` | [A &#124; B](https://arxiv.org/abs/1) |"
    ]


def test_a_row_shows_a_few_names(entry):
    many = [entry(f"ops.f{i}", "ops.boxes") for i in range(SHOWN + 1)]
    row = markdown_table(many).splitlines()[-1]
    assert f"`f{SHOWN - 1}` ... |" in row
    assert f"`f{SHOWN}`" not in row
    assert " ... " not in markdown_table(many[:-1])


def test_rows_are_modules_of_published_work(entry):
    hidden = [
        entry("ops.order", "ops.order", paper=False),
        entry("ops.MEAN", "ops.color", is_constant=True),
        entry("draw.save_tree", "draw.tree"),
        entry("trees.Config", "trees.cart_config"),
    ]
    assert len(markdown_table(hidden).splitlines()) == 2


def test_the_table_is_put_between_the_marks():
    once = with_table(EMPTY, "| new |")
    assert once == f"# Title\n\n{MARKS[0]}\n\n| new |\n\n{MARKS[1]}\n\nEnd.\n"
    assert with_table(once, "| new |") == once
    assert with_table(once, r"\1 \n") != once  # no template characters


@pytest.mark.parametrize(
    "text", ["", MARKS[0], MARKS[1] + MARKS[0], EMPTY + EMPTY, MARKS[0] + EMPTY]
)
def test_the_marks_must_stand_once(text):
    with pytest.raises(ValueError, match="must hold <!-- catalogue --> and"):
        with_table(text, "| new |")


def test_the_command_prints_or_rewrites(tmp_path, capsys):
    main([])
    table = capsys.readouterr().out.strip()
    assert table == markdown_table(catalogue())
    file = tmp_path / "README.md"
    file.write_text(EMPTY)
    main(["--write", str(file)])
    assert file.read_text() == with_table(EMPTY, table)
