"""Gradient boosting on a CPU: jaxml and XGBoost, CPU-seconds side by side.

    python -m experiments.bench.trees

100,000 rows of 28 features, 100 trees of depth 6, 256 bins, one core for both libraries, in
turn; fitting includes binning, not the one compilation. One of 2 CPU cores (Xeon), the other
one idle, jax 0.10.2, XGBoost 3.2.0, seed 0, medians of three rounds:

    library   fit s   predict 50,000 rows s   held-out AUC   peak MB
    jaxml      1.56          0.036               0.7825         827
    XGBoost    1.46          0.049               0.7865         404

The ratios move with the machine: 1.07 and 0.73 times XGBoost's time here, 1.06 and 0.82 with
both cores shared; on an older one 1.08 to 1.21 to fit with nothing else to do, 0.95 and 1.29
to fit on a core shared with twenty waiting processes. Compiling costs jaxml 7
CPU-seconds once. On XGBoost's own cuts both have the same AUC to four digits, 0.7865: other
cuts are other models. Peak memory is that of a process with one library (`--alone jaxml`,
`--alone XGBoost`), of which 363 MB are there before it starts.

64 small models of one table with learning rates of their own, in one vmapped program, take
1.09 times the CPU-seconds of XGBoost's fits in turn, 1.85 s beside 1.70:

    python -m experiments.bench.trees --models 64 --rows 2000 --trees 50 --depth 4 --max-bin 64

By size, 10 trees, one run each; the cost grows with the rows:

    python -m experiments.bench.trees --growth 10000 100000 1000000 --trees 10 --rounds 1

         rows    jaxml s   microseconds a row   XGBoost s   peak MB
       10,000     0.05           5.1              0.15        750
      100,000     0.34           3.4              0.60        867
    1,000,000     4.18           4.2              5.60       1391
"""

import os
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Literal

import jax
import numpy as np
import tyro
from sklearn.metrics import roc_auc_score

from jaxml.trees import xgboost
from jaxml.trees.bins import from_cuts, make_bins

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@dataclass(frozen=True)
class Config:
    """What is measured, and how often."""

    rows: int = 100_000
    """Training rows; half as many are held out."""
    columns: int = 28
    """Features, eight of which matter."""
    trees: int = 100
    """Boosting rounds."""
    depth: int = 6
    """Of every tree."""
    max_bin: int = 256
    """Bins of every feature."""
    tree_method: str = "hist"
    """"hist" or "exact"."""
    threads: int = 1
    """Of XGBoost, and cores of the whole process, where run as a command."""
    rounds: int = 3
    """Repetitions, of which the median is taken."""
    growth: tuple[int, ...] = ()
    """Numbers of rows for a table of cost by size, instead of the comparison."""
    models: int = 0
    """Small models of one table with learning rates of their own, in one program."""
    alone: Literal["", "jaxml", "XGBoost"] = ""
    """One library without the other, as peak memory is that of the process."""
    seed: int = 0
    """Of the data."""


SMOKE = Config(
    rows=400, columns=8, trees=2, depth=2, max_bin=16, rounds=1, alone="jaxml"
)


def main(config: Config) -> Mapping[str, float]:
    """Prints a table, and returns CPU-seconds, ratios and areas under the curve."""
    if config.growth:
        return growth(config)
    if config.models:
        return many(config)
    rng = np.random.default_rng(config.seed)
    x, y = sample(rng, config.rows + config.rows // 2, config.columns)
    train, test = slice(config.rows), slice(config.rows, None)
    ours = xgboost.Config(num_boost_round=config.trees, **options(config))
    key = jax.random.key(0)
    results = {"start_megabytes": peak_megabytes()}
    runs: dict[str, Callable[[], Any]] = {}
    if config.alone != "XGBoost":
        runs["jaxml"] = lambda: jax.block_until_ready(
            xgboost.fit(x[train], y[train], ours, key)
        )
        results["jaxml_compile"], _ = timed(runs["jaxml"])
    if config.alone != "jaxml":
        runs["XGBoost"] = lambda: fit_peer(config, x[train], y[train])
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    models: dict[str, Any] = {}
    for _ in range(config.rounds):
        for name, run in runs.items():
            spent, models[name] = timed(run)
            seconds[name].append(spent)
    for name, spent in seconds.items():
        results[f"{name}_fit"] = median(spent)
    if "jaxml" in models:
        model = models["jaxml"]
        told = jax.block_until_ready(xgboost.predict(model, x[test]))
        results["jaxml_predict"] = median(
            timed(lambda: jax.block_until_ready(xgboost.predict(model, x[test])))[0]
            for _ in range(max(config.rounds, 3))
        )
        results["jaxml_auc"] = float(roc_auc_score(y[test], told))
    if not config.alone:
        results |= peers(config, models["XGBoost"], x, y, ours, key)
        for what in ("fit", "predict"):
            ratio = results[f"jaxml_{what}"] / results[f"XGBoost_{what}"]
            results[f"{what}_ratio"] = ratio
    results["peak_megabytes"] = peak_megabytes()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    print("| what | value |\n|---|---|")
    for name, value in results.items():
        print(f"| {name} | {value:.4f} |")
    return results


def options(config: Config) -> dict[str, Any]:
    """Parameters that both libraries take."""
    return {
        "objective": "binary:logistic",
        "eta": 0.1,
        "max_depth": config.depth,
        "max_bin": config.max_bin,
        "tree_method": config.tree_method,
    }


def fit_peer(config: Config, x: np.ndarray, y: np.ndarray, **changed: Any) -> Any:
    """XGBoost's booster, binning included."""
    import xgboost as peer

    if config.tree_method == "hist":
        data = peer.QuantileDMatrix(
            x, y, max_bin=config.max_bin, nthread=config.threads
        )
    else:
        data = peer.DMatrix(x, y, nthread=config.threads)
    given = {**options(config), "nthread": config.threads, **changed}
    return peer.train(given, data, config.trees)


def growth(config: Config) -> dict[str, float]:
    """CPU-seconds of fitting, and the most memory so far, for tables of several sizes."""
    print("| rows | seconds | microseconds a row | seconds of XGBoost | peak MB |")
    print("|---|---|---|---|---|")
    results = {}
    for rows in config.growth:
        x, y = sample(np.random.default_rng(config.seed), rows, config.columns)
        ours = xgboost.Config(num_boost_round=config.trees, **options(config))

        def fit(x: np.ndarray = x, y: np.ndarray = y, ours: Any = ours) -> Any:
            return jax.block_until_ready(xgboost.fit(x, y, ours, jax.random.key(0)))

        fit()
        spent = median(timed(fit)[0] for _ in range(config.rounds))
        peak = peak_megabytes()
        peer_spent = float("nan")
        if config.alone != "jaxml":

            def run(x: np.ndarray = x, y: np.ndarray = y) -> Any:
                return fit_peer(config, x, y)

            peer_spent = median(timed(run)[0] for _ in range(config.rounds))
        each = 1e6 * spent / rows
        print(f"| {rows} | {spent:.2f} | {each:.1f} | {peer_spent:.2f} | {peak:.0f} |")
        results |= {f"fit_{rows}": spent, f"peak_{rows}": peak}
    return results


def many(config: Config) -> dict[str, float]:
    """CPU-seconds of many small models: one program of jaxml's, XGBoost's in turn."""
    x, y = sample(np.random.default_rng(config.seed), config.rows, config.columns)
    etas = np.linspace(0.02, 0.3, config.models, dtype=np.float32)
    ours = xgboost.Config(num_boost_round=config.trees, **options(config))
    key = jax.random.key(0)

    @jax.jit
    def fit(x: np.ndarray, y: np.ndarray, etas: np.ndarray) -> Any:
        bins = make_bins(x, config.max_bin)
        return jax.vmap(lambda e: xgboost.fit(bins, y, replace(ours, eta=e), key))(etas)

    def run() -> Any:
        return jax.block_until_ready(fit(x, y, etas))

    results = {"jaxml_compile": timed(run)[0]}
    results["jaxml_fit"] = median(timed(run)[0] for _ in range(config.rounds))
    if config.alone != "jaxml":

        def theirs() -> Any:
            return [fit_peer(config, x, y, eta=float(eta)) for eta in etas]

        results["XGBoost_fit"] = median(timed(theirs)[0] for _ in range(config.rounds))
        results["fit_ratio"] = results["jaxml_fit"] / results["XGBoost_fit"]
    for name, value in results.items():
        print(f"{name:14s} {value:8.3f}")
    return results


def sample(
    rng: np.random.Generator, rows: int, columns: int
) -> tuple[np.ndarray, np.ndarray]:
    """Features, and labels that depend on eight of them, with noise."""
    x = rng.normal(size=(rows, columns)).astype(np.float32)
    signal = x[:, 0] * x[:, 1] + np.sin(3 * x[:, 2]) + 0.4 * x[:, 3:8].sum(axis=1)
    return x, (signal + rng.logistic(size=rows) > 0).astype(np.float32)


def peers(
    config: Config, booster: Any, x: np.ndarray, y: np.ndarray, ours: Any, key: Any
) -> dict[str, float]:
    """How XGBoost predicts, and how well jaxml does on XGBoost's own cuts."""
    import xgboost as peer

    train, test = slice(config.rows), slice(config.rows, None)
    booster.set_param({"nthread": config.threads})
    spent = [
        timed(lambda: booster.inplace_predict(x[test]))
        for _ in range(max(config.rounds, 3))
    ]
    results = {
        "XGBoost_predict": median(seconds for seconds, _ in spent),
        "XGBoost_auc": float(roc_auc_score(y[test], spent[0][1])),
    }
    if config.tree_method == "hist":
        data = peer.QuantileDMatrix(
            x[train], y[train], max_bin=config.max_bin, nthread=config.threads
        )
        ends, values = data.get_quantile_cut()
        bins = from_cuts(x[train], np.split(values, ends[1:-1].astype(int)))
        model = xgboost.fit(bins, y[train], ours, key)
        told = xgboost.predict(model, x[test])
        results["same_cuts_auc"] = float(roc_auc_score(y[test], told))
    return results


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """CPU-seconds of all threads, and the result."""
    start = time.process_time()
    result = run()
    return time.process_time() - start, result


def peak_megabytes() -> float:
    """The most memory that the process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def pin(threads: int) -> None:
    """Keeps the process to so many cores: JAX starts a thread for each that it sees."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])


if __name__ == "__main__":
    chosen = tyro.cli(Config)
    pin(chosen.threads)
    main(chosen)
