"""What every public name promises, checked on all that the catalogue finds.

A method is tried on the small instance that `contract_cases.py` holds for it.
"""

import functools
import importlib
import inspect
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import jaxml
from experiments.__main__ import experiments
from jaxml.export import Entry, catalogue, exported_name, skipped
from jaxml.method import Batch, Method, ModelState, Params
from jaxml.train import TrainState, gradient_step, init_state, restore, save
from tests.contract_cases import CASES, SIZE
from tests.test_architecture import FAMILIES

ROOT = Path(__file__).parents[1]
ENTRIES = catalogue()
MODULES = sorted({entry.module for entry in ENTRIES})
PACKAGES = sorted({module.rpartition(".")[0] for module in MODULES} - {"jaxml"})
METHODS = [entry for entry in ENTRIES if entry.family in FAMILIES and entry.is_method]
NO_PAPER: dict[str, str] = {}  # a family's module without a reference: why

by_method = pytest.mark.parametrize("entry", METHODS, ids=lambda entry: entry.name)


# Every name.


def test_the_catalogue_is_not_empty():
    assert METHODS
    assert len({entry.name for entry in ENTRIES}) == len(ENTRIES)


def test_docstrings_open_with_a_summary():
    bare = [entry.name for entry in ENTRIES if not entry.summary]
    assert not bare, f"these must have a docstring of their own: {bare}"


def test_symbols_are_found_under_their_names():
    def reached(entry: Entry) -> bool:
        folder, _, symbol = entry.name.rpartition(".")
        package = importlib.import_module(f"jaxml.{folder}")
        return getattr(package, symbol, None) is entry.symbol

    missing = [entry.name for entry in ENTRIES if not reached(entry)]
    assert not missing, f"their folders must re-export these: {missing}"


def test_symbols_carry_their_names():
    for entry in ENTRIES:
        expected = None if entry.is_constant else entry.name
        assert exported_name(entry.symbol) == expected


@pytest.mark.parametrize("package", PACKAGES)
def test_what_a_folder_offers_is_exported(package):
    module = importlib.import_module(package)
    folder = package.removeprefix("jaxml.")
    names = {name for entry in ENTRIES for name in (entry.name, *entry.aliases)}
    offered = [
        f"{folder}.{name}"
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    ]
    missing = sorted(set(offered) - names)
    assert not missing, f"@export, or export_constant, must name these: {missing}"


def test_every_module_has_a_test_file_of_its_name():
    def test_file(module: str) -> Path:
        *folders, name = module.split(".")[1:]
        return Path("tests", *folders, f"test_{name}.py")

    files = sorted(map(test_file, MODULES))
    missing = [str(file) for file in files if not (ROOT / file).exists()]
    assert not missing, f"write these: {missing}"


def test_only_optional_packages_may_be_absent():
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    optional = project.partition("[project.optional-dependencies]")[2].lower()
    for module, reason in skipped().items():
        package = reason.split()[1].rstrip(",").split(".")[0].lower()
        assert f'"{package}' in optional.replace("-", "_"), (module, reason)


# Every family.


def test_families_cite_their_papers():
    unread = {e.module for e in ENTRIES if e.family in FAMILIES and e.paper is None}
    missing = sorted(unread - set(NO_PAPER))
    assert not missing, (
        f'these must say Reference: authors, "Title", venue, https://...: {missing}'
    )


# Every method.


@by_method
def test_a_method_has_an_experiment(entry):
    family, name = entry.name.split(".")
    found = [row for row in experiments() if row.family == family]
    assert [row for row in found if row.name.startswith(f"{name}_")], (
        f"add experiments/{family}/{name}_<dataset>.py"
    )


@by_method
def test_a_method_has_a_row_in_the_readme(entry):
    path = ROOT / "README.md"
    if not path.exists():
        pytest.skip("README.md is not written yet")
    link = f"| [{entry.module.partition('.')[2]}]("
    rows = [row for row in path.read_text("utf-8").split("\n") if row.startswith(link)]
    name = entry.name.rpartition(".")[2]
    assert any(f"`{name}`" in row for row in rows), (
        "run python -m jaxml --write README.md"
    )


@by_method
def test_a_method_has_a_case(entry):
    assert entry.name in CASES, f"add a case for {entry.name} to contract_cases.py"


def test_cases_are_of_methods():
    assert set(CASES) <= {entry.name for entry in METHODS}


with_case = pytest.mark.parametrize("name", CASES)


class Case(NamedTuple):
    """A method, and what its pieces return for a batch, as shapes and dtypes."""

    method: Method
    batch: Batch
    params: Params
    model_state: ModelState


@functools.cache
def case(name: str) -> Case:
    method, batch = CASES[name]()
    return Case(method, batch, *jax.eval_shape(method.init, jax.random.key(0), batch))


@with_case
def test_init_makes_floating_parameters(name):
    params = jax.tree.leaves(case(name).params)
    assert params
    assert all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in params)


@with_case
def test_loss_is_a_scalar_with_scalar_metrics(name):
    method, batch, params, model_state = case(name)
    value, (new_state, metrics) = jax.eval_shape(
        method.loss, params, model_state, batch, jax.random.key(0)
    )
    chex.assert_shape(value, ())
    assert value.dtype == jnp.float32
    assert metrics.keys() >= {"loss"}
    assert all(isinstance(key, str) for key in metrics)
    chex.assert_shape(jax.tree.leaves(metrics), ())
    chex.assert_trees_all_equal_shapes_and_dtypes(new_state, model_state)


@with_case
def test_predict_answers_for_every_sample(name):
    method, batch, params, model_state = case(name)
    outputs = jax.eval_shape(method.predict, params, model_state, batch)
    leaves = jax.tree.leaves(outputs)
    assert leaves
    assert {leaf.shape[0] for leaf in leaves} == {SIZE}


@with_case
def test_after_update_keeps_the_structure(name):
    method, _, params, model_state = case(name)
    step = jnp.zeros((), jnp.int32)
    after = jax.eval_shape(method.after_update, params, model_state, step)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, (params, model_state))


@with_case
def test_steps_are_stable_and_resume_from_a_checkpoint(name, tmp_path):
    method, batch, *_ = case(name)
    optimizer = optax.adam(1e-3)
    start = init_state(method, optimizer, jax.random.key(0), batch)
    step = gradient_step(method, optimizer, jax.random.key(1))
    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(step, n=1))  # weak types count as well

    first, metrics = step(start, batch)
    assert isinstance(first, TrainState)
    assert first.step == start.step + 1 == 1
    chex.assert_trees_all_equal_shapes_and_dtypes(first, start)
    chex.assert_tree_all_finite((first, metrics))
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), start.params, first.params)
    assert any(jax.tree.leaves(moved))

    save(tmp_path / "checkpoints", first)
    restored = restore(tmp_path / "checkpoints", like=start)
    chex.assert_trees_all_equal(restored, first)
    chex.assert_trees_all_equal(step(restored, batch), step(first, batch))


# The contract itself.


def test_a_new_method_without_a_case_is_told():
    def builder() -> Method: ...

    entry = Entry("ssl.new", builder, "jaxml.ssl.new", "0.1", (), {}, False)
    assert entry.is_method
    with pytest.raises(AssertionError, match=r"add a case for ssl\.new"):
        test_a_method_has_a_case(entry)


def test_introspection_finds_what_it_should():
    assert {"ssl.simclr", "ssl.simsiam"} <= {entry.name for entry in METHODS}
    assert not any(entry.family == "compose" for entry in METHODS)
    assert inspect.ismodule(jaxml.ssl)
