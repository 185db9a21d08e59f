"""SimCLR, MoCo v2 and SwAV as lightly has them, started from the weights of this library.

What `experiments/bench/ssl_lightly.py` compares with; `config` is its `Config`.
"""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxml.method import Params

EPSILON = 0.05
"""Smoothness of SwAV's codes."""


class Peer:
    """The same method of lightly, from our parameters and model state in NumPy."""

    def __init__(
        self, config: Any, name: str, start: tuple[Params, Any], seed: int
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


def torch_backbone(config: Any, name: str, weights: Params) -> Any:
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


def torch_head(config: Any, name: str, network: Params) -> Any:
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


def simclr_objective(config: Any, model: Any) -> Callable[[Any], Any]:
    """Loss of [2, batch, ...]; both views in one pass, as here."""
    from lightly.loss import NTXentLoss

    loss = NTXentLoss(config.temperature)
    return lambda views: loss(*model(views.flatten(0, 1)).chunk(2))


def moco_objective(config: Any, model: Any, queue: np.ndarray) -> Callable[[Any], Any]:
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
    config: Any, model: Any, weights: np.ndarray
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
