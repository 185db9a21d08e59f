"""Six methods in lockstep with lightly, from the same start and on the same views.

    python -m experiments.bench.ssl_lightly
    python -m experiments.bench.ssl_lightly --dataset digits --no-halve --num-images 1437
        --num-steps 150 --labels-per-class 10

SimCLR, MoCo v2, SwAV, BYOL, SimSiam and DINO: both libraries train the same network from the
same weights with the same optimizer, and in every step both get the same two augmented images
of each sample, drawn once. lightly gives heads, prototypes, loss, memory bank, momentum and
split batch norm, in PyTorch. A bias that only lightly has (of the prototypes, and behind SimCLR's last
batch norm) is held at zero. The features of the last step are judged as everywhere in
`experiments/ssl/protocol.py`.

`first` is how far apart the losses of the first step lie. It is rounding, but for MoCo, whose
shuffling each library draws for itself. From the second step on rounding decides which side
of zero some activations fall on, and the runs part, as two runs of one library do.

Measured with the second command (seeds 0 to 2, JAX 0.10.2, PyTorch 2.13.0, two shared CPU
cores, three methods in 3 to 5 minutes), accuracy on the 360 test images in percent, mean
(lowest to highest):

    method   library    kNN                     linear, 10 labels per class    first
    simclr   jaxml      96.5 (96.1 to 97.2)     92.7 (91.5 to 94.1)
             lightly    96.6 (96.3 to 97.2)     92.7 (91.8 to 93.5)            5e-07
    moco     jaxml      97.6 (97.2 to 97.7)     92.3 (90.7 to 93.8)
             lightly    97.2 (96.9 to 97.7)     90.5 (87.6 to 92.4)            4e-02
    swav     jaxml      95.1 (94.1 to 95.8)     90.1 (87.9 to 92.4)
             lightly    95.3 (94.9 to 96.1)     88.4 (86.8 to 90.4)            2e-06
    byol     jaxml      94.9 (94.4 to 95.5)     90.1 (89.3 to 91.3)
             lightly    95.2 (94.4 to 95.8)     89.9 (89.6 to 90.4)            0e+00
    simsiam  jaxml      95.1 (94.4 to 95.8)     90.4 (89.9 to 91.0)
             lightly    96.1 (95.8 to 96.6)     89.2 (87.3 to 91.3)            2e-08
    dino     jaxml      95.5 (93.8 to 96.6)     89.6 (89.0 to 89.9)
             lightly    95.5 (94.1 to 96.3)     90.0 (89.9 to 90.4)            2e-06

The vote of the neighbours agrees within 0.4 points, but for SimSiam, where it is 1.0; over
nine seeds (`--methods simsiam --seeds 9`) SimSiam has 95.6 beside 96.1, and 89.0 beside 89.6
with ten labels. The probe of ten labels per class differs by up to 1.8, and by 2 to 5 from
seed to seed of either library: three seeds do not tell them apart.

On 2,000 pictures of Fashion-MNIST, halved, five epochs (`--num-images 2000 --num-steps 80
--labels-per-class 10 --methods byol simsiam dino`, 5 minutes), all are within a point:

    byol     jaxml      68.3 (65.9 to 71.3)     60.2 (56.3 to 64.6)
             lightly    68.1 (66.5 to 70.0)     60.3 (56.5 to 64.3)            0e+00
    simsiam  jaxml      67.6 (66.1 to 69.4)     59.4 (59.2 to 59.8)
             lightly    67.4 (66.5 to 68.2)     60.2 (58.4 to 61.6)            2e-08
    dino     jaxml      70.2 (69.4 to 71.0)     60.0 (54.5 to 63.2)
             lightly    70.3 (69.5 to 70.9)     59.5 (54.5 to 62.9)            2e-06
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments.bench.lightly_peer import EPSILON, TEACHER_TEMPERATURE, Peer
from jaxml import data, ops, train
from jaxml.method import Batch, Method, Metrics
from jaxml.metrics import few_labels, knn_probe, linear_probe
from jaxml.nn import BatchNorm, ConvNet
from jaxml.ssl import (
    BYOL,
    DINO,
    Projected,
    SimCLR,
    SimSiam,
    byol,
    dino,
    moco,
    simclr,
    simsiam,
    swav,
)
from jaxml.typing import Array, PRNGKeyArray

METHODS = ("simclr", "moco", "swav", "byol", "simsiam", "dino")


@dataclass(frozen=True)
class Config:
    """What is trained, on what, and how often."""

    methods: tuple[str, ...] = METHODS
    """Which of the six."""
    dataset: str = "fashion_mnist"
    """Or digits, which need no file."""
    num_images: int = 6000
    """Of the training split that are used; a third as many of the test split."""
    halve: bool = True
    """Average 2x2 pixels first."""
    num_steps: int = 400
    """Optimizer updates."""
    batch_size: int = 128
    """Images per update."""
    learning_rate: float = 0.06
    """Of SGD with momentum 0.9, on a cosine."""
    weight_decay: float = 5e-4
    """Of all parameters."""
    widths: tuple[int, ...] = (32, 64, 128)
    """Channels of the convolutions; the last is the number of features."""
    head: tuple[int, int] = (128, 64)
    """Widths of the projection head; of SimSiam its width and the predictor's."""
    queue_size: int = 1024
    """Of MoCo; the batch divides it."""
    momentum: float = 0.99
    """Of MoCo's key encoder, BYOL's target and DINO's teacher."""
    num_groups: int = 8
    """Parts of MoCo's batch with batch statistics of their own."""
    shuffle: bool = True
    """Encode MoCo's keys in another order than its queries."""
    num_prototypes: int = 64
    """Of SwAV, and the outputs of DINO."""
    temperature: float = 0.2
    """Of SimCLR and MoCo; that of SwAV and of DINO's student is 0.1."""
    labels_per_class: int = 50
    """Labels the linear probe may see."""
    neighbours: int = 20
    """Voters of the nearest-neighbour probe."""
    seed: int = 0
    """The first seed."""
    seeds: int = 3
    """Number of consecutive seeds."""
    peers: bool = True
    """Whether to run lightly."""
    data_dir: Path | None = None
    """Folder of the original files; by default the one JAXML_DATA_DIR names."""


SMOKE = Config(
    ("swav",),
    "digits",
    num_images=100,
    halve=False,
    num_steps=2,
    batch_size=16,
    widths=(8,),
    head=(8, 4),
    num_prototypes=5,
    labels_per_class=3,
    neighbours=5,
    seeds=1,
    peers=False,
)


class Splits(NamedTuple):
    """Images in [0, 1] and labels, for learning and for asking."""

    known: Batch
    asked: Batch


def main(config: Config) -> Mapping[str, float]:
    """Prints a table; returns mean accuracies as `<method>/<library>/<probe>`."""
    for name in config.methods:
        if name not in METHODS:
            raise ValueError(f"methods must be of {list(METHODS)}, got {name!r}")
    splits = load(config)
    results = {}
    print(f"{'':<8}{'':<10}{'kNN, %':>22}{'linear, %':>22}{'first':>10}")
    for name in config.methods:
        program = compiled(config, name)
        seeds = range(config.seed, config.seed + config.seeds)
        rows = [lockstep(config, name, program, seed, splits) for seed in seeds]
        for library in rows[0]:
            values = {k: [row[library][k] for row in rows] for k in rows[0][library]}
            cells = [
                f"{100 * np.mean(v):.1f} ({100 * min(v):.1f} to {100 * max(v):.1f})"
                for v in (values["knn"], values["linear"])
            ]
            first = f"{max(values['first']):10.0e}" if "first" in values else ""
            print(
                f"{name:<8}{library:<10}{cells[0]:>22}{cells[1]:>22}{first}", flush=True
            )
            results |= {
                f"{name}/{library}/{k}": float(np.mean(v)) for k, v in values.items()
            }
    return results


def load(config: Config) -> Splits:
    """The splits, cut to size."""
    splits = []
    for split, count in (
        ("train", config.num_images),
        ("test", config.num_images // 3),
    ):
        arrays = data.load_arrays(config.dataset, split, data_dir=config.data_dir)
        images = np.asarray(ops.to_float(arrays["image"][:count]))
        if config.halve:
            n, height, width, channels = images.shape
            images = images.reshape(n, height // 2, 2, width // 2, 2, channels).mean(
                (2, 4)
            )
        splits.append({"image": images, "label": arrays["label"][:count]})
    return Splits(*splits)


class Program(NamedTuple):
    """One method of this library, compiled once for all seeds."""

    init: Callable[[PRNGKeyArray, Batch], train.TrainState]
    step: Callable[[train.TrainState, Batch], tuple[train.TrainState, Metrics]]
    predict: Callable[..., Array]
    rate: optax.Schedule


def compiled(config: Config, name: str) -> Program:
    """The program of a method."""
    method = ours(config, name)
    rate = optax.cosine_decay_schedule(config.learning_rate, config.num_steps)
    decay = optax.add_decayed_weights(config.weight_decay)
    optimizer = optax.chain(decay, optax.sgd(rate, momentum=0.9))
    step = train.gradient_step(method, optimizer, jax.random.key(config.seed))
    return Program(
        partial(train.init_state, method, optimizer),
        jax.jit(step, donate_argnums=0),
        jax.jit(method.predict),
        rate,
    )


def lockstep(
    config: Config, name: str, program: Program, seed: int, splits: Splits
) -> dict[str, dict[str, float]]:
    """Trains one seed of both libraries, and judges them."""
    init_key, view_key = jax.random.split(jax.random.key(seed))
    images = splits.known["image"]
    state = program.init(init_key, two_views(view_key, 0, images[:8]))
    peer = None
    if config.peers:
        start = jax.device_get((state.params, state.model_state))
        peer = Peer(config, name, start, seed)
    first = 0.0
    for i, rows in enumerate(order(config, seed, len(images))):
        batch = two_views(view_key, i, images[rows])
        state, metrics = program.step(state, batch)
        if peer is not None:
            value = peer.step(np.asarray(batch["global"]), float(program.rate(i)))
            first = abs(value - float(metrics["loss"])) if i == 0 else first

    def features(images: np.ndarray) -> Array:
        return program.predict(state.params, state.model_state, {"image": images})

    results = {"jaxml": judged(config, splits, features, seed)}
    if peer is not None:
        theirs = judged(config, splits, peer.features, seed)
        results["lightly"] = {**theirs, "first": first}
    return results


def view(key: PRNGKeyArray, image: Array) -> Array:
    """A small gray picture, moved and perhaps mirrored."""
    flip_key, view_key = jax.random.split(key)
    return ops.digit_view(view_key, ops.random_horizontal_flip(flip_key, image))


@jax.jit
def two_views(key: PRNGKeyArray, step: int | Array, images: Array) -> Batch:
    """Both crops of every image, under the names that the methods know."""
    keys = jax.random.split(jax.random.fold_in(key, step), (2, len(images)))
    view1, view2 = (jax.vmap(view)(k, jnp.asarray(images)) for k in keys)
    both = jnp.stack([view1, view2], axis=1)
    return {"view1": view1, "view2": view2, "global": both}


def order(config: Config, seed: int, count: int) -> Iterator[np.ndarray]:
    """Which images make each batch."""
    rng, left = np.random.default_rng(seed), np.zeros(0, np.int64)
    for _ in range(config.num_steps):
        if len(left) < config.batch_size:
            left = rng.permutation(count)
        batch, left = np.split(left, [config.batch_size])
        yield batch


def judged(
    config: Config, splits: Splits, features: Callable[[np.ndarray], Any], seed: int
) -> dict[str, float]:
    """Accuracies of frozen features on the test split."""
    known, asked = (np.asarray(features(split["image"])) for split in splits)
    labels, answers = splits.known["label"], splits.asked["label"]
    few = few_labels(labels, config.labels_per_class, jax.random.key(seed))
    return {
        "knn": float(knn_probe(known, labels, asked, answers, k=config.neighbours)),
        "linear": float(linear_probe(known[few], labels[few], asked, answers)),
    }


def ours(config: Config, name: str) -> Method:
    """The method of this library."""
    backbone = ConvNet(config.widths)
    if name == "simclr":
        return simclr(SimCLR(backbone, config.head), temperature=config.temperature)
    if name == "swav":
        model = Projected(backbone, config.head, normalize=True)
        return swav(model, num_prototypes=config.num_prototypes, epsilon=EPSILON)
    hidden, last = config.head
    if name == "byol":
        return byol(BYOL(backbone, config.head, config.head), momentum=config.momentum)
    if name == "simsiam":
        return simsiam(SimSiam(backbone, dim=hidden, bottleneck=last))
    if name == "dino":
        return dino(
            DINO(backbone, config.num_prototypes, (hidden, hidden, last)),
            momentum=config.momentum,
            teacher_temperature=TEACHER_TEMPERATURE,
        )
    norm = partial(BatchNorm, num_groups=config.num_groups)
    return moco(
        Projected(ConvNet(config.widths, norm=norm), config.head),
        queue_size=config.queue_size,
        momentum=config.momentum,
        temperature=config.temperature,
        shuffle=config.shuffle,
    )


if __name__ == "__main__":
    main(tyro.cli(Config))
