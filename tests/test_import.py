"""`import jaxml` costs next to nothing, and its folders load when they are named."""

import json
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import jaxml

ROOT = Path(__file__).parents[1]


def run(code: str) -> str:
    """What a fresh interpreter prints, started in the root of the checkout."""
    command = [sys.executable, "-c", code]
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, check=True
    )
    return result.stdout


def loaded_by(code: str) -> set[str]:
    """The modules that `code` imports."""
    names = run(
        "import sys, json; before = set(sys.modules)\n"
        f"{code}\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    return set(json.loads(names))


def test_import_takes_less_than_a_fifth_of_a_second_beyond_jax():
    """In seconds of processor time, which other processes on the machine do not add."""
    code = (
        "import jax, time; start = time.process_time(); import jaxml;"
        "print(time.process_time() - start)"
    )
    assert statistics.median(float(run(code)) for _ in range(3)) < 0.2


def test_import_loads_the_standard_library_alone():
    loaded = loaded_by("import jaxml")
    assert {name for name in loaded if name.split(".")[0] == "jaxml"} == {
        "jaxml",
        "jaxml.export",
    }
    packages = {name.split(".")[0] for name in loaded}
    assert packages - {"jaxml"} <= sys.stdlib_module_names


def test_a_folder_loads_when_it_is_named():
    loaded = loaded_by("import jaxml; jaxml.ssl.simclr")
    assert "jaxml.ssl.simclr" in loaded
    assert not loaded & {"jaxml.train", "matplotlib", "sklearn", "tensorflow", "torch"}


def test_the_whole_library_needs_neither_tensorflow_nor_torch():
    loaded = loaded_by("import jaxml; jaxml.catalogue()")
    assert "jaxml.train.step" in loaded
    assert not loaded & {"tensorflow", "torch"}


@pytest.mark.parametrize("folder", sorted(set(dir(jaxml)) - set(jaxml.__all__)))
def test_every_folder_is_an_attribute(folder):
    assert getattr(jaxml, folder).__name__ == f"jaxml.{folder}"


def test_the_version_is_that_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert jaxml.__version__ == project["version"]


def test_without_a_checkout_the_version_is_that_of_the_metadata(tmp_path):
    """As installed: the package beside its metadata, and somebody else's pyproject."""
    (tmp_path / "jaxml").symlink_to(ROOT / "jaxml")
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "other"\nversion = "9"\n'
    )
    info = tmp_path / "jaxml-7.8.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: jaxml\nVersion: 7.8.9\n"
    )
    path = f"import sys; sys.path.insert(0, {str(tmp_path)!r})"
    assert run(f"{path}; import jaxml; print(jaxml.__version__)").strip() == "7.8.9"


def test_dir_lists_the_folders():
    assert {"__version__", "catalogue", "export", "ssl", "train"} <= set(dir(jaxml))
    assert [name for name in dir(jaxml) if name.startswith("_")] == ["__version__"]


def test_an_unknown_attribute_names_the_folders():
    with pytest.raises(
        AttributeError, match=r"no attribute 'sssl'; it has .*ssl.*train"
    ):
        _ = jaxml.sssl
    assert not hasattr(jaxml, "__wrapped__")
