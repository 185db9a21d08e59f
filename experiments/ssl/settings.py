"""What the configurations of this family share; the fields of a method come on top.

A field that stands in a configuration again has another default there.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jaxml.nn import ConvNet, resnet18


@dataclass(frozen=True)
class Settings:
    """How long a method learns, and how it is judged (see `protocol.py`)."""

    num_steps: int = 800
    """Optimizer updates."""
    batch_size: int = 128
    """Images per update, over all devices."""
    labels_per_class: int = 10
    """Labels the linear probe may see."""
    neighbours: int = 200
    """Voters of the nearest-neighbour probe."""
    seed: int = 0
    """Of everything that is drawn: weights, data order, views, masks."""
    seeds: int = 1
    """Number of consecutive seeds; if more than one, each has a folder of its own."""
    save_every: int = 200
    """Steps between checkpoints."""
    data_dir: Path | None = None
    """Folder of the original files; by default the one JAXML_DATA_DIR names."""
    distributed: str | None = None
    """Several processes: "auto" on a cluster, or "HOST:PORT,ID/COUNT"."""
    out: Path = Path("runs")
    """Where everything is written; a run found there is continued."""


@dataclass(frozen=True)
class SmallPictures(Settings):
    """Digits or clothes, small and gray: three epochs of Fashion-MNIST."""

    num_steps: int = 1500
    """Optimizer updates."""
    save_every: int = 500
    """Steps between checkpoints."""


@dataclass(frozen=True)
class Photographs(Settings):
    """Natural images."""

    dataset: str = "cifar10"
    """`cifar10` is TFDS's; any picture set of the data folder will do."""


@dataclass(frozen=True)
class Encoders(Photographs):
    """Natural images, and which network sees them."""

    encoder: Literal["convnet", "resnet18"] = "convnet"
    """A small one for a CPU, or the ResNet-18 with a CIFAR stem of the literature."""
    widths: tuple[int, ...] = (64, 128, 256)
    """Channels of the small encoder; the last is the number of features."""
    size: int = 32
    """Of the views, in pixels."""

    def backbone(self, **options: Any) -> Any:
        """The network, its batch statistics over all devices."""
        if self.encoder == "convnet":
            return ConvNet(self.widths, axis_name="data", **options)
        return resnet18(stem="cifar", axis_name="data", **options)
