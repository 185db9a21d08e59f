"""The loss scale against PyTorch's GradScaler, the rounding against PyTorch's casts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxml.method import Method
from jaxml.precision import DynamicLossScale, float_report, mixed_precision, policy
from jaxml.train import gradient_step, init_state

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.oracle


def torch_scales(finite, **options):
    """The scale after each step of an SGD whose gradients overflow where told to."""
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    scaler = torch.amp.GradScaler("cpu", **options)
    scales = []
    for is_finite in finite:
        optimizer.zero_grad()
        scaler.scale((weight * (1.0 if is_finite else float("inf"))).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    return np.float32(scales)


@pytest.mark.parametrize("interval", [1, 2, 3, 10])
@pytest.mark.parametrize("growth, backoff", [(2.0, 0.5), (1.5, 0.75)])
def test_scales_are_those_of_grad_scaler(rng, interval, growth, backoff):
    finite = rng.random(120) > 0.4
    options = {
        "growth_interval": interval,
        "growth_factor": growth,
        "backoff_factor": backoff,
    }
    expected = torch_scales(finite, init_scale=2.0**16, **options)
    scale = DynamicLossScale.create(
        2.0**16, min_scale=2.0**-120, max_scale=2.0**120, **options
    )

    def step(scale, is_finite):
        scale = scale.adjust(is_finite)
        return scale, scale.scale

    actual = jax.jit(lambda s, f: jax.lax.scan(step, s, f)[1])(scale, finite)
    np.testing.assert_array_equal(actual, expected)


def test_defaults_are_those_of_grad_scaler():
    ours, theirs = DynamicLossScale.create(), torch.amp.GradScaler("cpu")
    assert float(ours.scale) == theirs.get_scale()
    assert ours.growth_interval == theirs.get_growth_interval()
    assert ours.growth_factor == theirs.get_growth_factor()
    assert ours.backoff_factor == theirs.get_backoff_factor()


def test_training_with_clipping_skips_and_a_schedule_is_pytorchs(rng):
    """Scaled, unscaled, clipped, stepped: parameters after every one of twenty steps.

    Its scheduler steps when the optimizer did, as the advice for GradScaler has it.
    """
    x = rng.normal(size=(20, 8, 4)).astype(np.float32)
    y = (x @ rng.normal(size=(4, 1)))[..., 0].astype(np.float32)
    bad = {3, 4, 11, 17}
    for i in bad:
        x[i, 0, 0] = np.inf
    start = rng.normal(size=4).astype(np.float32)

    weight = torch.nn.Parameter(torch.tensor(start))
    optimizer = torch.optim.SGD([weight], lr=0.3, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 1 - i / 40)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    expected, scales = [], []
    for i in range(20):
        optimizer.zero_grad()
        error = torch.tensor(x[i]) @ weight - torch.tensor(y[i])
        scaler.scale(error.square().mean()).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_([weight], 0.5)
        scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        if scaler.get_scale() >= scale:
            schedule.step()
        expected.append(weight.detach().numpy().copy())
        scales.append(scaler.get_scale())

    def init(key, batch):
        return {"w": jnp.asarray(start)}, {}

    def loss(params, model_state, batch, key):
        value = jnp.mean(jnp.square(batch["x"] @ params["w"] - batch["y"]))
        return value, ({}, {"loss": value})

    def predict(params, model_state, batch):
        return batch["x"] @ params["w"]

    method = mixed_precision(Method(init, loss, predict), policy("float32"))
    rate = optax.linear_schedule(0.3, 0.0, 40)
    descent = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(rate, 0.9))
    batches = [{"x": x[i], "y": y[i]} for i in range(20)]
    scale = DynamicLossScale.create(2.0**10, growth_interval=3)
    state = init_state(method, descent, jax.random.key(0), batches[0], scale)
    step = jax.jit(gradient_step(method, descent, jax.random.key(1)))
    skipped = set()
    for i, batch in enumerate(batches):
        state, metrics = step(state, batch)
        if metrics["skipped"]:
            skipped.add(i)
        np.testing.assert_allclose(state.params["w"], expected[i], rtol=2e-5, atol=1e-6)
        assert state.loss_scale.scale == scales[i]
    assert skipped == bad


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_counts_are_those_of_pytorchs_cast(rng, dtype):
    x = rng.normal(size=5000) * np.exp2(rng.uniform(-40, 30, size=5000))
    x = x.astype(np.float32)
    cast = torch.tensor(x).to(getattr(torch, dtype)).float().abs().numpy()
    row = float_report([x], jnp.dtype(dtype)).total
    assert row.to_zero == np.sum(cast == 0)
    assert row.to_infinity == np.sum(np.isinf(cast))
    tiny = torch.finfo(getattr(torch, dtype)).smallest_normal
    assert row.to_subnormal == np.sum((cast > 0) & (cast < tiny))
