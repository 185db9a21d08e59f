"""The engine: order, hooks, freeing, depth, and gradients of intermediate tensors."""

import gc
import weakref

import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.fundamentals.autograd import (
    Tensor,
    backward,
    enable_grad,
    grad,
    is_grad_enabled,
    no_grad,
)


def leaf(*numbers):
    return Tensor(jnp.array(numbers), requires_grad=True)


def test_gradients_add_up_in_leaves():
    x = leaf(2.0)
    for _ in range(2):
        (x * x).sum().backward()
    assert x.grad.item() == 8
    x.grad = None
    backward([(x * x).sum(), (3.0 * x).sum()])
    assert x.grad.item() == 7


def test_a_node_waits_for_all_its_gradients():
    """`middle` gets three gradients at different depths; its rules must run once."""
    x, calls = leaf(1.0), []
    middle = x * 2.0
    middle.register_hook(lambda g: calls.append(g.item()))
    (middle * middle * middle + (middle.exp() * 0.0) + middle).sum().backward()
    assert calls == [13]
    assert x.grad.item() == 26


def test_a_second_pass_needs_the_graph():
    x = leaf(3.0)
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward()
    assert x.grad.item() == 12
    with pytest.raises(RuntimeError, match=r"mul has been freed .*retain_graph=True"):
        y.backward()
    z = (x + 1.0).sum()  # nothing was saved, nothing is missing
    z.backward()
    z.backward()
    assert x.grad.item() == 14


def test_the_graph_lets_go_of_what_it_saved():
    x = leaf(1.0, 2.0)
    kept = x.exp()
    there = weakref.ref(kept)
    y = (kept * kept).sum()
    del kept
    gc.collect()
    assert there() is not None
    y.backward()
    gc.collect()
    assert there() is None


def test_several_numbers_need_a_gradient():
    x = leaf(1.0, 2.0)
    y = x * x
    with pytest.raises(RuntimeError, match=r"one number only.*\(2,\)"):
        y.backward()
    with pytest.raises(RuntimeError, match=r"shape \(2,\), got \(3,\)"):
        y.backward(jnp.ones(3))
    with pytest.raises(RuntimeError, match="a gradient for each tensor, got 1 for 2"):
        backward([y, y], [jnp.ones(2)])
    y.backward(jnp.array([1.0, 10.0]))  # a vector-Jacobian product
    np.testing.assert_array_equal(x.grad.data, [2, 40])


def test_what_requires_no_gradient_has_no_graph():
    x = leaf(1.0)
    with pytest.raises(RuntimeError, match="no graph"):
        x.detach().backward()
    with no_grad():
        assert not is_grad_enabled()
        assert not (x * 2.0).requires_grad
        with enable_grad():
            assert (x * 2.0).requires_grad
    assert is_grad_enabled()
    assert no_grad()(lambda: x * 2.0)().is_leaf
    with pytest.raises(RuntimeError, match="only real numbers have gradients, got int"):
        Tensor(jnp.arange(3), requires_grad=True)
    with pytest.raises(RuntimeError, match=r"turned off for leaves"):
        (x * 2.0).requires_grad = False


def test_only_leaves_keep_gradients_unless_asked():
    x = leaf(2.0)
    plain, kept = x * 3.0, x * 5.0
    kept.retain_grad()
    (plain * kept).sum().backward()
    assert plain.grad is None
    assert kept.grad.item() == 6
    assert x.grad.item() == 60


def test_hooks_see_and_replace_gradients():
    x, seen = leaf(1.0), []
    y = x * 3.0
    remove = y.register_hook(lambda g: seen.append(g.item()))
    y.register_hook(lambda g: g * 10.0)
    x.register_hook(lambda g: seen.append(g.item()))
    (y * 2.0).sum().backward(retain_graph=True)
    assert seen == [2, 60]
    assert x.grad.item() == 60
    remove()
    (y * 2.0).sum().backward(retain_graph=True)
    assert seen == [2, 60, 60]
    x.register_hook(lambda g: jnp.ones(3))
    with pytest.raises(RuntimeError, match=r"shape \(1,\), got \(3,\)"):
        (x * 1.0).sum().backward()
    with pytest.raises(RuntimeError, match="requires no gradient"):
        Tensor(1.0).register_hook(print)


def test_gradients_of_chosen_tensors():
    x, y, unused = leaf(2.0), leaf(3.0), leaf(1.0)
    middle = x * y
    out = (middle * middle).sum()
    (of_middle, of_x) = grad(out, [middle, x], retain_graph=True)
    assert (of_middle.item(), of_x.item()) == (12, 36)
    assert x.grad is None
    with pytest.raises(RuntimeError, match="plays no part"):
        grad(out, unused, retain_graph=True)
    assert grad(out, unused, allow_unused=True) == (None,)
    with pytest.raises(RuntimeError, match="must require a gradient"):
        grad(out, Tensor(1.0))


def test_gradients_of_gradients():
    x = leaf(2.0)
    (first,) = grad((x**4.0).sum(), x, create_graph=True)
    (second,) = grad(first, x, create_graph=True)
    (third,) = grad(second, x)
    assert [first.item(), second.item(), third.item()] == [32, 48, 48]
    assert not third.requires_grad
    (x**3.0).sum().backward(create_graph=True)
    x.grad.backward()
    assert x.grad.item() == pytest.approx(12 + 12)


def test_depth_is_no_limit():
    x = leaf(1.0)
    y = x
    for _ in range(10_000):
        y = y + x * 1e-4
    y.sum().backward()
    assert x.grad.item() == pytest.approx(2.0, rel=1e-3)


def test_a_change_in_place_is_noticed():
    x = leaf(1.0, 2.0)
    y = x * 2.0
    z = (y * y).sum()
    y += 1.0
    with pytest.raises(
        RuntimeError, match=r"backward pass of mul .*version 1, expected 0"
    ):
        z.backward()
    e = (x * 2.0).exp()
    f = e.sum()
    e.mul_(2.0)
    with pytest.raises(RuntimeError, match=r"backward pass of exp"):
        f.backward()
    harmless = x * 2.0
    total = harmless.sum()  # a sum saves nothing
    harmless.add_(1.0)
    total.backward()
    np.testing.assert_array_equal(x.grad.data, [2, 2])
