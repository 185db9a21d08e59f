"""The tape against torch.autograd: random graphs (with differences and JAX), and refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.fundamentals.autograd import Tensor, grad
from tests.fundamentals.random_graphs import random_leaves, random_program, run

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytestmark = pytest.mark.oracle


@pytest.fixture(autouse=True)
def wide():
    """float64, and broadcasting as in PyTorch."""
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        yield


def on_tensors(name, x):
    return getattr(x, name)()


def on_arrays(name, x):
    return getattr(jnp, name)(x)


def on_numpy(name, x):
    return getattr(np, name)(x)


@pytest.mark.parametrize("seed", range(4))
def test_a_thousand_random_graphs(seed):
    """Against PyTorch, `jax.vjp`, and differences along a line; every fifth a second time."""
    rng = np.random.default_rng(seed)
    for i in range(250):
        leaves = random_leaves(rng, 3)
        program = random_program(rng, 3, int(rng.integers(1, 9)))
        ours = [Tensor(x, requires_grad=True) for x in leaves]
        theirs = [torch.tensor(x, requires_grad=True) for x in leaves]
        twice = i % 5 == 0
        out = run(program, ours, on_tensors)
        mine = grad(out, ours, None, None, twice, True)
        value = run(program, theirs, on_tensors)
        true = torch.autograd.grad(value, theirs, None, None, twice, allow_unused=True)
        compare(mine, true)
        found = [
            0 * x if g is None else np.asarray(g.data)
            for g, x in zip(mine, leaves, strict=True)
        ]
        step = [np.cos(1 + 5 * x) for x in leaves]
        ahead, behind = (
            run(
                program,
                [x + s * d for x, d in zip(leaves, step, strict=True)],
                on_numpy,
            )
            for s in (1e-6, -1e-6)
        )
        slope = sum(np.sum(g * d) for g, d in zip(found, step, strict=True))
        assert slope == pytest.approx((ahead - behind) / 2e-6, rel=1e-4, abs=1e-6), i
        on_jax = functools.partial(run, program, f=on_arrays)
        value, pull = jax.vjp(on_jax, [jnp.asarray(x) for x in leaves])
        np.testing.assert_allclose(out.data, value, rtol=1e-12)
        for g, x in zip(found, pull(jnp.ones_like(value))[0], strict=True):
            np.testing.assert_allclose(g, x, rtol=1e-8, atol=1e-10)
        if twice and any(g is not None and g.requires_grad for g in true):
            total = lambda gs: sum((g**2).sum() for g in gs if g is not None)
            mine = grad(total(mine), ours, allow_unused=True)
            compare(mine, torch.autograd.grad(total(true), theirs, allow_unused=True))


def compare(mine, true):
    for got, expected in zip(mine, true, strict=True):
        assert (got is None) == (expected is None)
        if got is not None:
            np.testing.assert_allclose(
                got.data, expected.detach().numpy(), rtol=1e-8, atol=1e-10
            )


def by_both(program):
    """Runs the same lines on tensors of either library."""
    program(lambda x: Tensor(np.array(x), requires_grad=True))
    program(lambda x: torch.tensor(np.array(x), requires_grad=True))


def test_both_refuse_the_same():
    def freed(leaf):
        y = (leaf([1.0, 2.0]) ** 2).sum()
        y.backward()
        with pytest.raises(RuntimeError):
            y.backward()

    def several_numbers(leaf):
        with pytest.raises(RuntimeError):
            (leaf([1.0, 2.0]) * 2).backward()

    def leaf_in_place(leaf):
        with pytest.raises(RuntimeError):
            leaf([1.0]).add_(1.0)

    def stale(leaf):
        y = leaf([1.0]) * 2
        z = (y * y).sum()
        y.add_(1.0)
        with pytest.raises(RuntimeError):
            z.backward()

    def stale_output(leaf):
        y = (leaf([1.0]) * 2).exp()
        z = y.sum()
        y.mul_(2.0)
        with pytest.raises(RuntimeError):
            z.backward()

    def no_graph(leaf):
        with pytest.raises(RuntimeError):
            leaf([1.0]).detach().sum().backward()

    for program in (
        freed,
        several_numbers,
        leaf_in_place,
        stale,
        stale_output,
        no_graph,
    ):
        by_both(program)


def test_both_allow_the_same():
    def additions_run_twice(leaf):
        y = (leaf([1.0]) + 1.0).sum()
        y.backward()
        y.backward()

    def a_change_that_nobody_saved(leaf):
        x = leaf([1.0, 2.0])
        y = x * 2
        z = y.sum()
        y.add_(1.0)
        z.backward()
        assert x.grad.tolist() == [2, 2]

    def a_chain_in_place(leaf):
        x = leaf([1.0, 2.0])
        y = x * 1.0
        y.mul_(3.0)
        y[0] = x[1] * 5.0
        y.exp_()
        y.sum().backward()
        expected = [0, 5 * np.exp(10) + 3 * np.exp(6)]
        np.testing.assert_allclose(np.array(x.grad.tolist()), expected)

    for program in (additions_run_twice, a_change_that_nobody_saved, a_chain_in_place):
        by_both(program)
