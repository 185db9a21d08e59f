"""Gradient boosting on a GPU: jaxml's two ways to sum histograms, and XGBoost's CUDA.

    python -m experiments.bench.trees_gpu               (on a GPU of compute capability 9.0)
    python -m experiments.bench.trees_gpu --dry-run     (anywhere)

10,000,000 rows of 28 features, 100 trees of depth 6, 256 bins; seconds by the clock of a
fit whose rows are binned already, in both libraries at XGBoost's own cuts, so that they
grow the same trees. Then 64 small models with learning rates of their own: one vmapped
program of jaxml's beside XGBoost's fits in turn.

The dry run lowers the programs for a GPU, without one, and says how long that took; then
it makes the tables from small fits on a CPU, so that all of this file has run.

Not measured yet: the kernel has not met a device. What is aimed at: 1.5 times XGBoost's
speed at 10,000,000 rows, and 10 times at 64 models.

With `--dry-run` on 2 shared CPU cores, jax 0.10.2: lowering the large fit takes 3.1 s.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from sklearn.metrics import roc_auc_score

from experiments.bench.trees import sample
from jaxml.trees import xgboost
from jaxml.trees.bin_sums import Implementation
from jaxml.trees.bins import Bins, from_cuts


@dataclass(frozen=True)
class Config:
    """What is measured, and how often."""

    rows: int = 10_000_000
    """Training rows of the large model."""
    columns: int = 28
    """Features, eight of which matter."""
    trees: int = 100
    """Boosting rounds."""
    depth: int = 6
    """Of every tree."""
    max_bin: int = 256
    """Bins of every feature."""
    models: int = 64
    """Small ones."""
    small_rows: int = 2000
    """Of each small model, of depth 4 and half as many trees."""
    implementations: tuple[Implementation, ...] = ("mosaic_gpu", "scatter")
    """Of jaxml."""
    rounds: int = 3
    """Repetitions in turn, of which the median is taken."""
    peers: bool = True
    """Whether to run XGBoost, if it is installed."""
    dry_run: bool = False
    """Lower all of it for a GPU, run small stand-ins, and measure nothing."""
    seed: int = 0
    """Of the data."""


SMOKE = Config(
    rows=300,
    columns=3,
    trees=2,
    depth=2,
    max_bin=16,
    models=2,
    small_rows=100,
    implementations=("mosaic_gpu",),
    rounds=1,
    peers=False,
    dry_run=True,
)


def main(config: Config) -> Mapping[str, float]:
    """Prints tables, and returns seconds, ratios and areas under the curve."""
    if jax.default_backend() != "gpu" and not config.dry_run:
        raise SystemExit(
            f"a GPU is needed, or --dry-run, got {jax.default_backend()} without it"
        )
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    results = {}
    if config.dry_run:
        results["lowering"] = lowering(config)
        print(f"lowering: {results['lowering']:.1f} s")
        few = {"rows": 3000, "trees": 3, "models": 4, "small_rows": 300}
        least = {name: min(getattr(config, name), n) for name, n in few.items()}
        config = replace(config, **least)
    results |= large(config)
    results |= many(config)
    return results


def options(config: Config, implementation: Implementation) -> xgboost.Config:
    """Of jaxml's large model."""
    return xgboost.Config(
        objective="binary:logistic",
        eta=0.1,
        num_boost_round=config.trees,
        max_depth=config.depth,
        max_bin=config.max_bin,
        implementation=implementation,
    )


def lowering(config: Config) -> float:
    """Seconds to trace the large fit and lower it for a GPU."""
    kind = np.uint8 if config.max_bin <= 256 else np.uint16
    bins = Bins(
        jax.ShapeDtypeStruct((config.columns, config.rows), kind),
        jax.ShapeDtypeStruct((config.columns, config.max_bin), np.float32),
        jax.ShapeDtypeStruct((config.columns,), np.float32),
        False,
    )
    y = jax.ShapeDtypeStruct((config.rows,), np.float32)
    ours = options(config, "mosaic_gpu")
    start = time.perf_counter()
    fit = jax.jit(lambda bins, y: xgboost.fit(bins, y, ours, jax.random.key(0)))
    text = fit.trace(bins, y).lower(lowering_platforms=("cuda",)).as_text()
    spent = time.perf_counter() - start
    kernels = text.count("custom_call @mosaic_gpu")
    if kernels != config.depth:
        raise RuntimeError(f"expected {config.depth} kernels, got {kernels}")
    return spent


def large(config: Config) -> dict[str, float]:
    """One model of many rows, on XGBoost's cuts where XGBoost is installed."""
    x, y = sample(np.random.default_rng(config.seed), config.rows, config.columns)
    runs: dict[str, Callable[[], Any]] = {}
    cuts = quantiles(x, config.max_bin)
    if config.peers:
        runs["XGBoost"], cuts = peer(config, x, y)
    bins = jax.device_put(from_cuts(x, cuts, has_missing=False))
    labels = jnp.asarray(y)
    for name in config.implementations:
        ours, key = options(config, name), jax.random.key(0)
        fit = jax.jit(
            lambda bins, y, ours=ours, key=key: xgboost.fit(bins, y, ours, key)
        )
        runs[name] = lambda fit=fit: jax.block_until_ready(fit(bins, labels))
    seconds, models = in_turn(runs, config.rounds)
    held, truth = sample(np.random.default_rng(config.seed + 1), 50_000, config.columns)
    for name in config.implementations:
        told = xgboost.predict(models[name], held)
        seconds[f"{name}_auc"] = float(roc_auc_score(truth, told))
    if config.peers:
        told = models["XGBoost"].inplace_predict(held)
        seconds["XGBoost_auc"] = float(roc_auc_score(truth, told))
    return table(f"{config.rows} rows", seconds)


def many(config: Config) -> dict[str, float]:
    """Small models of one table: one program of jaxml's, XGBoost's in turn."""
    rows = config.small_rows
    x, y = sample(np.random.default_rng(config.seed), rows, config.columns)
    etas = np.linspace(0.02, 0.3, config.models, dtype=np.float32)
    small = replace(config, trees=max(config.trees // 2, 1), depth=min(config.depth, 4))
    runs: dict[str, Callable[[], Any]] = {}
    cuts = quantiles(x, config.max_bin)
    if config.peers:
        one, cuts = peer(small, x, y)
        runs["XGBoost"] = lambda: [one(eta=float(eta)) for eta in etas]
    bins, labels = from_cuts(x, cuts, has_missing=False), jnp.asarray(y)
    for name in config.implementations:
        ours, key = options(small, name), jax.random.key(0)

        def fit(eta: jax.Array, ours: xgboost.Config = ours, key: Any = key) -> Any:
            return xgboost.fit(bins, labels, replace(ours, eta=eta), key)

        every = jax.jit(jax.vmap(fit))
        runs[name] = lambda every=every: jax.block_until_ready(every(etas))
    seconds, _ = in_turn(runs, config.rounds)
    return table(f"{config.models} models", seconds)


def peer(
    config: Config, x: np.ndarray, y: np.ndarray
) -> tuple[Callable[..., Any], list[np.ndarray]]:
    """XGBoost's fit, on the device that JAX has, and its cuts."""
    import xgboost as theirs

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    data = theirs.QuantileDMatrix(x, y, max_bin=config.max_bin)
    ends, values = data.get_quantile_cut()
    cuts = np.split(values, ends[1:-1].astype(int))
    given = {
        "objective": "binary:logistic",
        "eta": 0.1,
        "max_depth": config.depth,
        "max_bin": config.max_bin,
        "device": device,
    }

    def fit(**changed: Any) -> Any:
        return theirs.train({**given, **changed}, data, config.trees)

    return fit, cuts


def quantiles(x: np.ndarray, max_bin: int) -> list[np.ndarray]:
    """Cuts of a sample of the rows, where there is no XGBoost to give its own."""
    levels = np.linspace(0, 1, max_bin + 1)[1:]
    found = np.quantile(x[:100_000], levels, axis=0).astype(np.float32)
    return [np.unique(column) for column in found.T]


def in_turn(
    runs: Mapping[str, Callable[[], Any]], rounds: int
) -> tuple[dict[str, float], dict[str, Any]]:
    """Seconds by the clock of every run after a first one, medians; and what came out."""
    results: dict[str, Any] = {name: run() for name, run in runs.items()}
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            results[name] = run()
            spent[name].append(time.perf_counter() - start)
    return {f"{name}_seconds": median(times) for name, times in spent.items()}, results


def table(title: str, values: dict[str, float]) -> dict[str, float]:
    """Prints the values, with XGBoost's time in those of jaxml's."""
    if "XGBoost_seconds" in values:
        theirs = values["XGBoost_seconds"]
        values |= {
            name.replace("_seconds", "_speedup"): theirs / spent
            for name, spent in list(values.items())
            if name.endswith("_seconds") and not name.startswith("XGBoost")
        }
    print(f"| {title} | value |\n|---|---|")
    for name, value in values.items():
        print(f"| {name} | {value:.4f} |")
    return {f"{title} {name}": value for name, value in values.items()}


if __name__ == "__main__":
    main(tyro.cli(Config))
