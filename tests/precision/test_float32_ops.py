"""The checker finds every operation of its list, wherever it hides, and nothing else."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxml.nn import ConvNet, Mlp
from jaxml.nn.resnet import resnet18
from jaxml.nn.vit import VisionTransformer
from jaxml.parallel import data_mesh
from jaxml.precision import (
    assert_float32_ops,
    half_operations,
    mixed_precision,
    policy,
)
from jaxml.ssl import SimCLR, SimSiam, simclr, simsiam

HALF = jax.ShapeDtypeStruct((4, 300), jnp.bfloat16)
ELEMENTWISE = [
    (jnp.exp, "exp"),
    (jnp.exp2, "exp2"),
    (jnp.expm1, "expm1"),
    (jnp.sinh, "sinh"),
    (jnp.cosh, "cosh"),
    (lambda x: x**0.3, "pow"),
    (jnp.log, "log"),
    (jnp.log1p, "log1p"),
    (lax.lgamma, "lgamma"),
    (lax.digamma, "digamma"),
    (lax.erf_inv, "erf_inv"),
    (jnp.sqrt, "sqrt"),
    (lax.rsqrt, "rsqrt"),
    (lax.acos, "acos"),
    (lax.asin, "asin"),
    (lax.acosh, "acosh"),
    (lax.atanh, "atanh"),
    (jnp.tan, "tan"),
    (jax.nn.softmax, "exp"),
    (jax.nn.log_softmax, "log"),
    (jax.nn.softplus, "log1p"),
    (lambda x: jnp.linalg.norm(x, axis=1), "sqrt"),
    (lambda x: lax.cumprod(x, axis=1), "cumprod"),
    (lambda x: lax.cumsum(x, axis=1), "cumsum"),
    (lambda x: lax.cumlogsumexp(x, axis=1), "cumlogsumexp"),
]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("fn, primitive", ELEMENTWISE)
def test_the_list_is_found_in_half_precision_and_left_alone_in_float32(
    fn, primitive, dtype
):
    half = jax.ShapeDtypeStruct(HALF.shape, dtype)
    with pytest.raises(AssertionError, match=rf"{primitive} \[{jnp.dtype(dtype)}\]"):
        assert_float32_ops(fn, half)
    assert_float32_ops(lambda x: fn(x.astype(jnp.float32)).astype(dtype), half)


def test_sums_are_found_where_they_are_long():
    """`jnp.sum` adds up in float32; what is found is what differentiation makes."""
    assert_float32_ops(lambda x: (jnp.sum(x), jnp.mean(x), jnp.var(x)), HALF)

    def gradient_of_bias(x):
        return jax.vjp(lambda b: jnp.broadcast_to(b[None], x.shape), x[0])[1](x)

    def gradient_of_table(rows, x):
        return jax.vjp(lambda table: table[rows], x)[1](jnp.ones((300, 300), x.dtype))

    assert_float32_ops(gradient_of_bias, HALF)
    with pytest.raises(AssertionError, match=r"reduce_sum \[bfloat16\] of 4 terms"):
        assert_float32_ops(gradient_of_bias, HALF, max_sum=3)
    with pytest.raises(AssertionError, match=r"scatter-add \[bfloat16\] of 300 terms"):
        assert_float32_ops(gradient_of_table, np.zeros(300, np.int32), HALF)

    def pool(x):
        return nn.avg_pool(x[..., None], (300,))

    with pytest.raises(AssertionError, match=r"reduce_window_sum .* of 300 terms"):
        assert_float32_ops(pool, HALF)


def test_cheap_operations_pass():
    def layer(x):
        y = jnp.tanh(x @ x.T) * jax.nn.sigmoid(x @ x.T)
        return jax.nn.relu(y) + jnp.max(x), jax.nn.silu(x), jnp.where(x > 0, x, -x)

    assert_float32_ops(layer, HALF)
    names = {op.primitive for op in half_operations(layer, HALF)}
    assert {"tanh", "logistic", "dot_general", "reduce_max"} <= names


@jax.custom_vjp
def strange(x):
    return jnp.exp(x)


strange.defvjp(lambda x: (jnp.exp(x), x), lambda x, g: (jnp.log(x) * g,))

HIDDEN = {
    "jit": jax.jit(jnp.exp),
    "vmap": jax.vmap(jax.jit(jnp.exp)),
    "scan": lambda x: lax.scan(lambda c, row: (c + jnp.exp(row), row), x[0], x),
    "while": lambda x: lax.while_loop(
        lambda c: jnp.all(jnp.exp(c) < 2), lambda c: c + 1, x
    ),
    "fori": lambda x: lax.fori_loop(0, 3, lambda i, c: jnp.exp(c), x),
    "cond": lambda x: lax.cond(x[0, 0] > 0, lambda x: x, jnp.exp, x),
    "remat": jax.checkpoint(lambda x: jnp.exp(x)),
    "custom_vjp": strange,
    "two deep": jax.jit(lambda x: lax.map(jax.jit(jnp.exp), x)),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_inner_programs_are_searched(name):
    with pytest.raises(AssertionError, match=r"exp \[bfloat16\]"):
        assert_float32_ops(HIDDEN[name], HALF)


def test_the_backward_pass_of_a_custom_rule_is_searched():
    with pytest.raises(AssertionError, match=r"log \[bfloat16\]"):
        assert_float32_ops(lambda x: jax.vjp(strange, x)[1](x), HALF)


def test_the_line_is_named():
    def guilty(x):
        return jnp.exp(x)

    line = guilty.__code__.co_firstlineno + 1
    here = re.escape(f"at test_float32_ops.py:{line} (")
    with pytest.raises(
        AssertionError, match=rf"1 operations.*\n  exp .*{here}.*guilty"
    ):
        assert_float32_ops(guilty, HALF)


def test_the_line_is_the_users_and_not_the_librarys():
    def guilty(x):
        return optax.softmax_cross_entropy_with_integer_labels(x, jnp.zeros(4, int))

    line = guilty.__code__.co_firstlineno + 1
    with pytest.raises(AssertionError) as caught:
        assert_float32_ops(guilty, HALF)
    found = str(caught.value).splitlines()[1:]
    assert found
    assert all(f"test_float32_ops.py:{line} " in text for text in found), found


def test_primitives_can_be_allowed():
    assert_float32_ops(jnp.exp, HALF, allow=["exp"])
    with pytest.raises(AssertionError, match="exp"):
        assert_float32_ops(jnp.exp, HALF, allow=["log"])


def test_sums_over_devices_are_found():
    def total(x):
        return jax.shard_map(
            lambda x: lax.psum(x, "data"),
            mesh=data_mesh(),
            in_specs=P("data"),
            out_specs=P(),
        )(x)

    with pytest.raises(AssertionError, match=r"psum.* \[bfloat16\]"):
        assert_float32_ops(total, jax.ShapeDtypeStruct((8, 2), jnp.bfloat16))
    assert_float32_ops(total, jax.ShapeDtypeStruct((8, 2), jnp.float32))


METHODS = {
    "simclr": lambda: simclr(SimCLR(ConvNet((4, 8)), (8, 4))),
    "simsiam": lambda: simsiam(SimSiam(ConvNet((4, 8)), dim=8, bottleneck=4)),
    "resnet": lambda: simclr(SimCLR(resnet18(width=4, stem="cifar"), (8, 4))),
    "vit": lambda: simclr(
        SimCLR(VisionTransformer(16, 4, width=16, depth=2, heads=2), (8, 4))
    ),
}


@pytest.mark.parametrize("compute", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("name", METHODS)
def test_the_library_keeps_to_the_list(name, compute):
    """Loss and gradient. A transformer's biases sum over all tokens, an exact GELU's
    slope is exp(-x^2) <= 1: those two are in half precision, and nothing else."""
    method = mixed_precision(METHODS[name](), policy(compute))
    view = jax.ShapeDtypeStruct((32, 16, 16, 3), jnp.float32)
    batch = {"view1": view, "view2": view}
    key = jax.random.key(0)
    params, model_state = jax.eval_shape(method.init, key, batch)
    arguments = params, model_state, batch, key
    assert_float32_ops(method.loss, *arguments)
    gradient = jax.grad(method.loss, has_aux=True)
    allow = ["reduce_sum", "exp"] if name == "vit" else []
    assert_float32_ops(gradient, *arguments, allow=allow)
    products = [
        op
        for op in half_operations(gradient, *arguments)
        if op.primitive in ("dot_general", "conv_general_dilated")
    ]
    assert products, "nothing was computed in half precision"


@pytest.mark.parametrize("name", METHODS)
def test_all_layers_compute_in_half_precision(name):
    """One float32 input is enough to widen all that follows."""
    method = mixed_precision(METHODS[name](), policy("mixed_bfloat16"))
    image = jax.ShapeDtypeStruct((32, 16, 16, 3), jnp.float32)
    batch = {"view1": image, "view2": image, "image": image}
    params, state = jax.eval_shape(method.init, jax.random.key(0), batch)
    text = str(jax.make_jaxpr(method.predict)(params, state, batch))
    kinds = set(
        re.findall(r":(\w+)\[[\d,]*\] = (?:dot_general|conv_general_dilated)", text)
    )
    assert "bf16" in kinds
    # Attention's logits are float32, made from bfloat16 queries and keys.
    assert kinds <= ({"bf16", "f32"} if name == "vit" else {"bf16"})


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_products_accumulate_in_float32(dtype):
    """Added up in bfloat16, 4096 ones are 256; in float16, 2048."""
    ones = jnp.ones((1, 4096), dtype)
    dense = nn.Dense(1, use_bias=False, kernel_init=nn.initializers.ones, dtype=dtype)
    variables = dense.init(jax.random.key(0), ones)
    assert jax.jit(dense.apply)(variables, ones)[0, 0] == 4096
    assert jax.jit(jnp.sum)(ones) == 4096
    mlp = Mlp([1], last_bias=False, kernel_init=nn.initializers.ones, dtype=dtype)
    variables = mlp.init(jax.random.key(0), ones, train=True)
    assert mlp.apply(variables, ones, train=True)[0, 0] == 4096
