"""Six methods as lightly has them, started from the weights of this library.

What `experiments/bench/ssl_lightly.py` compares with; `config` is its `Config`.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.bench.torchvision_operators import declare_operators
from jaxml.method import Params

EPSILON = 0.05
"""Smoothness of SwAV's codes."""
TEACHER_TEMPERATURE = 0.04
"""Of DINO."""


class Objective(NamedTuple):
    """What is trained beside the backbone and head, and which backbone is judged."""

    loss: Callable[[Any], Any]
    trained: Sequence[Any] = ()
    backbone: Any = None


class Peer:
    """The same method of lightly, from our parameters and model state in NumPy."""

    def __init__(
        self, config: Any, name: str, start: tuple[Params, Any], seed: int
    ) -> None:
        import torch

        declare_operators()
        torch.manual_seed(seed)
        self.torch = torch
        params, model_state = start
        network = params["model"] if name == "swav" else params
        backbone = torch_backbone(config, name, network["backbone"])
        self.model = torch.nn.Sequential(backbone, torch_head(config, name, network))
        objective = OBJECTIVES[name](config, self.model, params, model_state)
        self.objective = objective.loss
        self.backbone = objective.backbone or backbone
        trained = [
            p
            for module in (self.model, *objective.trained)
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
        self.backbone.eval()
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

    features, (hidden, last) = config.widths[-1], config.head
    if name == "simsiam":
        head = modules.SimSiamProjectionHead(features, hidden, hidden)
    elif name == "dino":
        sizes = (features, hidden, last, config.num_prototypes)
        head = modules.DINOProjectionHead(*sizes)
        kernel = network["last"]["kernel"]
        head.last_layer.weight_v.data = torch.tensor(kernel.T.copy())
    else:
        heads = {
            "simclr": modules.SimCLRProjectionHead,
            "moco": modules.MoCoProjectionHead,
            "swav": modules.SwaVProjectionHead,
            "byol": modules.BYOLProjectionHead,
        }
        head = heads[name](features, hidden, last)
    names = {"simclr": "Mlp_0", "byol": "projector", "simsiam": "projector"}
    copy_weights(head, network[names.get(name, "head")])
    if name == "simclr":
        head.layers[-1].bias.requires_grad_(False)
    return head


def copy_weights(head: Any, weights: Params) -> None:
    """Our dense layers, in lightly's head."""
    import torch

    linear = [layer for layer in head.layers if isinstance(layer, torch.nn.Linear)]
    for i, layer in enumerate(linear):
        layer.weight.data = torch.tensor(weights[f"Dense_{i}"]["kernel"].T.copy())
        if layer.bias is not None:
            layer.bias.data = torch.tensor(weights[f"Dense_{i}"]["bias"])


def teacher_of(model: Any) -> Any:
    """A copy that no gradient reaches."""
    from lightly.models import utils

    teacher = copy.deepcopy(model)
    utils.deactivate_requires_grad(teacher)
    return teacher


def simclr_objective(
    config: Any, model: Any, params: Params, model_state: Any
) -> Objective:
    """Loss of [2, batch, ...]; both views in one pass, as here."""
    from lightly.loss import NTXentLoss

    loss = NTXentLoss(config.temperature)
    return Objective(lambda views: loss(*model(views.flatten(0, 1)).chunk(2)))


def moco_objective(
    config: Any, model: Any, params: Params, model_state: Any
) -> Objective:
    """Loss of [2, batch, ...]; moves the teacher and the queue."""
    import torch
    from lightly.loss import NTXentLoss
    from lightly.models import utils

    teacher, queue = teacher_of(model), model_state["queue"]
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

    return Objective(objective)


def swav_objective(
    config: Any, model: Any, params: Params, model_state: Any
) -> Objective:
    """Loss of [2, batch, ...]."""
    import torch
    from lightly.loss import SwaVLoss
    from lightly.models.modules import SwaVPrototypes

    loss = SwaVLoss(sinkhorn_epsilon=EPSILON)
    prototypes = SwaVPrototypes(config.head[-1], config.num_prototypes)
    (linear,) = prototypes.heads
    linear.weight.data = torch.tensor(params["prototypes"])
    linear.bias.data.zero_()
    linear.bias.requires_grad_(False)

    def objective(views: Any) -> Any:
        prototypes.normalize()
        z = torch.nn.functional.normalize(model(views.flatten(0, 1)))
        return loss(list(prototypes(z).chunk(2)), [])

    return Objective(objective, [prototypes])


def byol_objective(
    config: Any, model: Any, params: Params, model_state: Any
) -> Objective:
    """Loss of [2, batch, ...]; moves the target network."""
    import torch
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models import utils
    from lightly.models.modules import BYOLPredictionHead

    (hidden, last), teacher = config.head, teacher_of(model)
    predictor, loss = BYOLPredictionHead(last, hidden, last), NegativeCosineSimilarity()
    copy_weights(predictor, params["predictor"])

    def objective(views: Any) -> Any:
        utils.update_momentum(model, teacher, config.momentum)
        p1, p2 = (predictor(model(view)) for view in views)
        with torch.no_grad():
            z1, z2 = (teacher(view) for view in views)
        return 4 + 2 * (loss(p1, z2) + loss(p2, z1))

    return Objective(objective, [predictor])


def simsiam_objective(
    config: Any, model: Any, params: Params, model_state: Any
) -> Objective:
    """Loss of [2, batch, ...]."""
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules import SimSiamPredictionHead

    dim, bottleneck = config.head
    predictor = SimSiamPredictionHead(dim, bottleneck, dim)
    copy_weights(predictor, params["predictor"])
    loss = NegativeCosineSimilarity()

    def objective(views: Any) -> Any:
        z1, z2 = (model(view) for view in views)
        p1, p2 = predictor(z1), predictor(z2)
        return (loss(p1, z2.detach()) + loss(p2, z1.detach())) / 2

    return Objective(objective, [predictor])


def dino_objective(
    config: Any, model: Any, params: Params, model_state: Any
) -> Objective:
    """Loss of [2, batch, ...]; moves the teacher, whose backbone is judged."""
    import torch
    from lightly.loss import DINOLoss
    from lightly.models import utils

    # A layer with weight normalisation cannot be copied, so the head is made again.
    head, sharp = torch_head(config, "dino", params), TEACHER_TEMPERATURE
    teacher = torch.nn.Sequential(copy.deepcopy(model[0]), head)
    utils.deactivate_requires_grad(teacher)
    loss = DINOLoss(config.num_prototypes, sharp, sharp)

    def objective(views: Any) -> Any:
        utils.update_momentum(model, teacher, config.momentum)
        with torch.no_grad():
            targets = teacher(views.flatten(0, 1)).chunk(2)
        return loss(list(targets), list(model(views.flatten(0, 1)).chunk(2)))

    return Objective(objective, backbone=teacher[0])


OBJECTIVES = {
    "simclr": simclr_objective,
    "moco": moco_objective,
    "swav": swav_objective,
    "byol": byol_objective,
    "simsiam": simsiam_objective,
    "dino": dino_objective,
}
