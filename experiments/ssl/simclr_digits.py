"""SimCLR on scikit-learn's 8x8 handwritten digits: the main job, in a minute.

    python -m experiments.ssl.simclr_digits
    python -m experiments.ssl.simclr_digits --seeds 3

Learns from the images of the training split without their labels, then asks how good the
frozen features are (see `experiments/ssl/protocol.py`) beside raw pixels and beside the
same encoder untrained. Writes curves, an augmentation sheet and a picture of the embedding.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import optax
import tyro

from experiments.ssl import protocol
from jaxml import data, draw, ops, parallel, train
from jaxml.compose import augmented
from jaxml.nn import ConvNet
from jaxml.ssl import SimCLR, simclr


@dataclass(frozen=True)
class Config:
    """SimCLR on 8x8 digits."""

    num_steps: int = 1500
    """Optimizer updates."""
    batch_size: int = 256
    """Images per update, over all devices."""
    learning_rate: float = 2e-3
    """Peak of AdamW's cosine schedule."""
    weight_decay: float = 1e-4
    """Of AdamW."""
    temperature: float = 0.2
    """Of NT-Xent."""
    widths: tuple[int, ...] = (32, 64, 128)
    """Channels of the convolutions; the last is the number of features."""
    head: tuple[int, ...] = (128, 64)
    """Widths of the projection head."""
    labels_per_class: int = 10
    """Labels the linear probe may see."""
    seed: int = 0
    """Seed of initialisation, data order and augmentation."""
    seeds: int = 1
    """Number of consecutive seeds to run; each has a folder of its own."""
    save_every: int = 500
    """Steps between checkpoints."""
    out: Path = Path("runs/simclr_digits")
    """Where everything is written; a run found there is continued."""


def main(config: Config) -> Mapping[str, float]:
    """Runs all seeds; returns mean accuracies as `<features>/<classifier>`."""
    return protocol.over_seeds(config, train_one, config.seeds)


def train_one(config: Config) -> protocol.Results:
    """One seed, from data to pictures."""
    train_split, test_split = (data.load_arrays("digits", s) for s in ("train", "test"))
    batches = data.load("digits", "train", config.batch_size, seed=config.seed)
    views = ops.two_views(ops.digit_view)
    model = SimCLR(
        ConvNet(config.widths, axis_name="data"), config.head, axis_name="data"
    )
    method = augmented(simclr(model, temperature=config.temperature), views, "data")
    rate = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, config.num_steps // 20, config.num_steps
    )
    optimizer = optax.adamw(rate, weight_decay=config.weight_decay)

    init_key, run_key = jax.random.split(jax.random.key(config.seed))
    state = train.init_state(method, optimizer, init_key, next(iter(batches)))
    judge = partial(
        protocol.judge,
        train=train_split,
        test=test_split,
        labels_per_class=config.labels_per_class,
        seed=config.seed,
    )
    untrained = judge({"untrained": (method, state)})
    step = train.gradient_step(method, optimizer, run_key, "data")
    run = train.Run(config.out, config, ignore=("out", "seeds", "save_every"))
    state = train.fit(
        parallel.data_parallel(step, parallel.data_mesh()),
        state,
        batches,
        config.num_steps,
        run=run,
        save_every=config.save_every,
    )
    results = untrained | judge({"simclr": (method, state)})
    features = protocol.embed(method, state, test_split)
    draw.save_embedding(
        run.path / "embedding.png", features, test_split["label"], method="tsne"
    )
    protocol.picture_views(run.path / "views.png", views, train_split["image"][:8])
    return results


if __name__ == "__main__":
    main(tyro.cli(Config))
