"""What labels are worth with and without pretraining: a curve over their number.

One network, one recipe and the same labels, twice: from random weights, and from those
that were pretrained without labels. All accuracies are those of the last step on the test
split; nothing is selected on it. `curve.png` shows both.
"""

import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax

from experiments.ssl import semi_supervised
from jaxml import data, draw, parallel, train
from jaxml.compose import augmented
from jaxml.method import Batch, ModelState, Params
from jaxml.metrics import few_labels
from jaxml.ops.views import Views
from jaxml.ssl import FineTuned, fine_tune

MAY_CHANGE = ("out", "data_dir")


def curve(
    config: Any,
    model: FineTuned,
    pretrained: tuple[Params, ModelState],
    known: Batch,
    test: Batch,
    optimizer: optax.GradientTransformation,
    views: Views | None = None,
) -> Mapping[str, float]:
    """Accuracies as `<start>/<labels per class>`, and their picture.

    Args:
        config: has `labels_per_class`, several, `fine_tune_steps`, `fine_tune_batch`,
            `seed` and `out`.
        model: the classifier.
        pretrained: what it may start from.
        known: the training split, `image` and `label`.
        test: the test split.
        optimizer: of every fine-tuning.
        views: augmentation of `image`; None trains on it as it is.
    """
    methods = {}
    for name, start in (("from_scratch", None), ("pretrained", pretrained)):
        method = fine_tune(model, start)
        methods[name] = augmented(method, views, "data") if views else method
    init_key, run_key = jax.random.split(jax.random.key(config.seed))
    mesh = parallel.data_mesh()
    # Both differ in where they start alone: one program serves them all.
    step = train.gradient_step(methods["from_scratch"], optimizer, run_key, "data")
    step = parallel.data_parallel(step, mesh)
    results = {}
    for count in config.labels_per_class:
        key = jax.random.key(config.seed)
        chosen = np.asarray(few_labels(known["label"], count, key))
        few = {name: array[chosen] for name, array in known.items()}
        if views is None:
            few["view"] = few["image"]
        source = data.from_arrays({"train": few})
        for name, method in methods.items():
            batches = data.load(
                source, "train", config.fine_tune_batch, seed=config.seed
            )
            state = train.init_state(method, optimizer, init_key, next(iter(batches)))
            state = train.fit(
                step,
                parallel.replicate(state, mesh),
                batches,
                config.fine_tune_steps,
                run=train.Run(config.out / f"{name}_{count}", config, MAY_CHANGE),
            )
            done = semi_supervised.Trained(method, state)
            results[f"{name}/{count}"] = semi_supervised.accuracy(done, test)
    if jax.process_index() == 0:
        _told(config, results)
    return results


def _told(config: Any, results: Mapping[str, float]) -> None:
    """Prints and draws the curve."""
    counts = list(config.labels_per_class)
    lines = {
        name: [results[f"{name}/{count}"] for count in counts]
        for name in ("from_scratch", "pretrained")
    }
    print("\naccuracy on the test split, %")
    print(f"{'labels per class':<18}" + "".join(f"{count:>8}" for count in counts))
    for name, values in lines.items():
        cells = "".join(f"{100 * value:8.1f}" for value in values)
        print(f"{name.replace('_', ' '):<18}{cells}")
    (config.out / "results.json").write_text(json.dumps(dict(results), indent=2) + "\n")
    draw.save_curves(
        config.out / "curve.png",
        {f"{name}/accuracy": (counts, values) for name, values in lines.items()},
        title="accuracy on the test split",
        xlabel="labels per class",
    )
