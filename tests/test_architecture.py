"""The rules of the tree, checked: imports point one way, and importing does nothing.

`violations` judges one source text; the tests at the end give it forbidden ones.
"""

import ast
import subprocess
import sys
import textwrap
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Each layer may import the layers above it in this list, and a folder may import itself.
FAMILIES = {
    "ssl",
    "vision_language",
    "detection",
    "segmentation",
    "point_clouds",
    "faces",
    "depth",
    "trees",
    "generative",
    "language_models",
    "gui_agents",
    "fundamentals",
}
LAYERS = [
    {"typing", "export"},
    {"method"},
    {"ops", "precision", "parallel", "kernels"},
    {"compose", "attention", "losses"},
    {"nn", "metrics", "data", "draw"},
    {"train", *FAMILIES},  # peers: none may import another
    {"interop"},
    {"experiments"},
]
LAYER = {name: i for i, names in enumerate(LAYERS) for name in names}

# Exceptions, each with its reason.
ARROWS: dict[tuple[str, str], str] = {}  # (importer, imported): why
LONG: dict[str, str] = {  # file of more than 400 lines: why
    "jaxml/fundamentals/autograd.py": "one class of small operations, none over a screen",
}

NAMELESS = {"utils", "util", "common", "misc", "helpers", "helper"}
MAX_LINES = 400


def sources(*folders: str) -> list[Path]:
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return sorted(path.relative_to(ROOT) for path in files)


def imports(source: str, path: Path) -> Iterator[str]:
    """Every module that a file asks for, as an absolute dotted name."""
    package = path.parent.parts
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name != "jaxml")
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "jaxml":  # folders load when they are named
                yield f"jaxml.{node.attr}"
        elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func):
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield first.value


def violations(source: str, path: Path) -> list[str]:
    """What a file of the library or of the experiments imports against the rules."""
    top, *rest = path.with_suffix("").parts
    own = "experiments" if top == "experiments" else rest[0]
    found = []
    for name in imports(source, path):
        package, *inner = name.split(".")
        if package in ("tests", "colabs"):
            found.append(f"{path} must not import {name}")
        elif package == "experiments" and (own != package or inner[:1] != rest[:1]):
            found.append(f"{path} must not import {name}, of another family")
        elif package == "jaxml" and inner:
            found += _layer_violation(path, own, inner[0])
            if any(p[0] == "_" and not p.endswith("__") for p in inner):
                found.append(f"{path} must not import the private {name}")
    return found


def _layer_violation(path: Path, own: str, other: str) -> list[str]:
    if other == own or other in ("__version__", "catalogue") or (own, other) in ARROWS:
        return []
    if own in ("__init__", "__main__"):  # `import jaxml` stays light
        return [] if other == "export" else [f"{path} must not import jaxml.{other}"]
    if other not in LAYER:
        return [f"{path} imports jaxml.{other}, which has no layer"]
    if LAYER[other] < LAYER[own]:
        return []
    return [f"jaxml.{own} must not import jaxml.{other} ({path})"]


@pytest.mark.parametrize("path", sources("jaxml", "experiments"), ids=str)
def test_imports_point_down(path):
    assert not violations((ROOT / path).read_text("utf-8"), path)


def test_every_folder_has_a_layer():
    names = {path.with_suffix("").parts[1] for path in sources("jaxml")}
    assert names - {"__init__", "__main__"} <= set(LAYER)


def test_exceptions_are_still_needed():
    """An arrow or a long file that went away leaves its excuse with it."""
    used = {
        (path.with_suffix("").parts[1], name.split(".")[1])
        for path in sources("jaxml")
        for name in imports((ROOT / path).read_text("utf-8"), path)
        if name.startswith("jaxml.")
    }
    assert set(ARROWS) <= used
    assert set(LONG) <= {str(path) for path in long_files()}
    assert all(len(reason) > 20 for reason in (*ARROWS.values(), *LONG.values()))


def long_files() -> list[Path]:
    files = sources("jaxml", "experiments")
    return [
        p for p in files if len((ROOT / p).read_text("utf-8").splitlines()) > MAX_LINES
    ]


def test_long_files_have_a_reason():
    assert {str(path) for path in long_files()} <= set(LONG)


def test_files_are_named_after_what_they_hold():
    named = sources("jaxml", "experiments", "tests")
    assert not [path for path in named if NAMELESS & set(path.with_suffix("").parts)]


def test_families_are_flat():
    paths = [path for path in sources("jaxml") if path.parts[1] in FAMILIES]
    assert not [path for path in paths if len(path.parts) > 3]


def test_every_folder_is_a_package():
    """Without __init__.py a folder imports, but the catalogue does not see it."""
    folders = {path.parent for path in sources("jaxml")}
    assert not [path for path in folders if not (ROOT / path / "__init__.py").exists()]


IMPORT_EVERYTHING = """
import importlib.util, logging, os, pkgutil, sys, warnings
import jax
import flax, grain, matplotlib, optax, orbax.checkpoint, tensorflow_datasets  # not ours
import jax.experimental.pallas.mosaic_gpu  # not ours either: it writes to os.environ
if importlib.util.find_spec("sklearn"):  # so does this
    import sklearn
from jax._src import xla_bridge

def world():
    return {
        "jax.config": dict(jax.config.values),
        "os.environ": dict(os.environ),
        "sys.path": list(sys.path),
        "logging": (logging.root.level, list(logging.root.handlers)),
        "matplotlib.rcParams": repr(matplotlib.rcParams),
        "a device backend": xla_bridge.backends_are_initialized(),
    }

def walk(name):
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name.startswith("jaxml"):
            raise
        module = None  # an optional dependency is absent
    yield name
    for child in pkgutil.iter_modules(getattr(module, "__path__", ()), name + "."):
        if not child.name.endswith("__main__"):
            yield from walk(child.name)

sys.path.insert(0, sys.argv[1])
before = world()
for name in walk(sys.argv[2]):
    after = world()
    print(name, *(key for key in before if before[key] != after[key]), sep=": ")
    before = after
"""


def effects(root: Path, package: str) -> dict[str, str]:
    """Every module of a package, and what in the process its import changes."""
    command = [sys.executable, "-c", IMPORT_EVERYTHING, str(root), package]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    lines = [line.partition(": ") for line in result.stdout.splitlines()]
    return {name: changed for name, _, changed in lines}


def test_importing_has_no_side_effects():
    found = effects(ROOT, "jaxml")
    modules = {".".join(path.with_suffix("").parts) for path in sources("jaxml")}
    expected = {name.removesuffix(".__init__") for name in modules}
    assert set(found) == expected - {"jaxml.__main__"}
    assert not {name: changed for name, changed in found.items() if changed}


def test_side_effects_would_be_seen(tmp_path):
    deeds = {
        "config": ("jax.config.update('jax_enable_x64', True)", "jax.config"),
        "device": ("EYE = jax.numpy.eye(2)", "a device backend"),
        "environ": ("os.environ['XLA_FLAGS'] = ''", "os.environ"),
        "innocent": ("EYE = jax.numpy.eye", ""),
        "log": ("logging.root.setLevel(3)", "logging"),
        "path": ("import sys; sys.path.append('')", "sys.path"),
    }
    (tmp_path / "guilty").mkdir()
    (tmp_path / "guilty/__init__.py").touch()
    for name, (deed, _) in deeds.items():
        source = f"import jax, logging, os\n{deed}\n"
        (tmp_path / f"guilty/{name}.py").write_text(source)
    expected = {f"guilty.{name}": changed for name, (_, changed) in deeds.items()}
    assert effects(tmp_path, "guilty") == {"guilty": "", **expected}


def test_the_wheel_holds_the_library_alone(tmp_path):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == [
        "jaxml"
    ]
    wheel = pytest.importorskip("hatchling.builders.wheel", reason="needs hatchling")
    (path,) = wheel.WheelBuilder(str(ROOT)).build(directory=str(tmp_path))
    names = zipfile.ZipFile(path).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"jaxml"}
    assert {str(path) for path in sources("jaxml")} <= set(names)


FORBIDDEN = {
    "family imports train": ("ssl/x", "from jaxml.train.step import gradient_step"),
    "train imports a family": ("train/x", "import jaxml.ssl.simclr"),
    "family imports a family": ("ssl/x", "from jaxml import detection"),
    "through two dots": ("ssl/x", "from ..train import fit"),
    "through two dots alone": ("ssl/x", "from .. import train"),
    "under another name": ("ssl/x", "import jaxml.train as t"),
    "inside a function": ("ssl/x", "def f():\n    from jaxml.train import fit"),
    "for types only": ("ssl/x", "if TYPE_CHECKING:\n    import jaxml.train"),
    "by lazy attribute": ("ssl/x", "import jaxml\njaxml.train.fit"),
    "by name": ("ssl/x", "import importlib\nimportlib.import_module('jaxml.train')"),
    "upwards": ("ops/x", "from jaxml.nn import mlp"),
    "sideways": ("ops/x", "from jaxml.parallel import mesh"),
    "typing needs nothing": ("typing", "from jaxml.method import Method"),
    "interop is above": ("trees/x", "from jaxml.interop import xgboost"),
    "the root stays light": ("__init__", "from jaxml.typing import Array"),
    "tests": ("ops/x", "from tests.conftest import rng"),
    "experiments": ("ssl/x", "from experiments.ssl import protocol"),
    "a folder without a layer": ("ssl/x", "from jaxml.vision import f"),
    "private": ("ssl/x", "from jaxml.ssl.teacher import _decay"),
}
ALLOWED = {
    "down": ("ssl/x", "from jaxml.nn.mlp import Mlp"),
    "own folder": ("ssl/x", "from .teacher import decay\nfrom . import queue"),
    "one dot down": ("nn/x", "from ..ops import resize"),
    "other libraries": ("ops/x", "import jax._src\nfrom flax.training import x"),
    "version": ("train/x", "import jaxml\njaxml.__version__"),
    "root": ("__init__", "from jaxml.export import catalogue"),
    "interop": ("interop/x", "from jaxml.trees import boosting"),
}


@pytest.mark.parametrize(("path", "source"), FORBIDDEN.values(), ids=FORBIDDEN.keys())
def test_forbidden_imports_are_caught(path, source):
    assert len(violations(source, Path(f"jaxml/{path}.py"))) == 1


@pytest.mark.parametrize(("path", "source"), ALLOWED.values(), ids=ALLOWED.keys())
def test_allowed_imports_pass(path, source):
    assert not violations(source, Path(f"jaxml/{path}.py"))


def test_experiments_stand_on_the_library_and_their_own_family():
    source = textwrap.dedent("""
        import jaxml.train
        from experiments.ssl import protocol
        from experiments.faces import protocol
        from tests.oracle import reference
        """)
    found = violations(source, Path("experiments/ssl/simclr_digits.py"))
    assert [text.split("import ")[1] for text in found] == [
        "experiments.faces.protocol, of another family",
        "tests.oracle.reference",
    ]
