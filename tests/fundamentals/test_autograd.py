"""Operators against torch.autograd's rules, JAX and finite differences; changes in place.

The comparison with PyTorch itself, over random graphs, stands in `tests/oracle`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.fundamentals.autograd import (
    Tensor,
    concatenate,
    grad,
    no_grad,
    operation,
    stack,
    where,
)
from tests.fundamentals.random_graphs import random_leaves, random_program, run


@pytest.fixture(autouse=True)
def wide():
    """Rules are compared in float64; broadcasting is part of what is compared."""
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        yield


# name -> (the same expression on tensors and on arrays, shapes of its inputs)
ONE, TWO = [(3, 4)], [(3, 4), (1, 4)]
CASES = {
    "add": (lambda x, y: x + y, TWO),
    "sub": (lambda x, y: 1.0 - x - y, TWO),
    "mul": (lambda x, y: x * y * 2.0, [(3, 1), (2, 1, 4)]),
    "div": (lambda x, y: 1.0 / (x + 3.0) + x / (y * y + 1.0), TWO),
    "pow": (lambda x, y: (x * x + 0.1) ** y + 2.0**x, TWO),
    "neg": (lambda x: -x, ONE),
    "matmul": (lambda x, y: x @ y, [(2, 3, 4), (4, 5)]),
    "matmul_vector": (lambda x, y: x @ y, [(2, 3, 4), (4,)]),
    "vector_matmul": (lambda x, y: x @ y, [(4,), (2, 4, 3)]),
    "dot": (lambda x, y: x @ y, [(4,), (4,)]),
    "sum": (lambda x: x.sum(0) * x.sum(1, keepdims=True) + x.sum(), ONE),
    "sum_axes": (lambda x: x.sum((0, 2)) * x.sum(-1).sum(0), [(2, 3, 4)]),
    "mean": (lambda x: x.mean(1) * x.mean(), [(4, 4)]),
    "max": (lambda x: x.max(1) * x.max(), ONE),
    "reshape": (lambda x: x.reshape(2, 6) * x.reshape(-1)[:6], ONE),
    "transpose": (lambda x: x.transpose(2, 0, 1) @ x.transpose(2, 1, 0), [(3, 3, 2)]),
    "T": (lambda x: x.T @ x, ONE),
    "slice": (lambda x: x[1:, ::2] * x[0, 0] + x[-1, 1], ONE),
    "take": (lambda x: x[np.array([0, 0, 2])] * x[np.array([1, 1, 1]), :], ONE),
}
FUNCTIONS = ("exp", "sin", "cos", "tanh", "sqrt", "log")


@pytest.mark.parametrize("name", CASES)
def test_rules_equal_those_of_jax(name, rng):
    function, shapes = CASES[name]
    arrays = [rng.normal(size=shape) for shape in shapes]
    check(function, function, arrays, rng)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_equal_those_of_jax(name, rng):
    array = rng.uniform(0.5, 2.0, size=(3, 4))
    ours = lambda x: getattr(x, name)() * x
    check(ours, lambda x: getattr(jnp, name)(x) * x, [array], rng)


def test_other_functions(rng):
    x = rng.normal(size=(3, 4))
    check(lambda x: x.sigmoid(), jax.nn.sigmoid, [x], rng)
    check(lambda x: x.relu() * x, lambda x: jax.nn.relu(x) * x, [x], rng)
    check(lambda x: x.abs() * x, lambda x: jnp.abs(x) * x, [x], rng)
    softmax = lambda x: jax.nn.softmax(1e3 * x)
    check(lambda x: (1e3 * x).softmax(), softmax, [1e-3 * x], rng)
    lse = lambda x: jax.nn.logsumexp(x + 1e3, 1)
    check(lambda x: (x + 1e3).logsumexp(1), lse, [x], rng)
    mask = x > 0
    pick = lambda x: where(mask, x * x, 3.0 * x)
    check(pick, lambda x: jnp.where(mask, x * x, 3.0 * x), [x], rng)
    join = lambda x: concatenate([x, x * 2.0], 1) * stack([x, x], -1).reshape(3, 8)
    check(join, lambda x: jnp.hstack([x, 2 * x]) * x.repeat(2, 1), [x], rng)


def check(ours, theirs, arrays, rng):
    """Values, first and second vector-Jacobian products."""
    tensors = [Tensor(x, requires_grad=True) for x in arrays]
    out = ours(*tensors)
    expected, pull = jax.vjp(theirs, *map(jnp.asarray, arrays))
    np.testing.assert_allclose(out.data, expected, rtol=1e-12, atol=1e-12)
    weight = rng.normal(size=expected.shape)
    got = grad(out, tensors, Tensor(weight), create_graph=True, allow_unused=True)
    for mine, true in zip(got, pull(jnp.asarray(weight)), strict=True):
        np.testing.assert_allclose(mine.data, true, rtol=1e-10, atol=1e-10)
    if not got[0].requires_grad:  # linear: the gradient is a constant
        return
    energy = lambda *xs: jnp.sum(
        jnp.sin(jax.vjp(theirs, *xs)[1](jnp.asarray(weight))[0])
    )
    second = grad(got[0].sin().sum(), tensors, allow_unused=True)
    true = jax.grad(energy, tuple(range(len(arrays))))(*map(jnp.asarray, arrays))
    for mine, value in zip(second, true, strict=True):
        mine = np.zeros_like(value) if mine is None else mine.data
        np.testing.assert_allclose(mine, value, rtol=1e-9, atol=1e-9)


def test_edges_are_where_torch_has_them():
    x = Tensor(jnp.array([-1.0, 0.0, 2.0]), requires_grad=True)
    of = lambda y: np.asarray(grad(y.sum(), x)[0].data)
    np.testing.assert_array_equal(of(x.relu()), [0, 0, 1])
    np.testing.assert_array_equal(of(x.abs()), [-1, 0, 1])
    np.testing.assert_array_equal(of(x**0.0), [0, 0, 0])
    np.testing.assert_array_equal(of(x**1.0), [1, 1, 1])
    np.testing.assert_array_equal(of(x**2.0), [-2, 0, 4])
    tied = Tensor(jnp.array([1.0, 3.0, 3.0]), requires_grad=True)
    np.testing.assert_array_equal(grad(tied.max(), tied)[0].data, [0, 0.5, 0.5])


def test_gradients_have_the_type_of_their_tensor():
    x = Tensor(jnp.ones((2, 2), jnp.float32), requires_grad=True)
    y = Tensor(jnp.ones((1, 2), jnp.bfloat16), requires_grad=True)
    (x * y + y).sum().backward()
    assert (x.grad.dtype, y.grad.dtype) == (jnp.float32, jnp.bfloat16)
    assert y.grad.shape == (1, 2)
    assert (x * 2).dtype == (2**x).dtype == jnp.float32


def test_numpy_leaves_its_operators(rng):
    array = rng.normal(size=(2, 3))
    x = Tensor(np.ones((2, 3)), requires_grad=True)
    (array * x).sum().backward()
    np.testing.assert_array_equal(x.grad.data, array)
    with pytest.raises(RuntimeError, match="requires a gradient"):
        x.numpy()
    np.testing.assert_array_equal(x.detach().numpy(), 1)


def test_comparisons_and_plain_python():
    x = Tensor([1.0, 2.0, 3.0], requires_grad=True)
    assert [(x < 2).data.tolist(), (x >= 2).data.tolist()] == [[1, 0, 0], [0, 1, 1]]
    assert [(x == 2).data.tolist(), (x != 2).data.tolist()] == [[0, 1, 0], [1, 0, 1]]
    assert [(x <= 2).data.tolist(), (x > 2).data.tolist()] == [[1, 1, 0], [0, 0, 1]]
    assert len(x) == 3
    assert sum(x).item() == 6
    y = x.sum()
    while y < 100:  # the graph is that of this run
        y = y * 2.0
    y.backward()
    np.testing.assert_array_equal(x.grad.data, 32)
    assert repr(x) == "Tensor([1., 2., 3.], requires_grad=True)"
    assert repr(y) == "Tensor(192., made by mul)"


def test_changes_in_place_join_the_graph():
    x = Tensor([1.0, 2.0, 3.0], requires_grad=True)
    y = x * 2.0
    y.retain_grad()
    y += x
    y *= 4.0
    y -= 1.0
    y /= 2.0
    y.sum().backward()  # (12 x - 1) / 2
    np.testing.assert_allclose(x.grad.data, [6, 6, 6])
    np.testing.assert_array_equal(y.grad.data, 1)
    x.grad = None
    z = x * 1.0
    z.exp_().sum().backward()
    np.testing.assert_allclose(x.grad.data, np.exp([1, 2, 3]))


def test_parts_can_be_assigned():
    x = Tensor([1.0, 2.0, 3.0], requires_grad=True)
    new = Tensor(5.0, requires_grad=True)
    y = x * x
    y[1] = new * 3.0
    np.testing.assert_array_equal(y.data, [1, 15, 9])
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.data, [2, 0, 6])
    assert new.grad.item() == 3
    buffer = Tensor(jnp.zeros(3))
    buffer.copy_(x)
    (buffer * 2.0).sum().backward()
    np.testing.assert_array_equal(x.grad.data, [4, 2, 8])


def test_leaves_change_inside_no_grad_alone():
    x = Tensor([1.0, 2.0], requires_grad=True)
    with pytest.raises(RuntimeError, match="leaf that requires a gradient"):
        x += 1.0
    loss = (x * x).sum()
    with no_grad():
        x -= 0.5
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()
    (x * x).sum().backward()
    np.testing.assert_array_equal(x.grad.data, [1, 3])
    with pytest.raises(
        RuntimeError, match=r"must keep float64\[2\], got float64\[3, 2\]"
    ):
        (x * 1.0).add_(jnp.ones((3, 1)))


def test_any_jax_function_is_an_operation(rng):
    x, y = (Tensor(rng.uniform(1, 2, size=3), requires_grad=True) for _ in range(2))
    hypot = operation(jnp.hypot)
    (first,) = grad(hypot(x, y).sum(), x, create_graph=True)
    r = np.hypot(x.data, y.data)
    np.testing.assert_allclose(first.data, x.data / r)
    (mixed,) = grad(first.sum(), y)
    np.testing.assert_allclose(mixed.data, -x.data * y.data / r**3)


def test_a_network_learns_as_with_jax(rng):
    """Twenty steps of gradient descent, parameter by parameter."""
    sizes = [(2, 8), (8,), (8, 1)]
    start = [rng.normal(size=size) for size in sizes]
    inputs = rng.normal(size=(32, 2))
    targets = np.sin(inputs.sum(1, keepdims=True))

    def loss(w, b, v, x, tanh):
        return ((tanh(x @ w + b) @ v - targets) ** 2.0).mean()

    ours = [Tensor(p, requires_grad=True) for p in start]
    theirs = [jnp.asarray(p) for p in start]
    slope = jax.grad(lambda ps: loss(*ps, inputs, jnp.tanh))
    for _ in range(20):
        loss(*ours, Tensor(inputs), Tensor.tanh).backward()
        with no_grad():
            for p in ours:
                p -= p.grad * 0.1
                p.grad = None
        theirs = [p - 0.1 * g for p, g in zip(theirs, slope(theirs), strict=True)]
    for mine, true in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine.data, true, rtol=1e-9)


def moved(leaves, step, size):
    return [x + size * d for x, d in zip(leaves, step, strict=True)]


def test_random_graphs_equal_jax_and_finite_differences():
    rng = np.random.default_rng(0)
    on_arrays = lambda name, x: getattr(jnp, name)(x)
    on_numpy = lambda name, x: getattr(np, name)(x)
    on_tensors = lambda name, x: getattr(x, name)()
    for i in range(250):
        leaves = random_leaves(rng, 3)
        program = random_program(rng, 3, int(rng.integers(1, 9)))
        tensors = [Tensor(x, requires_grad=True) for x in leaves]
        run(program, tensors, on_tensors).backward()
        got = [x.grad.data if x.grad is not None else 0 * x.data for x in tensors]
        step = [rng.normal(size=x.shape) for x in leaves]
        ahead, behind = (
            run(program, moved(leaves, step, size), on_numpy) for size in (1e-6, -1e-6)
        )
        slope = sum(np.sum(g * d) for g, d in zip(got, step, strict=True))
        assert slope == pytest.approx((ahead - behind) / 2e-6, rel=1e-4, abs=1e-6), i
        if i % 40 == 0:  # traces cost more than finite differences
            expected = jax.grad(lambda xs: run(program, xs, on_arrays))(leaves)
            for mine, true in zip(got, expected, strict=True):
                np.testing.assert_allclose(mine, true, rtol=1e-9, atol=1e-12)
