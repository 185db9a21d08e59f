"""One training step of an image classifier, compiled here and in PyTorch: what the benches
of whole steps have in common.

Cross-entropy of ten classes of 32x32 images, forward, backward and SGD with momentum.
"""

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.bench.torchvision_operators import declare_operators
from jaxml import precision, train
from jaxml.method import Batch, Method, Metrics, ModelState, Params
from jaxml.nn import ConvNet
from jaxml.nn.functional import apply_module, init_module
from jaxml.nn.resnet import resnet18
from jaxml.nn.vit import vit_tiny
from jaxml.typing import Array, Float, PRNGKeyArray

MODELS = ("convnet", "resnet18", "vit_tiny")
LEARNING_RATE, MOMENTUM = 0.01, 0.9


class Program(NamedTuple):
    """A step that can be called again and again.

    Attributes:
        run: does one step, and waits for it.
        first: seconds that the first step takes more than the others, compilation above
            all; measured when the program was made, or None.
        temporary: bytes of a step's buffers besides the state, or None.
    """

    run: Callable[[], Any]
    first: float | None = None
    temporary: int | None = None


class Classifier(nn.Module):
    """A linear head on features."""

    backbone: nn.Module

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Array:
        return nn.Dense(10)(self.backbone(images, train=train))


def network(model: str) -> nn.Module:
    """A classifier of ten classes."""
    if model == "resnet18":
        return resnet18(num_classes=10, stem="cifar")
    if model == "vit_tiny":
        return vit_tiny(image_size=32, patch_size=4, num_classes=10)
    if model == "convnet":
        return Classifier(ConvNet((64, 128, 256)))
    raise ValueError(f"model must be one of {', '.join(MODELS)}, got {model!r}")


def images(batch_size: int, seed: int) -> Batch:
    """A batch of noise and labels."""
    rng = np.random.default_rng(seed)
    return {
        "image": rng.random((batch_size, 32, 32, 3), np.float32),
        "label": rng.integers(0, 10, batch_size),
    }


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


def ours(model: str, policy_name: str, batch: Batch) -> Program:
    """The step of this library, compiled.

    float16 has a dynamic loss scale, pure bfloat16 is rounded stochastically.
    """
    policy = precision.policy(policy_name)
    method = precision.mixed_precision(classifier(network(model)), policy)
    optimizer: optax.GradientTransformation = optax.sgd(LEARNING_RATE, MOMENTUM)
    if policy_name == "pure_bfloat16":
        optimizer = precision.stochastic_rounding(optimizer, jax.random.key(2))
    scale = precision.DynamicLossScale.create() if policy.needs_loss_scale else None
    state = train.init_state(method, optimizer, jax.random.key(0), batch, scale)
    step = train.gradient_step(method, optimizer, jax.random.key(1))
    batch = jax.device_put(dict(batch))
    start = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
    first = time.perf_counter() - start
    memory = compiled.memory_analysis()
    box = [state]

    def run() -> None:
        box[0], values = compiled(box[0], batch)
        jax.block_until_ready((box[0], values))

    return Program(run, first, memory.temp_size_in_bytes if memory else None)


def torch_step(
    model: str,
    batch: Batch,
    *,
    autocast: str | None = None,
    channels_last: bool = True,
    compile: bool = False,
) -> Program:
    """The same step in PyTorch, on the first GPU if there is one.

    Args:
        model: one of `MODELS`.
        batch: NumPy arrays.
        autocast: name of the narrow dtype, or None; with float16 goes a gradient scaler.
        channels_last: whether images and weights lie as NHWC.
        compile: whether network and loss are compiled.

    Raises:
        ImportError: where PyTorch or the package of the network is missing.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    layout = torch.channels_last if channels_last else torch.contiguous_format
    pictures = torch.tensor(batch["image"]).permute(0, 3, 1, 2)
    pictures = pictures.contiguous(memory_format=layout).to(device)
    labels = torch.tensor(batch["label"]).to(device)
    net = torch_network(model).to(device).to(memory_format=layout)
    optimizer = torch.optim.SGD(net.parameters(), LEARNING_RATE, MOMENTUM)
    scaler = torch.amp.GradScaler(device, enabled=autocast == "float16")
    dtype = getattr(torch, autocast or "bfloat16")

    def objective() -> Any:
        with torch.autocast(device, dtype=dtype, enabled=autocast is not None):
            return torch.nn.functional.cross_entropy(net(pictures), labels)

    if compile:
        net.compile()

    def run() -> None:
        optimizer.zero_grad()
        scaler.scale(objective()).backward()
        scaler.step(optimizer)
        scaler.update()
        if device == "cuda":
            torch.cuda.synchronize()

    start = time.perf_counter()
    run()
    first, start = time.perf_counter() - start, time.perf_counter()
    run()
    return Program(run, max(0.0, first - (time.perf_counter() - start)))


def torch_network(model: str) -> Any:
    """The same network, with the same number of parameters."""
    import torch

    if model == "convnet":
        layers: list[Any] = []
        for inputs, width in [(3, 64), (64, 128), (128, 256)]:
            stride = 1 if inputs == 3 else 2
            conv = torch.nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
            layers += [conv, torch.nn.BatchNorm2d(width), torch.nn.ReLU()]
        pool = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
        return torch.nn.Sequential(*layers, *pool, torch.nn.Linear(256, 10))
    declare_operators()
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


def measure(
    programs: Mapping[str, Program], rounds: int
) -> dict[str, tuple[float, float]]:
    """(seconds of the clock, seconds of all processors), medians over rounds."""
    walls: dict[str, list[float]] = {name: [] for name in programs}
    cores: dict[str, list[float]] = {name: [] for name in programs}
    for program in programs.values():
        program.run()  # warms up
    for _ in range(rounds):
        for name, program in programs.items():
            wall, core = time.perf_counter(), time.process_time()
            program.run()
            cores[name].append(time.process_time() - core)
            walls[name].append(time.perf_counter() - wall)
    return {name: (median(walls[name]), median(cores[name])) for name in programs}
