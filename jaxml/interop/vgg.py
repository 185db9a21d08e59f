"""VGG as torchvision names it: `features.<i>` and `classifier.<i>`.

The numbers count every layer of a sequence, ReLU and pooling too, so that they depend on
the depth and on batch norm. The first dense kernel reads a map of 7 x 7 that was flattened
channels first there and channels last here.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from jaxml.interop.rules import (
    CONV,
    DENSE,
    SAME,
    Conversion,
    ConversionError,
    Layout,
    Rule,
)
from jaxml.nn import VGG, BatchNorm, vgg11, vgg13, vgg16, vgg19

ARCHITECTURES: dict[str, Callable[[], VGG]] = {
    name + suffix: partial(build, norm=norm)
    for suffix, norm in (("", None), ("_bn", BatchNorm))
    for name, build in zip(
        ("vgg11", "vgg13", "vgg16", "vgg19"), (vgg11, vgg13, vgg16, vgg19), strict=True
    )
}
STEM = "params/convs_0_0/kernel"  # its third axis is the images' channels
HEAD = "params/dense_2"


def conversion(module: VGG, style: str = "torchvision") -> Conversion:
    """How torchvision names this module's variables.

    A module without a classifier leaves theirs.

    Raises:
        ConversionError: if the style is another.
    """
    if style != "torchvision":
        raise ConversionError(f"style must be torchvision, got {style}")
    rules, number = [], 0
    for stage, size in enumerate(module.stage_sizes):
        for i in range(size):
            rules += _parameters(f"convs_{stage}_{i}", f"features.{number}", CONV)
            number += 1
            if module.norm is not None:
                rules += _norm(f"norms_{stage}_{i}", f"features.{number}")
                number += 1
            number += 1  # ReLU
        number += 1  # pooling
    layouts = (_flattened(7), DENSE, DENSE)
    for i, (theirs, layout) in enumerate(zip((0, 3, 6), layouts, strict=True)):
        rules += _parameters(f"dense_{i}", f"classifier.{theirs}", layout)
    ignored = [r".*\.num_batches_tracked"]
    if module.num_classes is None:
        ignored.append(r"classifier\..*")
    return Conversion(tuple(rules), ("module.",), tuple(ignored))


def _parameters(ours: str, theirs: str, layout: Layout) -> list[Rule]:
    return [
        Rule(f"params/{ours}/kernel", (f"{theirs}.weight",), layout),
        Rule(f"params/{ours}/bias", (f"{theirs}.bias",)),
    ]


def _norm(ours: str, theirs: str) -> list[Rule]:
    pairs = {
        "params/{}/scale": "weight",
        "params/{}/bias": "bias",
        "batch_stats/{}/mean": "running_mean",
        "batch_stats/{}/var": "running_var",
    }
    return [
        Rule(path.format(ours), (f"{theirs}.{name}",), SAME)
        for path, name in pairs.items()
    ]


def _flattened(side: int) -> Layout:
    """[out, C H W] <-> [H W C, out]."""

    def to_ours(x: tuple[np.ndarray, ...]) -> np.ndarray:
        cube = x[0].reshape(len(x[0]), -1, side, side)
        return cube.transpose(2, 3, 1, 0).reshape(-1, len(x[0]))

    def to_theirs(x: np.ndarray) -> tuple[np.ndarray, ...]:
        cube = x.reshape(side, side, -1, x.shape[1])
        return (cube.transpose(3, 2, 0, 1).reshape(x.shape[1], -1),)

    return Layout(to_ours, to_theirs)
