"""Hourglass: CornerNet's size, odd pictures, and that every stack is reached."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.nn import Hourglass

TINY = {"widths": (4, 6, 8), "sizes": (1, 2, 1), "stem": 3}


def block(before, width, stride=1):
    """Parameters of a residual block: two convolutions, norms, and a shortcut."""
    shortcut = before * width + 2 * width if stride > 1 or before != width else 0
    return 9 * before * width + 9 * width * width + 4 * width + shortcut


def test_cornernet_s_parameters_are_counted_by_hand():
    widths, sizes = (256, 256, 384, 384, 384, 512), (2, 2, 2, 2, 2, 4)
    expected = 49 * 3 * 128 + 256 + block(128, 256, 2)
    for stack in range(2):
        for level in range(5):
            width, below = widths[level], widths[level + 1]
            expected += 2 * block(width, width)  # beside
            expected += block(width, below, 2) + block(below, below)  # down
            expected += block(below, below) + block(below, width)  # up
        expected += sizes[-1] * block(512, 512)
        expected += 9 * 256 * 256 + 512
        if stack == 0:
            expected += 2 * (256 * 256 + 512) + block(256, 256)
    shapes = jax.eval_shape(
        lambda x: Hourglass().init(jax.random.key(0), x, train=False),
        jnp.zeros((1, 128, 128, 3)),
    )
    assert sum(x.size for x in jax.tree.leaves(shapes["params"])) == expected


@pytest.mark.parametrize("size", [(32, 32), (37, 50), (4, 4)])
def test_every_stack_answers_at_a_quarter(size):
    outputs = jax.eval_shape(
        lambda x: Hourglass(3, **TINY).init_with_output(
            jax.random.key(0), x, train=False
        )[0],
        jnp.zeros((2, *size, 3)),
    )
    rows, columns = ((n + 3) // 4 for n in size)  # halved twice, rounded up
    assert [x.shape for x in outputs] == [(2, rows, columns, 4)] * 3


def test_the_first_stack_knows_nothing_of_the_second(rng):
    images = np.float32(rng.normal(size=(1, 32, 32, 3)))
    model = Hourglass(2, **TINY)
    variables = model.init(jax.random.key(0), images, train=False)

    def loss(params, stack):
        variables_of = {**variables, "params": params}
        return jnp.sum(model.apply(variables_of, images, train=False)[stack] ** 2)

    first, second = (
        jax.jit(jax.grad(loss), static_argnums=1)(variables["params"], i)
        for i in range(2)
    )
    for name in first:
        reached = any(np.any(g) for g in jax.tree.leaves(first[name]))
        later = name.startswith(("stack1", "output1", "before", "after", "between"))
        assert reached != later, name
    assert all(any(np.any(g) for g in jax.tree.leaves(second[name])) for name in second)


def test_bad_options_are_refused():
    images = jnp.zeros((1, 8, 8, 3))
    for options in ({"stacks": 0}, {"widths": (4, 6)}):
        with pytest.raises(ValueError, match="must be a stack"):
            Hourglass(**{**TINY, **options}).init(
                jax.random.key(0), images, train=False
            )
