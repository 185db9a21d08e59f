"""The derivatives around a pair of kernels, with plain functions in their place."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.attention.flash.rule import CHUNKED, Kernels, flash
from jaxml.attention.reference import reference


@pytest.fixture
def small(call):
    return call(
        batch=1,
        queries=5,
        keys=7,
        heads=2,
        kv_heads=1,
        dim=3,
        value_dim=2,
        bias=(1, 2, 5, 1),
        is_causal=True,
        causal_offset=-1,  # the first query sees nothing
        logits_soft_cap=2.0,
    )


def value(run, spec, context, operands):
    out, lse = run(spec, operands, context)
    seen = jnp.where(lse > -jnp.inf, lse, 0)
    return jnp.sum(jnp.sin(out)) + jnp.sum(jnp.cos(seen))


def test_every_order_of_reverse_mode(small):
    spec, operands, context = small
    rng = np.random.default_rng(1)
    way = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), operands
    )

    @partial(jax.jit, static_argnums=0)
    def derivatives(run):
        first = jax.grad(partial(value, run, spec, context))

        def along(operands):
            dots = jax.tree.map(jnp.vdot, first(operands), way)
            return sum(jax.tree.leaves(dots))

        forward_over_reverse = jax.jvp(first, (operands,), (way,))[1]
        return first(operands), jax.grad(along)(operands), forward_over_reverse

    actual, expected = (
        derivatives(run) for run in (partial(flash, CHUNKED), reference)
    )
    chex.assert_trees_all_close(actual, expected, rtol=2e-4, atol=2e-5)
    chex.assert_tree_all_finite(actual)


def test_forward_mode_is_refused(small):
    spec, operands, context = small
    f = partial(value, partial(flash, CHUNKED), spec, context)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(f, (operands,), (operands,))


def test_the_two_passes_are_what_runs(small):
    """The backward pass gets what the forward pass has kept, and its gradients count."""
    spec, operands, context = small

    def forward(spec, operands, context):
        return CHUNKED.forward(spec, operands, context)[0], {"kept": jnp.float32(3)}

    def backward(spec, operands, context, results, saved, changes):
        grads = CHUNKED.backward(spec, operands, context, results, (), changes)
        return tuple(saved["kept"] * g for g in grads)

    def gradient(kernels):
        return jax.grad(partial(value, partial(flash, kernels), spec, context))(
            operands
        )

    tripled, plain = gradient(Kernels(forward, backward)), gradient(CHUNKED)
    expected = jax.tree.map(lambda g: 3 * g, plain)._replace(bias=plain.bias)
    chex.assert_trees_all_close(tripled, expected, rtol=1e-5, atol=1e-6)


def test_nothing_to_attend_needs_no_kernel(call):
    spec, operands, context = call(keys=0, bias=(1, 4, 37, 1))
    never = Kernels(None, None)
    out, lse = flash(never, spec, operands, context)
    assert not out.any()
    assert (lse == -jnp.inf).all()
