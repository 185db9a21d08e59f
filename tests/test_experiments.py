"""Every experiment can be listed, explains itself, and runs where that is cheap.

An experiment that needs no file of data and runs within about twenty seconds in a small
configuration says so with a module constant:

    SMOKE = Config(num_steps=2, batch_size=8)

It is run here, with `out` in a temporary folder; the programs of `experiments/bench` write
nothing, and need no `out`.
"""

import ast
import contextlib
import dataclasses
import importlib
import inspect
import io
import json
import math
import re
import runpy
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import tyro

from experiments.__main__ import Experiment, experiments, main, table

ROOT = Path(__file__).parents[1]
BELOW = {"fundamentals": ("nn",)}  # a family that shows what stands in a layer below
ALL = [f"{row.family}.{row.name}" for row in experiments()]


def source(name: str) -> ast.Module:
    path = ROOT / "experiments" / f"{name.replace('.', '/')}.py"
    return ast.parse(path.read_text("utf-8"))


def constants(tree: ast.Module) -> set[str]:
    targets = (t for n in tree.body if isinstance(n, ast.Assign) for t in n.targets)
    return {target.id for target in targets if isinstance(target, ast.Name)}


def described_fields(tree: ast.Module, name: str) -> dict[str, str]:
    """The fields of a dataclass, and the string literal under each."""
    (body,) = (n.body for n in tree.body if getattr(n, "name", None) == name)
    fields = {}
    for node, below in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign):
            literal = below.value if isinstance(below, ast.Expr) else None
            fields[node.target.id] = getattr(literal, "value", "")
    return fields


def printed(function, *args) -> str:
    """What a call prints before it ends, with an exit status of zero if it exits."""
    status = None
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            function(*args)
        except SystemExit as end:
            status = end.code
    assert not status
    return out.getvalue()


@pytest.mark.parametrize("name", ALL)
def test_the_header_states_the_command(name):
    doc = ast.get_docstring(source(name)) or ""
    assert doc.partition("\n")[0].endswith((".", ":", "?")), "the first line is a title"
    assert re.search(rf"python -m experiments\.{re.escape(name)}\b", doc)


@pytest.mark.parametrize("name", ALL)
def test_the_name_is_that_of_an_algorithm(name):
    family, stem = name.split(".")
    if family == "bench":
        return
    folders = {family, *BELOW.get(family, ())}
    files = [f for folder in folders for f in (ROOT / "jaxml" / folder).glob("*.py")]
    assert [path.stem for path in files if f"{stem}_".startswith(f"{path.stem}_")]


@pytest.mark.parametrize("name", ALL)
def test_every_field_is_described(name):
    config = importlib.import_module(f"experiments.{name}").Config
    described = {}
    for base in filter(dataclasses.is_dataclass, config.__mro__):
        tree = source(base.__module__.removeprefix("experiments."))
        described = described_fields(tree, base.__name__) | described
    assert described.keys() == {field.name for field in dataclasses.fields(config)}
    assert not [field for field, text in described.items() if not text.strip()]


@pytest.mark.parametrize("name", ALL)
def test_config_is_frozen_and_main_takes_it(name):
    module = importlib.import_module(f"experiments.{name}")
    assert module.Config.__dataclass_params__.frozen
    module.Config()  # every field has a default
    (parameter,) = inspect.signature(module.main).parameters.values()
    assert (parameter.name, parameter.annotation) == ("config", module.Config)


@pytest.mark.parametrize("name", ALL)
def test_help_mentions_every_field(name):
    config = importlib.import_module(f"experiments.{name}").Config
    text = printed(lambda: tyro.cli(config, args=["--help"]))
    for field in dataclasses.fields(config):
        assert f"--{field.name.replace('_', '-')}" in text


@pytest.mark.parametrize("name", [n for n in ALL if "SMOKE" in constants(source(n))])
def test_the_small_configuration_runs(name, tmp_path, monkeypatch):
    module = importlib.import_module(f"experiments.{name}")
    monkeypatch.chdir(tmp_path)
    config = module.SMOKE
    if not name.startswith("bench."):
        config = dataclasses.replace(config, out=tmp_path / "run")
    results = module.main(config)
    assert isinstance(results, Mapping)
    assert results
    assert all(math.isfinite(value) for value in results.values())
    if not name.startswith("bench."):
        recorded = [json.loads(p.read_text()) for p in files(config, "config.json")]
        assert recorded
        fields = {f.name for f in dataclasses.fields(config)}
        assert all(run.keys() == fields for run in recorded)
        reports = [
            json.loads(line)
            for path in files(config, "metrics.jsonl")
            for line in path.read_text().splitlines()
        ]
        assert reports
        assert all(math.isfinite(v) for report in reports for v in report.values())


def files(config, name: str) -> list[Path]:
    """What a run wrote; several seeds or steps have a folder each."""
    return list(config.out.rglob(name))


def test_something_was_tested():
    assert ALL
    assert [name for name in ALL if "SMOKE" in constants(source(name))]


# The table.

ROWS = [
    Experiment("bench", "nms", "Speed."),
    Experiment("ssl", "simclr_digits", "SimCLR on digits."),
    Experiment("ssl", "simsiam", "SimSiam."),
]


def test_the_table_is_aligned_and_grouped():
    assert table(ROWS).split("\n") == [
        "bench.nms          Speed.",
        "",
        "ssl.simclr_digits  SimCLR on digits.",
        "ssl.simsiam        SimSiam.",
    ]
    assert table([]) == ""


@pytest.fixture
def root(tmp_path) -> Path:
    """A folder of three experiments, and of files that are none."""
    launch = 'if __name__ == "__main__":\n    pass\n'
    files = {
        "__main__.py": launch,
        "faces/arcface.py": f'"""ArcFace."""\n{launch}',
        "ssl/protocol.py": '"""Shared."""\n',
        "ssl/simclr.py": f'"""SimCLR.\n\nMore.\n"""\n{launch}',
        "ssl/bare.py": launch,
    }
    for path, source in files.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(source)
    return tmp_path


def test_files_that_cannot_be_launched_are_left_out(root):
    assert experiments(root) == [
        ("faces", "arcface", "ArcFace."),
        ("ssl", "bare", ""),
        ("ssl", "simclr", "SimCLR."),
    ]


def test_the_table_can_be_filtered(root):
    for family in ("ssl", "experiments.ssl"):
        assert printed(main, [family], root) == "ssl.bare\nssl.simclr  SimCLR.\n"
    assert printed(main, ["faces"], root) == "faces.arcface  ArcFace.\n"
    rows = printed(main, [], root).split()
    assert [word for word in rows if "." in word[:-1]] == [
        "faces.arcface",
        "ssl.bare",
        "ssl.simclr",
    ]


def test_an_unknown_family_is_refused(root):
    message = r"no experiment or family 'sssl'; families: faces, ssl"
    with pytest.raises(SystemExit, match=message):
        main(["sssl"], root)


def test_an_experiment_is_launched_by_its_name(root, monkeypatch):
    launched = []

    def run_module(module, run_name):
        launched.append((module, run_name, sys.argv))

    monkeypatch.setattr(runpy, "run_module", run_module)
    monkeypatch.setattr(sys, "argv", [])
    main(["experiments.ssl.bare", "--seed", "1"], root)
    module = "experiments.ssl.bare"
    argv = [f"python -m {module}", "--seed", "1"]
    assert launched == [(module, "__main__", argv)]


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_a_launched_experiment_prints_its_help(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["unchanged"])
    text = printed(main, [ALL[-1], "--help"])
    assert f"python -m experiments.{ALL[-1]}" in text


def test_the_table_imports_no_experiment():
    code = (
        "import sys, experiments.__main__ as e; e.main([]);"
        "sys.exit(bool({'jax', 'numpy'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
