"""Ensembles of trees on a CPU: jaxml and scikit-learn, CPU-seconds side by side.

    python -m experiments.bench.ensembles --what unpruned --trees 2 --rounds 3
    python -m experiments.bench.ensembles --what forest --trees 10 --rounds 3
    python -m experiments.bench.ensembles --what stumps

100,000 rows of 28 features, one thread's CPU-seconds to fit, binning included, without the
one compilation (14, 4 and 4 CPU-seconds, the first fit included); jaxml splits at 255 bins,
scikit-learn between any two values. One of 2 CPU cores (Xeon), the other one idle, jax
0.10.2, scikit-learn 1.9.1, seed 0, medians of the rounds:

                             fit s                     predict 50,000 s   held-out AUC
                             jaxml  sklearn  ratio     jaxml   sklearn    jaxml    sklearn
    forest, 2 unpruned        0.36    0.86    2.4x     0.015    0.017     0.5872   0.5956
    forest, 10 of depth 6     0.25    1.82    7.2x     0.008    0.017     0.6959   0.7010
    AdaBoost, 100 stumps      0.59   28.5      48x     0.102    0.127     0.7277   0.7270

The unpruned trees are 35 levels deep; on cores with five waiting processes they took 0.41 and
0.39 CPU-seconds, and the ratios were 2.3 and 2.3.

Peak memory with `--alone jaxml`, of the whole process: 1282 MB for the unpruned forest, 713
for that of depth 6, 673 for the stumps; loading and data alone are 361, and scikit-learn
(`--alone sklearn`) needs no more than that.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import jax
import numpy as np
import tyro
from sklearn.ensemble import AdaBoostClassifier, RandomForestClassifier
from sklearn.metrics import roc_auc_score

from experiments.bench.trees import peak_megabytes, pin, sample
from jaxml.trees import adaboost, cart, random_forest


@dataclass(frozen=True)
class Config:
    """What is measured, and how often."""

    what: tuple[str, ...] = ("stumps", "forest", "unpruned")
    """AdaBoost of stumps, a random forest of `depth`, and one of pure leaves."""
    rows: int = 100_000
    """Training rows; half as many are held out."""
    columns: int = 28
    """Features, eight of which matter."""
    trees: int = 100
    """Of every ensemble."""
    depth: int = 6
    """Of the forest."""
    max_bins: int = 255
    """Of jaxml; scikit-learn's thresholds are exact."""
    rounds: int = 1
    """Repetitions in turn, of which the median is taken."""
    threads: int = 1
    """Cores of the whole process, where run as a command; scikit-learn uses one."""
    alone: Literal["", "jaxml", "sklearn"] = ""
    """One library without the other, as peak memory is that of the process."""
    seed: int = 0
    """Of the data and the draws."""


SMOKE = Config(
    what=("stumps",), rows=400, columns=8, trees=2, max_bins=16, alone="jaxml"
)


def main(config: Config) -> Mapping[str, float]:
    """Prints a table; returns CPU-seconds, areas under the curve, and peak memory."""
    rng = np.random.default_rng(config.seed)
    x, y = sample(rng, config.rows + config.rows // 2, config.columns)
    y = y.astype(np.int32)
    results = {"start_megabytes": peak_megabytes()}
    for what in config.what:
        compete(config, what, x, y, results)
    results["peak_megabytes"] = peak_megabytes()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    print("| what | value |\n|---|---|")
    for name, value in results.items():
        print(f"| {name} | {value:.4f} |")
    return results


def compete(
    config: Config, what: str, x: np.ndarray, y: np.ndarray, results: dict[str, float]
) -> None:
    """One kind of ensemble, both libraries in turn."""
    train, test = slice(config.rows), slice(config.rows, None)
    sides = {
        name: how(config, what)
        for name, how in (("jaxml", ours), ("sklearn", theirs))
        if config.alone in ("", name)
    }
    if "jaxml" in sides:
        spent, _ = timed(lambda: sides["jaxml"][0](x[train], y[train]))
        results[f"{what}_jaxml_first"] = spent  # with compilation
    fits: dict[str, list[float]] = {name: [] for name in sides}
    models: dict[str, Any] = {}
    for _ in range(config.rounds):
        for name, (fit, _) in sides.items():
            spent, models[name] = timed(lambda fit=fit: fit(x[train], y[train]))
            fits[name].append(spent)
    for name, (_, predict) in sides.items():
        predict(models[name], x[test])
        spent, told = timed(lambda p=predict, name=name: p(models[name], x[test]))
        results[f"{what}_{name}_fit"] = median(fits[name])
        results[f"{what}_{name}_predict"] = spent
        results[f"{what}_{name}_auc"] = float(roc_auc_score(y[test], told))
    if not config.alone:
        ratio = results[f"{what}_sklearn_fit"] / results[f"{what}_jaxml_fit"]
        results[f"{what}_ratio"] = ratio


def ours(config: Config, what: str) -> tuple[Callable, Callable]:
    """How to fit, and how to tell the second class's share, of jaxml."""
    key = jax.random.key(config.seed)
    if what == "stumps":
        learner = cart.learner(
            cart.Config(max_depth=1, num_classes=2, max_bins=config.max_bins)
        )
        boost = adaboost.Config(2, config.trees)
        return (
            lambda x, y: adaboost.fit(x, y, learner, boost, key),
            lambda m, x: np.asarray(adaboost.predict_proba(m, learner, x))[:, 1],
        )
    tree = cart.Config(
        max_depth=config.depth if what == "forest" else None,
        max_features="sqrt",
        max_bins=config.max_bins,
    )
    forest = random_forest.Config(tree, config.trees)
    return (
        lambda x, y: random_forest.fit(x, y, forest, key),
        lambda m, x: np.asarray(random_forest.predict_proba(m, x))[:, 1],
    )


def theirs(config: Config, what: str) -> tuple[Callable, Callable]:
    """The same of scikit-learn, one thread."""
    if what == "stumps":
        model = lambda: AdaBoostClassifier(n_estimators=config.trees)  # noqa: E731
    else:
        depth = config.depth if what == "forest" else None
        model = lambda: RandomForestClassifier(  # noqa: E731
            config.trees, max_depth=depth, random_state=config.seed
        )
    return (
        lambda x, y: model().fit(x, y),
        lambda m, x: m.predict_proba(x)[:, 1],
    )


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """CPU-seconds of all threads, and the result."""
    start = time.process_time()
    result = jax.block_until_ready(run())
    return time.process_time() - start, result


if __name__ == "__main__":
    chosen = tyro.cli(Config)
    pin(chosen.threads)
    main(chosen)
