"""What kernels say against a call, and which is taken unasked."""

import json
from functools import partial

import chex
import jax
import jax.numpy as jnp
import pytest

from jaxml.attention import attention, explain
from jaxml.attention.flash import backends, tables
from jaxml.attention.flash.tables import Backward, Entry, Forward
from tests.attention.flash.conftest import HALF, IDS, reason


@pytest.mark.parametrize(
    "name, platform, options, message",
    [
        ("mosaic_gpu", "gpu", {"dropout_rate": 0.1}, "has no dropout"),
        ("mosaic_gpu", "gpu", {"x": HALF.update(dtype=jnp.float32)}, "not float32"),
        ("mosaic_gpu", "gpu", {"x": HALF.update(shape=(1, 8, 1, 300))}, "up to 256"),
        ("pallas_tpu", "tpu", {"x": HALF.update(dtype=jnp.float16)}, "not float16"),
        ("mosaic_gpu", "gpu", {}, "not measured yet"),
        ("pallas_tpu", "tpu", {}, "not measured yet"),
    ],
)
def test_what_speaks_against_a_kernel(name, platform, options, message):
    if "dropout_rate" in options:
        options |= {"dropout_key": jax.random.key(0)}
    assert message in reason(name, platform, **options)


def test_a_kernel_is_for_the_processors_it_was_made_for(monkeypatch):
    for version, against in (("8.0", True), ("9.0", False), ("10.0", True)):
        monkeypatch.setattr(backends, "capability", lambda version=version: version)
        said = "of compute capability 9.0, not" in reason("mosaic_gpu", "gpu")
        assert said == against


BIAS = jax.ShapeDtypeStruct((1, 4, 128, 128), jnp.bfloat16)


@pytest.mark.parametrize(
    "name, platform", [("mosaic_gpu", "gpu"), ("pallas_tpu", "tpu")]
)
def test_who_gives_the_gradient_of_a_bias(name, platform):
    """The kernels have none, and say so; `test_rule` shows that it is right."""
    why = partial(reason, name, platform, implementation=name)
    assert why() == "runs"
    assert why(bias=BIAS).startswith("runs; a gradient of the bias")
    assert why(bias=BIAS).endswith("comes from chunked")
    assert reason("chunked", "cpu", bias=BIAS) == "runs"


def test_what_was_measured_decides(with_cudnn, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "TUNED", tmp_path)
    monkeypatch.setattr(backends, "device_kind", lambda: "A GPU")
    row = partial(Entry, Forward(), Backward())
    rows = [
        tables.encoded(64, True, row(500.0, 480.0)),
        tables.encoded(64, False, row(500.0, 530.0)),
    ]
    tables.file_of("A GPU").write_text(json.dumps({"rows": rows}))
    tables.tuned.cache_clear()
    chosen = lambda **options: (
        explain(HALF, HALF, HALF, platform="gpu", **options).implementation
    )
    assert chosen(is_causal=True) == "mosaic_gpu"
    assert chosen() == "cudnn"
    assert chosen(segment_ids=IDS) == "mosaic_gpu"  # which cuDNN has not
    slower = reason("mosaic_gpu", "gpu")
    assert slower == "measured at 500 TFLOP/s where cuDNN makes 530"
    tables.tuned.cache_clear()


def test_one_program_for_every_platform(rng):
    q = jnp.asarray(rng.normal(size=(1, 128, 2, 64)), jnp.bfloat16)
    run = partial(attention, is_causal=True, implementation="flash")
    loss = lambda *x: jnp.sum(run(*x).astype(jnp.float32))
    traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(q, q, q)
    kernels = {"cpu": (None, 0), "cuda": ("@mosaic_gpu", 3), "tpu": ("@tpu_custom", 3)}
    for platform, (name, count) in kernels.items():
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert all(
            other is None or (other == name) == (other in text)
            for other, _ in kernels.values()
        )
        assert name is None or text.count(f"custom_call {name}") == count
    actual = jax.jit(run)(q, q, q)
    chex.assert_trees_all_close(actual, attention(q, q, q, is_causal=True), atol=1e-2)
    assert (
        explain(implementation="flash", platform="gpu").implementation == "mosaic_gpu"
    )
    assert (
        explain(implementation="flash", platform="tpu").implementation == "pallas_tpu"
    )
    assert explain(implementation="flash", platform="cpu").implementation == "chunked"


def test_the_door_interprets_a_kernel(rng):
    q = jnp.asarray(rng.normal(size=(100, 2, 16)), jnp.float32)
    options = {"is_causal": True, "return_lse": True}
    actual = attention(q, q, q, implementation="pallas_tpu", interpret=True, **options)
    chex.assert_trees_all_close(actual, attention(q, q, q, **options), atol=1e-5)
