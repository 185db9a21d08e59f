"""Every experiment can be listed, explains itself, and runs where that is cheap.

An experiment that needs no file of data and runs within about twenty seconds in a small
configuration says so with a module constant:

    SMOKE = Config(num_steps=2, batch_size=8)

It is run here, with `out` in a temporary folder.
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
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import tyro

from experiments.__main__ import Experiment, experiments, main, table

ROOT = Path(__file__).parents[1]
ALL = [f"{row.family}.{row.name}" for row in experiments()]


def source(name: str) -> ast.Module:
    path = ROOT / "experiments" / f"{name.replace('.', '/')}.py"
    return ast.parse(path.read_text("utf-8"))


def constants(tree: ast.Module) -> set[str]:
    targets = (t for n in tree.body if isinstance(n, ast.Assign) for t in n.targets)
    return {target.id for target in targets if isinstance(target, ast.Name)}


def described_fields(tree: ast.Module, name: str = "Config") -> dict[str, str]:
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
    files = (ROOT / "jaxml" / family).glob("*.py")
    assert [path.stem for path in files if f"{stem}_".startswith(f"{path.stem}_")]


@pytest.mark.parametrize("name", ALL)
def test_every_field_is_described(name):
    fields = described_fields(source(name))
    assert fields
    assert not [field for field, text in fields.items() if not text.strip()]


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
def test_the_small_configuration_runs(name, tmp_path):
    module = importlib.import_module(f"experiments.{name}")
    config = dataclasses.replace(module.SMOKE, out=tmp_path / "run")
    results = module.main(config)
    assert isinstance(results, Mapping)
    assert results
    assert all(math.isfinite(value) for value in results.values())
    if not name.startswith("bench."):
        (recorded,) = (json.loads(p.read_text()) for p in files(config, "config.json"))
        assert recorded.keys() == {f.name for f in dataclasses.fields(config)}
        reports = [
            json.loads(line)
            for path in files(config, "metrics.jsonl")
            for line in path.read_text().splitlines()
        ]
        assert reports
        assert all(math.isfinite(v) for report in reports for v in report.values())


def files(config, name: str) -> list[Path]:
    """What a run wrote; several seeds have a folder each."""
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


def test_files_that_cannot_be_launched_are_left_out(tmp_path):
    (tmp_path / "ssl").mkdir()
    launch = 'if __name__ == "__main__":\n    pass\n'
    (tmp_path / "__main__.py").write_text(launch)
    (tmp_path / "ssl/protocol.py").write_text('"""Shared."""\n')
    (tmp_path / "ssl/simclr.py").write_text(f'"""SimCLR.\n\nMore.\n"""\n{launch}')
    (tmp_path / "ssl/bare.py").write_text(launch)
    assert experiments(tmp_path) == [("ssl", "bare", ""), ("ssl", "simclr", "SimCLR.")]


def test_the_table_can_be_filtered():
    family = ALL[0].split(".")[0]
    for argument in ([family], [f"experiments.{family}"]):
        names = [row.split()[0] for row in printed(main, argument).splitlines()]
        assert names == [name for name in ALL if name.split(".")[0] == family]
    rows = [row for row in printed(main, []).splitlines() if row]
    assert [row.split()[0] for row in rows] == ALL


def test_an_unknown_family_is_refused():
    with pytest.raises(SystemExit, match=r"no experiment or family 'sssl'; families: "):
        main(["sssl"])


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_an_experiment_can_be_launched_by_its_name(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["unchanged"])
    text = printed(main, [ALL[0], "--help"])
    assert f"python -m experiments.{ALL[0]}" in text


def test_the_table_imports_no_experiment():
    code = (
        "import sys, experiments.__main__ as e; e.main([]);"
        "sys.exit(bool({'jax', 'numpy'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
