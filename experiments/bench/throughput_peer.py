"""SimCLR, BYOL and DINO as lightly trains them, timed part by part.

What `experiments/bench/ssl_throughput.py` compares with; `config` is its `Config`.
"""

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.bench.torchvision_operators import declare_operators


@dataclass
class Drawn:
    """Views of the same pictures again and again, as a data loader asks for them."""

    pictures: Sequence[Any]
    transform: Callable[[Any], Any]
    batches: int

    def __len__(self) -> int:
        return self.batches * len(self.pictures)

    def __getitem__(self, index: int) -> Any:
        return self.transform(self.pictures[index % len(self.pictures)])


class Peer:
    """One method of lightly: its transform, networks and loss."""

    def __init__(self, config: Any, name: str) -> None:
        import torch

        declare_operators()
        torch.manual_seed(config.seed)
        self.torch, self.config = torch, config
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        makers = {"simclr": make_simclr, "byol": make_byol, "dino": make_dino}
        self.transform, modules, self.loss, self.moved = makers[name](config)
        self.modules = [module.to(self.device).train() for module in modules]
        trained = [
            p for module in modules for p in module.parameters() if p.requires_grad
        ]
        self.optimizer = torch.optim.AdamW(trained, 1e-3)

    def measure(self, images: np.ndarray) -> dict[str, float]:
        """Seconds of a step with its loader, and of the parts alone."""
        loader = self.loader(images)
        batches, views = self.timed(loader, lambda views: None)
        kept = [view.to(self.device) for view in batches]
        parts = [self.step(kept) for _ in range(self.config.num_steps + 1)][1:]
        _, whole = self.timed(loader, self.step)
        medians = [statistics.median(times) for times in zip(*parts, strict=True)]
        names = ("forward", "backward", "optimizer")
        return {
            "whole": whole,
            "views": views,
            **dict(zip(names, medians, strict=True)),
        }

    def loader(self, images: np.ndarray) -> Any:
        """Batches of views, drawn in other processes from the same images."""
        from PIL import Image

        pictures = [Image.fromarray(image) for image in images]
        drawn = Drawn(pictures, self.transform, self.config.num_steps + 1)
        return self.torch.utils.data.DataLoader(
            drawn, len(images), num_workers=self.config.workers
        )

    def timed(self, loader: Any, use: Callable[[Any], Any]) -> tuple[Any, float]:
        """The last batch, and the mean seconds of a batch after the first."""
        for i, views in enumerate(loader):
            use([view.to(self.device) for view in views])
            self.wait()
            if i == 0:  # the loader and the kernels have started
                start = time.perf_counter()
        return views, (time.perf_counter() - start) / i

    def step(self, views: list[Any]) -> tuple[float, float, float]:
        """One update; seconds of its three parts."""
        times = [self.now()]
        half = self.config.precision != "float32"
        with self.torch.autocast(self.device, self.torch.bfloat16, enabled=half):
            value = self.loss(views)
        times.append(self.now())
        self.optimizer.zero_grad()
        value.backward()
        times.append(self.now())
        self.optimizer.step()
        self.moved()
        times.append(self.now())
        forward, backward, optimizer = np.diff(times)
        return forward, backward, optimizer

    def now(self) -> float:
        self.wait()
        return time.perf_counter()

    def wait(self) -> None:
        if self.device == "cuda":
            self.torch.cuda.synchronize()


def make_simclr(config: Any) -> tuple[Any, ...]:
    """Transform, modules, loss of the views, and what follows an update."""
    import torch
    import torchvision
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform

    backbone = torchvision.models.resnet18()
    backbone.conv1 = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    backbone.maxpool = backbone.fc = torch.nn.Identity()
    model = torch.nn.Sequential(backbone, SimCLRProjectionHead(512, 512, 128))
    loss = NTXentLoss(0.5)
    transform = SimCLRTransform(config.small_size, cj_strength=0.5, gaussian_blur=0.0)
    return transform, [model], lambda v: loss(model(v[0]), model(v[1])), lambda: None


def make_byol(config: Any) -> tuple[Any, ...]:
    """As `make_simclr`."""
    import torch
    import torchvision
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models import utils
    from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
    from lightly.transforms import BYOLTransform, BYOLView1Transform, BYOLView2Transform

    backbone = torchvision.models.resnet50()
    backbone.fc = torch.nn.Identity()
    model = torch.nn.Sequential(backbone, BYOLProjectionHead())
    predictor, teacher = BYOLPredictionHead(), copy.deepcopy(model)
    utils.deactivate_requires_grad(teacher)
    cosine, size = NegativeCosineSimilarity(), config.size

    def loss(views: list[Any]) -> Any:
        p1, p2 = (predictor(model(view)) for view in views)
        with torch.no_grad():
            z1, z2 = (teacher(view) for view in views)
        return 4 + 2 * (cosine(p1, z2) + cosine(p2, z1))

    def moved() -> None:
        utils.update_momentum(model, teacher, 0.996)

    transform = BYOLTransform(
        BYOLView1Transform(input_size=size), BYOLView2Transform(input_size=size)
    )
    return transform, [model, predictor, teacher], loss, moved


def make_dino(config: Any) -> tuple[Any, ...]:
    """As `make_simclr`."""
    import timm
    import torch
    from lightly.loss import DINOLoss
    from lightly.models import utils
    from lightly.models.modules import DINOProjectionHead
    from lightly.transforms import DINOTransform

    def network(drop_path: float) -> Any:
        backbone = timm.create_model(
            "vit_small_patch16_224",
            img_size=config.size,
            num_classes=0,
            dynamic_img_size=True,
            drop_path_rate=drop_path,
        )
        head = DINOProjectionHead(384, 2048, 256, config.num_outputs)
        return torch.nn.Sequential(backbone, head)

    model, teacher = network(0.1), network(0.0)
    teacher.load_state_dict(model.state_dict())
    utils.deactivate_requires_grad(teacher)
    distance = DINOLoss(config.num_outputs, 0.04, 0.04)

    def loss(views: list[Any]) -> Any:
        large, small = views[:2], views[2:]
        scores = list(model(torch.cat(large)).chunk(2))
        if small:
            scores += model(torch.cat(small)).chunk(len(small))
        with torch.no_grad():
            targets = list(teacher(torch.cat(large)).chunk(2))
        return distance(targets, scores)

    def moved() -> None:
        utils.update_momentum(model, teacher, 0.996)

    transform = DINOTransform(
        global_crop_size=config.size,
        local_crop_size=config.local_size,
        n_local_views=config.num_local,
    )
    return transform, [model, teacher, distance], loss, moved
