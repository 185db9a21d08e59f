"""Three methods in lockstep with lightly, from the same start and on the same views.

    python -m experiments.bench.ssl_lightly
    python -m experiments.bench.ssl_lightly --dataset digits --no-halve --num-images 1437
        --num-steps 150 --labels-per-class 10

SimCLR, MoCo v2 and SwAV: both libraries train the same network from the same weights with
the same optimizer, and in every step both get the same two augmented images of each sample,
drawn once. lightly gives heads, prototypes, loss, memory bank, momentum and split batch
norm, in PyTorch. A bias that only lightly has (of the prototypes, and behind SimCLR's last
batch norm) is held at zero. The features of the last step are judged as everywhere in
`experiments/ssl/protocol.py`.

`first` is how far apart the losses of the first step lie. It is rounding, but for MoCo, whose
shuffling each library draws for itself. From the second step on rounding decides which side
of zero some activations fall on, and the runs part, as two runs of one library do.

Measured with the second command (seeds 0 to 2, JAX 0.10.2, PyTorch 2.13.0, two shared CPU
cores, 5 minutes), accuracy on the 360 test images in percent, mean (lowest to highest):

    method  library    kNN                     linear, 10 labels per class    first
    simclr  jaxml      96.5 (96.1 to 97.2)     92.7 (91.5 to 94.1)
            lightly    96.6 (96.3 to 97.2)     92.7 (91.8 to 93.5)            5e-07
    moco    jaxml      97.6 (97.2 to 97.7)     92.3 (90.7 to 93.8)
            lightly    97.2 (96.9 to 97.7)     90.5 (87.6 to 92.4)            4e-02
    swav    jaxml      95.1 (94.1 to 95.8)     90.1 (87.9 to 92.4)
            lightly    95.3 (94.9 to 96.1)     88.4 (86.8 to 90.4)            2e-06

The vote of the neighbours agrees within 0.4 points. The probe of ten labels per class differs
by up to 1.8, and by 3 to 5 from seed to seed of either library: three seeds do not tell them
apart.
"""

import copy
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

from experiments.ssl.protocol import garment_view
from jaxml import data, ops, train
from jaxml.method import Batch, Method, Metrics, Params
from jaxml.metrics import few_labels, knn_probe, linear_probe
from jaxml.nn import BatchNorm, ConvNet
from jaxml.ssl import Projected, SimCLR, moco, simclr, swav
from jaxml.typing import Array, PRNGKeyArray

METHODS = ("simclr", "moco", "swav")
EPSILON = 0.05


@dataclass(frozen=True)
class Config:
    """What is trained, on what, and how often."""

    methods: tuple[str, ...] = METHODS
    """Which of the three."""
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
    """Widths of the projection head."""
    queue_size: int = 1024
    """Of MoCo; the batch divides it."""
    momentum: float = 0.99
    """Of MoCo's key encoder."""
    num_groups: int = 8
    """Parts of MoCo's batch with batch statistics of their own."""
    shuffle: bool = True
    """Encode MoCo's keys in another order than its queries."""
    num_prototypes: int = 64
    """Of SwAV."""
    temperature: float = 0.2
    """Of SimCLR and MoCo; that of SwAV is 0.1."""
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


@jax.jit
def two_views(key: PRNGKeyArray, step: int | Array, images: Array) -> Batch:
    """Both crops of every image, under the names that the methods know."""
    keys = jax.random.split(jax.random.fold_in(key, step), (2, len(images)))
    view1, view2 = (jax.vmap(garment_view)(k, jnp.asarray(images)) for k in keys)
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
    norm = partial(BatchNorm, num_groups=config.num_groups)
    return moco(
        Projected(ConvNet(config.widths, norm=norm), config.head),
        queue_size=config.queue_size,
        momentum=config.momentum,
        temperature=config.temperature,
        shuffle=config.shuffle,
    )


class Peer:
    """The same method of lightly, from the same start.

    Args:
        config: of the run.
        name: one of `METHODS`.
        start: our parameters and model state, as NumPy arrays.
        seed: of PyTorch, which draws the order of MoCo's keys.
    """

    def __init__(
        self, config: Config, name: str, start: tuple[Params, Any], seed: int
    ) -> None:
        import torch

        torch.manual_seed(seed)
        self.torch = torch
        params, model_state = start
        network = params["model"] if name == "swav" else params
        self.backbone = torch_backbone(config, name, network["backbone"])
        head = torch_head(config, name, network)
        self.model = torch.nn.Sequential(self.backbone, head)
        if name == "simclr":
            self.objective, more = simclr_objective(config, self.model), []
        elif name == "moco":
            queue = model_state["queue"]
            self.objective, more = moco_objective(config, self.model, queue), []
        else:
            self.objective, prototypes = swav_objective(
                config, self.model, params["prototypes"]
            )
            more = [prototypes]
        trained = [
            p
            for module in (self.model, *more)
            for p in module.parameters()
            if p.requires_grad
        ]
        self.optimizer = torch.optim.SGD(
            trained, 0.1, momentum=0.9, weight_decay=config.weight_decay
        )

    def step(self, crops: np.ndarray, rate: float) -> float:
        """One update by [batch, 2, height, width, channels]; returns the loss."""
        self.optimizer.param_groups[0]["lr"] = rate
        views = self.torch.tensor(crops).permute(1, 0, 4, 2, 3).contiguous()
        value = self.objective(views)
        self.optimizer.zero_grad()
        value.backward()
        self.optimizer.step()
        return value.item()

    def features(self, images: np.ndarray) -> np.ndarray:
        """What the backbone gives after training."""
        self.model.eval()
        with self.torch.no_grad():
            given = self.torch.tensor(images).permute(0, 3, 1, 2).contiguous()
            return self.backbone(given).numpy()


def torch_backbone(config: Config, name: str, weights: Params) -> Any:
    """`ConvNet` in PyTorch."""
    import torch
    from lightly.models.batchnorm import SplitBatchNorm

    layers: list[Any] = []
    for i, width in enumerate(config.widths):
        kernel = torch.tensor(weights[f"Conv_{i}"]["kernel"]).permute(3, 2, 0, 1)
        conv = torch.nn.Conv2d(kernel.shape[1], width, 3, 2 if i else 1, 1, bias=False)
        conv.weight.data = kernel.contiguous()
        if name == "moco" and config.num_groups > 1:
            norm = SplitBatchNorm(width, config.num_groups)
        else:
            norm = torch.nn.BatchNorm2d(width)
        layers += [conv, norm, torch.nn.ReLU()]
    pool = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
    return torch.nn.Sequential(*layers, *pool)


def torch_head(config: Config, name: str, network: Params) -> Any:
    """Lightly's projection head, with our weights."""
    import torch
    from lightly.models import modules

    heads = {
        "simclr": modules.SimCLRProjectionHead,
        "moco": modules.MoCoProjectionHead,
        "swav": modules.SwaVProjectionHead,
    }
    head = heads[name](config.widths[-1], *config.head)
    weights = network["Mlp_0" if name == "simclr" else "head"]
    linear = [layer for layer in head.layers if isinstance(layer, torch.nn.Linear)]
    for i, layer in enumerate(linear):
        layer.weight.data = torch.tensor(weights[f"Dense_{i}"]["kernel"].T.copy())
        if layer.bias is not None:
            layer.bias.data = torch.tensor(weights[f"Dense_{i}"]["bias"])
    if name == "simclr":
        head.layers[-1].bias.requires_grad_(False)
    return head


def simclr_objective(config: Config, model: Any) -> Callable[[Any], Any]:
    """Loss of [2, batch, ...]; both views in one pass, as here."""
    from lightly.loss import NTXentLoss

    loss = NTXentLoss(config.temperature)
    return lambda views: loss(*model(views.flatten(0, 1)).chunk(2))


def moco_objective(
    config: Config, model: Any, queue: np.ndarray
) -> Callable[[Any], Any]:
    """Loss of [2, batch, ...]; moves the teacher and the queue."""
    import torch
    from lightly.loss import NTXentLoss
    from lightly.models import utils

    teacher = copy.deepcopy(model)
    utils.deactivate_requires_grad(teacher)
    loss = NTXentLoss(config.temperature, memory_bank_size=queue.shape)
    # Theirs is a ring that is written from its beginning, ours has the newest first.
    loss.memory_bank.bank = torch.tensor(queue[::-1].copy())

    def objective(views: Any) -> Any:
        utils.update_momentum(model, teacher, config.momentum)
        queries, images = model(views[0]), views[1]
        with torch.no_grad():
            if config.shuffle:
                images, places = utils.batch_shuffle(images)
                keys = utils.batch_unshuffle(teacher(images), places)
            else:
                keys = teacher(images)
        return loss(queries, keys)

    return objective


def swav_objective(
    config: Config, model: Any, weights: np.ndarray
) -> tuple[Callable[[Any], Any], Any]:
    """Loss of [2, batch, ...], and the prototypes."""
    import torch
    from lightly.loss import SwaVLoss
    from lightly.models.modules import SwaVPrototypes

    loss = SwaVLoss(sinkhorn_epsilon=EPSILON)
    prototypes = SwaVPrototypes(config.head[-1], config.num_prototypes)
    (linear,) = prototypes.heads
    linear.weight.data = torch.tensor(weights)
    linear.bias.data.zero_()
    linear.bias.requires_grad_(False)

    def objective(views: Any) -> Any:
        prototypes.normalize()
        z = torch.nn.functional.normalize(model(views.flatten(0, 1)))
        return loss(list(prototypes(z).chunk(2)), [])

    return objective, prototypes


if __name__ == "__main__":
    main(tyro.cli(Config))
