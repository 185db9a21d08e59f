"""Underflow on digits: half precision with and without a loss scale, side by side.

    python -m experiments.precision.loss_scale_digits

One classifier of scikit-learn's 8x8 digits, one seed, one schedule. Its loss is weighed by
2^-20, as a small term among others or a mean over a million pixels would be, and the
learning rate by 2^20, so that in exact arithmetic nothing changes. In float16 nine tenths
of the gradient are then below half the smallest number there is, and what is left is lost
on its way through the layers. Only float16 without a loss scale fails:

    arithmetic               test accuracy   gradients that vanish   last scale
    float32                      97.5 %              0.0 %              1
    float16                       7.3 %            100.0 %              1
    float16, static scale        97.5 %              0.0 %              2^16
    float16, dynamic scale       97.5 %              0.0 %              2^22
    bfloat16                     97.5 %              0.0 %              1
    pure bfloat16                97.5 %              0.0 %              1

2 CPU cores, 36 s, seed 0. Writes the curves, what float16 makes of the gradients as a
picture, and results.json. Time and memory of each arithmetic: `experiments.bench.precision`.

Reference: Micikevicius et al., "Mixed Precision Training", ICLR 2018,
https://arxiv.org/abs/1710.03740 (section 3.2, figure 3).
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from jaxml import data, draw, metrics, parallel, precision, train
from jaxml.method import Batch, Method, Metrics, ModelState, Params
from jaxml.nn import Mlp
from jaxml.nn.functional import apply_module, init_module
from jaxml.precision.loss_scale import LossScale
from jaxml.typing import Array, Float, PRNGKeyArray


@dataclass(frozen=True)
class Config:
    """Six kinds of arithmetic on 8x8 digits."""

    num_steps: int = 300
    """Steps of every run."""
    batch_size: int = 128
    """Images per step, over all devices."""
    learning_rate: float = 0.1
    """Of SGD with momentum 0.9, for a loss of weight one; falls to zero as a cosine."""
    loss_weight: float = 2.0**-20
    """What the cross-entropy is multiplied by; the learning rate is divided by it."""
    widths: tuple[int, ...] = (128,)
    """Of the hidden layers."""
    static_scale: float = 2.0**16
    """The loss scale that does not change, and the first of the one that does."""
    growth_interval: int = 50
    """Steps without overflow after which that one doubles."""
    seed: int = 0
    """Seed of initialisation, data order and stochastic rounding."""
    distributed: str | None = None
    """Several processes: "auto" on a cluster, or "HOST:PORT,ID/COUNT"."""
    out: Path = Path("runs/loss_scale_digits")
    """Where everything is written."""


SMOKE = Config(num_steps=4, batch_size=16, widths=(8,))


class Variant(NamedTuple):
    """One row of the table."""

    policy: str
    loss_scale: LossScale | None = None
    rounds_stochastically: bool = False


def variants(config: Config) -> dict[str, Variant]:
    """The arithmetics, by name."""
    static = precision.StaticLossScale.create(config.static_scale)
    dynamic = precision.DynamicLossScale.create(
        config.static_scale, growth_interval=config.growth_interval
    )
    return {
        "float32": Variant("float32"),
        "float16": Variant("mixed_float16"),
        "float16, static scale": Variant("mixed_float16", static),
        "float16, dynamic scale": Variant("mixed_float16", dynamic),
        "bfloat16": Variant("mixed_bfloat16"),
        "pure bfloat16": Variant("pure_bfloat16", rounds_stochastically=True),
    }


def classifier(model: Mlp, loss_weight: float) -> Method:
    """Cross-entropy of `label` given `image`; the metrics are those of weight one."""

    def pixels(batch: Batch) -> Float[Array, "batch pixels"]:
        return batch["image"].reshape(len(batch["image"]), -1)

    def init(key: PRNGKeyArray, batch: Batch) -> tuple[Params, ModelState]:
        return init_module(model, key, pixels(batch), train=True)

    def loss(
        params: Params, model_state: ModelState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[ModelState, Metrics]]:
        del key
        logits, model_state = apply_module(
            model, params, model_state, pixels(batch), train=True
        )
        logits, labels = logits.astype(jnp.float32), batch["label"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        value = jnp.mean(losses)
        return loss_weight * value, (model_state, {"loss": value})

    def predict(
        params: Params, model_state: ModelState, batch: Batch
    ) -> Float[Array, "batch classes"]:
        x = pixels(batch)
        return apply_module(model, params, model_state, x, train=False)[0]

    return Method(init, loss, predict)


def main(config: Config) -> Mapping[str, float]:
    """Trains every variant; returns their test accuracies."""
    parallel.initialize(config.distributed)
    run = train.Run(config.out, config, ignore=("out", "distributed"))
    batches = data.load("digits", "train", config.batch_size, seed=config.seed)
    init_key, key = jax.random.split(jax.random.key(config.seed))
    exact = classifier(Mlp([*config.widths, 10]), config.loss_weight)
    start = train.init_state(exact, optax.identity(), init_key, next(iter(batches)))
    grads = gradients(exact, start, next(iter(batches)))
    rows: dict[str, dict[str, float]] = {}
    curves: dict[str, dict[int, float]] = {}
    for name, variant in variants(config).items():
        rows[name], curves[name] = train_one(
            config, variant, start, grads, key, batches
        )
    if jax.process_index() == 0:
        report(config, run, rows, curves, grads)
    return {name: row["accuracy"] for name, row in rows.items()}


def train_one(
    config: Config,
    variant: Variant,
    start: train.TrainState,
    exact: Params,
    key: PRNGKeyArray,
    batches: Iterable[Batch],
) -> tuple[dict[str, float], dict[int, float]]:
    """One run: its accuracy, how many gradients vanished, its last scale; its losses."""
    policy = precision.policy(variant.policy)
    round_key, run_key = jax.random.split(key)

    def build(axis_name: str | None) -> Method:
        model = Mlp([*config.widths, 10], axis_name=axis_name)
        method = classifier(model, config.loss_weight)
        method = method._replace(init=lambda *_: (start.params, start.model_state))
        return precision.mixed_precision(method, policy, axis_name=axis_name)

    rate = optax.cosine_decay_schedule(
        config.learning_rate / config.loss_weight, config.num_steps
    )
    optimizer = optax.sgd(rate, momentum=0.9)
    if variant.rounds_stochastically:
        optimizer = precision.stochastic_rounding(optimizer, round_key)
    method, first = build(None), next(iter(batches))
    state = train.init_state(method, optimizer, key, first, variant.loss_scale)
    vanished = vanishing(gradients(method, state, first), exact)
    mesh = parallel.data_mesh()
    step = train.gradient_step(build("data"), optimizer, run_key, "data")
    curve: dict[int, float] = {}
    state = train.fit(
        parallel.data_parallel(step, mesh),
        parallel.replicate(state, mesh),
        batches,
        config.num_steps,
        log=lambda step, values: curve.update({step: values["loss"]}),
        log_every=max(config.num_steps // 40, 1),
    )
    test = data.load("digits", "test", 100, shuffle=False, repeat=False)
    scores = train.evaluate(method, state, test, metrics.top_k_accuracy())
    scale = 1.0 if state.loss_scale is None else float(state.loss_scale.scale)
    return {**scores, "vanished": vanished, "scale": scale}, curve


def gradients(method: Method, state: train.TrainState, batch: Batch) -> Params:
    """Of one batch, as the step would hand them to the optimizer."""
    scale = state.loss_scale

    def loss(params: Params) -> Float[Array, ""]:
        value, _ = method.loss(params, state.model_state, batch, jax.random.key(0))
        return value if scale is None else scale.scale_loss(value)

    grads = jax.jit(jax.grad(loss))(state.params)
    return grads if scale is None else scale.unscale(grads)


def vanishing(grads: Params, exact: Params) -> float:
    """The share of the exact gradient's numbers, zeros left out, that are zero here."""
    here, there = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
        for tree in (grads, exact)
    )
    return float(np.mean(here[there != 0] == 0))


def report(
    config: Config,
    run: train.Run,
    rows: Mapping[str, Mapping[str, float]],
    curves: Mapping[str, Mapping[int, float]],
    grads: Params,
) -> None:
    """Prints the table, and writes metrics, results and pictures."""
    print("| arithmetic | test accuracy | gradients that vanish | last scale |")
    print("|---|---|---|---|")
    for name, row in rows.items():
        power = f"2^{np.log2(row['scale']):g}"
        print(f"| {name} | {row['accuracy']:.3f} | {row['vanished']:.1%} | {power} |")
    for step in next(iter(curves.values())):
        run.log(step, {f"{name}/loss": curve[step] for name, curve in curves.items()})
    (run.path / "results.json").write_text(json.dumps(rows, indent=2) + "\n")
    draw.save_curves(
        run.path / "curves.png",
        {name: (list(curve), list(curve.values())) for name, curve in curves.items()},
        title=f"Digits, a loss of weight 2^{np.log2(config.loss_weight):g}",
        ylabel="cross-entropy, nats",
        log_y=True,
    )
    scale = config.static_scale
    draw.save_exponents(
        run.path / "exponents.png",
        {
            "as they are": precision.float_report(grads),
            f"times 2^{np.log2(scale):g}": precision.float_report(grads, scale=scale),
        },
        title="Gradients at the first step",
    )
    print(f"\npictures and numbers: {run.path}")


if __name__ == "__main__":
    main(tyro.cli(Config))
