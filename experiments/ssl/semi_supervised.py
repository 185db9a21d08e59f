"""SimCLR v2's three steps on one data set: pretrain, fine-tune on few labels, distil.

Shared by the experiments of fine-tuning and distillation. All accuracies are those of the
last step on the test split; the seed draws the labels once. Every step has a folder of its
own below that of the experiment, and is continued where it stopped.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from jaxml import data, ops, parallel, train
from jaxml.compose import augmented
from jaxml.method import Batch, Method
from jaxml.metrics import few_labels
from jaxml.nn import ConvNet
from jaxml.ssl import FineTuned, SimCLR, distill, fine_tune, simclr
from jaxml.typing import Array, PRNGKeyArray


class Splits(NamedTuple):
    """What may be learned from, and what is asked at the end."""

    unlabelled: Batch
    labelled: Batch
    test: Batch

    @property
    def num_classes(self) -> int:
        """Number of labels."""
        return int(self.labelled["label"].max()) + 1


class Trained(NamedTuple):
    """A method and the state after its last step."""

    method: Method
    state: train.TrainState


def load(config: Any) -> Splits:
    """The splits, with few labels of each class."""
    train_split, test_split = (
        data.load_arrays(config.dataset, split, data_dir=config.data_dir)
        for split in ("train", "test")
    )
    chosen = np.asarray(
        few_labels(
            train_split["label"], config.labels_per_class, jax.random.key(config.seed)
        )
    )
    few = {name: array[chosen] for name, array in train_split.items()}
    return Splits(train_split, few, test_split)


def pretrained(config: Any, splits: Splits) -> Trained:
    """SimCLR with a head of three layers, without labels."""
    backbone = ConvNet(config.widths, axis_name="data")
    model = SimCLR(backbone, config.head, axis_name="data")
    method = augmented(
        simclr(model, temperature=0.2), ops.two_views(ops.digit_view), "data"
    )
    return _trained(
        config, "pretrain", method, config.pretrain_steps, splits.unlabelled
    )


def fine_tuned(config: Any, splits: Splits, start: Trained | None) -> Trained:
    """All of the network on the few labels; at random where nothing is pretrained."""
    given = None if start is None else (start.state.params, start.state.model_state)
    name = "from_scratch" if start is None else "fine_tune"
    method = augmented(fine_tune(_teacher(config, splits), given), one_view, "data")
    return _trained(config, name, method, config.fine_tune_steps, splits.labelled)


def distilled(config: Any, splits: Splits, teacher: Trained) -> Trained:
    """A smaller network on all images, told by the teacher alone."""
    backbone = ConvNet(config.student_widths, axis_name="data")
    method = distill(
        FineTuned(backbone, splits.num_classes),
        _teacher(config, splits),
        (teacher.state.params, teacher.state.model_state),
        temperature=config.temperature,
        axis_name="data",
    )
    method = augmented(method, one_view, "data")
    return _trained(
        config,
        "distill",
        method,
        config.distill_steps,
        splits.unlabelled,
        config.distill_learning_rate,
    )


def accuracy(trained: Trained, split: Batch) -> float:
    """Share of a split that is classified right."""
    images = split["image"]
    slices = ({"image": images[i : i + 500]} for i in range(0, len(images), 500))
    logits = train.predict(trained.method, trained.state, slices)
    return float(np.mean(np.argmax(logits, axis=1) == split["label"]))


def one_view(key: PRNGKeyArray, image: Array) -> dict[str, Array]:
    """The view of training with labels, or a teacher's."""
    return {"view": ops.digit_view(key, image)}


def _teacher(config: Any, splits: Splits) -> FineTuned:
    kept = config.head[: config.head_layers]
    backbone = ConvNet(config.widths, axis_name="data")
    return FineTuned(backbone, splits.num_classes, kept, axis_name="data")


def _trained(
    config: Any,
    name: str,
    method: Method,
    num_steps: int,
    split: Batch,
    learning_rate: float | None = None,
) -> Trained:
    source = data.from_arrays({"train": dict(split)})
    batches = data.load(source, "train", config.batch_size, seed=config.seed)
    init_key, run_key = jax.random.split(jax.random.key(config.seed))
    peak = config.learning_rate if learning_rate is None else learning_rate
    rate = optax.cosine_decay_schedule(peak, num_steps)
    optimizer = optax.adamw(rate, weight_decay=config.weight_decay)
    state = train.init_state(method, optimizer, init_key, next(iter(batches)))
    mesh = parallel.data_mesh()
    step = train.gradient_step(method, optimizer, run_key, "data")
    state = train.fit(
        parallel.data_parallel(step, mesh),
        parallel.replicate(state, mesh),
        batches,
        num_steps,
        run=train.Run(config.out / name, config, ignore=("out", "data_dir")),
    )
    return Trained(method, state)
