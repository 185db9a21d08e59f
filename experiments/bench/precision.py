"""A training step in each precision: time and memory, beside torch.autocast.

    python -m experiments.bench.precision

Cross-entropy of 32x32 images, forward, backward and SGD with momentum, compiled by jaxml
and eager in PyTorch. Rounds alternate, medians count; processor time, which is summed over
cores, hardly sees what else the machine does. `times` is against the same library's own
float32; memory is XLA's own account of the buffers of a step, without the state.

TABLE

Half precision pays on hardware that has it. A CPU without bfloat16 units converts there
and back, and what is left of the gain is memory.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from jaxml import precision, train
from jaxml.method import Batch, Method, Metrics, ModelState, Params
from jaxml.nn import ConvNet
from jaxml.nn.functional import apply_module, init_module
from jaxml.nn.resnet import resnet18
from jaxml.nn.vit import vit_tiny
from jaxml.typing import Array, Float, PRNGKeyArray

Run = Callable[[], Any]


@dataclass(frozen=True)
class Config:
    """What is measured, and how often."""

    models: tuple[str, ...] = ("convnet", "resnet18", "vit_tiny")
    """Which of the three."""
    policies: tuple[str, ...] = (
        "float32",
        "mixed_bfloat16",
        "mixed_float16",
        "pure_bfloat16",
    )
    """Which precisions; float16 with a dynamic loss scale, pure bfloat16 with stochastic
    rounding."""
    batch_size: int = 32
    """Images in a batch."""
    rounds: int = 7
    """Repetitions, of which the median is taken."""
    peers: bool = True
    """Whether to run PyTorch, if it is installed."""
    seed: int = 0
    """Seed of images and parameters."""


def main(config: Config) -> Mapping[str, Mapping[str, float]]:
    """Prints a table, and returns its rows."""
    rng = np.random.default_rng(config.seed)
    shape = config.batch_size, 32, 32, 3
    batch = {
        "image": rng.random(shape).astype(np.float32),
        "label": rng.integers(0, 10, config.batch_size),
    }
    rows: dict[str, Mapping[str, float]] = {}
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    print("| model | library, precision | wall ms | processor ms | times | memory MB |")
    print("|---|---|---|---|---|---|")
    for model in config.models:
        runs: dict[str, Run] = {}
        memory: dict[str, float] = {}
        for name in config.policies:
            runs[f"jaxml {name}"], memory[f"jaxml {name}"] = ours(model, name, batch)
        if config.peers:
            runs |= peers(model, batch)
        speeds = measure(runs, config.rounds)
        for name, (wall, core) in speeds.items():
            own = f"{name.split()[0]} float32"
            times = core / speeds[own][1] if own in speeds else float("nan")
            row = {"wall": wall, "core": core, "times": times}
            rows[f"{model}, {name}"] = row | {"memory": memory.get(name, float("nan"))}
            size = f"{memory[name]:.0f}" if name in memory else ""
            print(
                f"| {model} | {name} | {1e3 * wall:.0f} | {1e3 * core:.0f} "
                f"| {times:.2f} | {size} |"
            )
    return rows


def network(model: str) -> nn.Module:
    """A classifier of ten classes."""
    if model == "resnet18":
        return resnet18(num_classes=10, stem="cifar")
    if model == "vit_tiny":
        return vit_tiny(image_size=32, patch_size=4, num_classes=10)
    if model == "convnet":
        return Classifier(ConvNet((64, 128, 256)))
    raise ValueError(f"model must be convnet, resnet18 or vit_tiny, got {model!r}")


class Classifier(nn.Module):
    """A linear head on features."""

    backbone: nn.Module

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Array:
        return nn.Dense(10)(self.backbone(images, train=train))


def classifier(model: nn.Module) -> Method:
    """Cross-entropy of `label` given `image`."""

    def init(key: PRNGKeyArray, batch: Batch) -> tuple[Params, ModelState]:
        return init_module(model, key, batch["image"], train=True)

    def loss(
        params: Params, model_state: ModelState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[ModelState, Metrics]]:
        del key
        logits, model_state = apply_module(
            model, params, model_state, batch["image"], train=True
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits.astype(jnp.float32), batch["label"]
        )
        value = jnp.mean(losses)
        return value, (model_state, {"loss": value})

    def predict(params: Params, model_state: ModelState, batch: Batch) -> Array:
        return apply_module(model, params, model_state, batch["image"], train=False)[0]

    return Method(init, loss, predict)


def ours(model: str, name: str, batch: Batch) -> tuple[Run, float]:
    """One compiled step, and the megabytes of its buffers."""
    policy = precision.policy(name)
    method = precision.mixed_precision(classifier(network(model)), policy)
    optimizer: optax.GradientTransformation = optax.sgd(0.01, momentum=0.9)
    if name == "pure_bfloat16":
        optimizer = precision.stochastic_rounding(optimizer, jax.random.key(2))
    scale = precision.DynamicLossScale.create() if policy.needs_loss_scale else None
    state = train.init_state(method, optimizer, jax.random.key(0), batch, scale)
    step = train.gradient_step(method, optimizer, jax.random.key(1))
    batch = jax.device_put(dict(batch))
    compiled = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
    memory = compiled.memory_analysis()
    box = [state]

    def run() -> None:
        box[0], values = compiled(box[0], batch)
        jax.block_until_ready((box[0], values))

    return run, memory.temp_size_in_bytes / 1e6 if memory else float("nan")


def peers(model: str, batch: Batch) -> dict[str, Run]:
    """PyTorch's eager step in float32 and under autocast, if it is installed."""
    try:
        import torch
    except ImportError:
        return {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = torch.tensor(batch["image"]).permute(0, 3, 1, 2)
    images = images.contiguous(memory_format=torch.channels_last).to(device)
    labels = torch.tensor(batch["label"]).to(device)

    def build(name: str) -> Run | None:
        net = torch_network(model)
        if net is None:
            return None
        net = net.to(device).to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
        half = name != "float32"
        scaler = torch.amp.GradScaler(device, enabled=name == "float16")

        def run() -> None:
            optimizer.zero_grad()
            dtype = getattr(torch, name) if half else torch.bfloat16
            with torch.autocast(device, dtype=dtype, enabled=half):
                loss = torch.nn.functional.cross_entropy(net(images), labels)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            if device == "cuda":
                torch.cuda.synchronize()

        return run

    names = {"float32": "float32", "autocast bfloat16": "bfloat16"}
    if device == "cuda":
        names["autocast float16"] = "float16"
    runs = {f"torch {label}": build(name) for label, name in names.items()}
    return {label: run for label, run in runs.items() if run is not None}


def torch_network(model: str) -> Any:
    """The same network, or None where its package is absent."""
    import torch

    if model == "convnet":
        layers: list[Any] = []
        for inputs, width in [(3, 64), (64, 128), (128, 256)]:
            stride = 1 if inputs == 3 else 2
            conv = torch.nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
            layers += [conv, torch.nn.BatchNorm2d(width), torch.nn.ReLU()]
        pool = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
        return torch.nn.Sequential(*layers, *pool, torch.nn.Linear(256, 10))
    try:  # where the compiled part of torchvision does not load, stand in for it
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(name + "(Tensor b, Tensor s, float t) -> Tensor")
    except RuntimeError:
        pass
    try:
        if model == "resnet18":
            from torchvision.models import resnet18

            net = resnet18(num_classes=10)
            net.conv1 = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False)
            net.maxpool = torch.nn.Identity()
            return net
        import timm

        return timm.create_model(
            "vit_tiny_patch16_224", img_size=32, patch_size=4, num_classes=10
        )
    except ImportError:
        return None


def measure(runs: Mapping[str, Run], rounds: int) -> dict[str, tuple[float, float]]:
    """(seconds of the clock, seconds of all processors), medians over rounds."""
    walls: dict[str, list[float]] = {name: [] for name in runs}
    cores: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()  # warms up
    for _ in range(rounds):
        for name, run in runs.items():
            wall, core = time.perf_counter(), time.process_time()
            run()
            cores[name].append(time.process_time() - core)
            walls[name].append(time.perf_counter() - wall)
    return {name: (median(walls[name]), median(cores[name])) for name in runs}


if __name__ == "__main__":
    main(tyro.cli(Config))
