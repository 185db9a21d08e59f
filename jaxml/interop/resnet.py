"""Residual networks as torchvision, timm and transformers name and describe them.

torchvision and timm share their names (`layer1.0.conv1.weight`), so that weights of one
load into the other; transformers has its own. The trap is the stride of a bottleneck,
which stands in the 3x3 convolution here: a configuration that puts it into the first 1x1
has weights of the same shapes, and is refused.
"""

from collections.abc import Mapping
from typing import Any

from jaxml.interop.rules import CONV, DENSE, SAME, Conversion, ConversionError, Rule
from jaxml.nn import BatchNorm, ResNet

_BASIC, _BOTTLENECK = {"block": "basic"}, {"block": "bottleneck"}
_DEEP = _BOTTLENECK | {"stage_sizes": (3, 4, 6, 3)}
_DEEPER = _BOTTLENECK | {"stage_sizes": (3, 4, 23, 3)}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "resnet18": _BASIC | {"stage_sizes": (2, 2, 2, 2)},
    "resnet34": _BASIC | {"stage_sizes": (3, 4, 6, 3)},
    "resnet50": _DEEP,
    "resnet101": _DEEPER,
    "resnet152": _BOTTLENECK | {"stage_sizes": (3, 8, 36, 3)},
    "resnext50_32x4d": _DEEP | {"groups": 32, "width_per_group": 4},
    "resnext101_32x8d": _DEEPER | {"groups": 32, "width_per_group": 8},
    "resnext101_64x4d": _DEEPER | {"groups": 64, "width_per_group": 4},
    "wide_resnet50_2": _DEEP | {"width_per_group": 128},
    "wide_resnet101_2": _DEEPER | {"width_per_group": 128},
}
HARMLESS = {"num_classes", "in_chans", "drop_rate", "drop_path_rate", "zero_init_last"}
STEM = "params/conv1/conv/kernel"  # its third axis is the images' channels
HEAD = "params/head"


def conversion(module: ResNet, style: str) -> Conversion:
    """How a style names this module's variables.

    The styles are "torchvision", "timm" and "hf".
    """
    hf = style == "hf"
    base = "resnet." if hf and module.num_classes is not None else ""
    stem = ["embedder.embedder.convolution", "embedder.embedder.normalization"]
    rules = _conv_norm("conv1", *([base + x for x in stem] if hf else ["conv1", "bn1"]))
    for stage in range(4):
        ours = f"stages_{stage}_{{i}}"
        if hf:
            block = f"{base}encoder.stages.{stage}.layers.{{i}}"
            cut = [f"{block}.shortcut.convolution", f"{block}.shortcut.normalization"]
        else:
            block = f"layer{stage + 1}.{{i}}"
            cut = [f"{block}.downsample.0", f"{block}.downsample.1"]
        for k in (1, 2, 3):
            names = [f"{block}.conv{k}", f"{block}.bn{k}"]
            if hf:
                layer = f"{block}.layer.{k - 1}"
                names = [f"{layer}.convolution", f"{layer}.normalization"]
            rules += _conv_norm(f"{ours}/conv{k}", *names)
        rules += _conv_norm(f"{ours}/shortcut", *cut)
    head = "classifier.1" if hf else "fc"
    rules += [
        Rule("params/head/kernel", (f"{head}.weight",), DENSE),
        Rule("params/head/bias", (f"{head}.bias",)),
    ]
    prefixes = ("module.", "resnet.") if hf else ("module.", "backbone.")
    return Conversion(tuple(rules), prefixes, (r".*\.num_batches_tracked",))


def _conv_norm(ours: str, conv: str, norm: str) -> list[Rule]:
    return [
        Rule(f"params/{ours}/conv/kernel", (f"{conv}.weight",), CONV),
        Rule(f"params/{ours}/norm/scale", (f"{norm}.weight",), SAME),
        Rule(f"params/{ours}/norm/bias", (f"{norm}.bias",), SAME),
        Rule(f"batch_stats/{ours}/norm/mean", (f"{norm}.running_mean",), SAME),
        Rule(f"batch_stats/{ours}/norm/var", (f"{norm}.running_var",), SAME),
    ]


def from_hf(config: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `ResNet` for a configuration of transformers."""
    block = config.get("layer_type", "bottleneck")
    sizes = list(config.get("hidden_sizes", (256, 512, 1024, 2048)))
    width = config.get("embedding_size", 64)
    first = width * (4 if block == "bottleneck" else 1)
    _same("hidden_sizes", sizes, [first * 2**i for i in range(4)])
    _same("hidden_act", config.get("hidden_act", "relu"), "relu")
    if block == "bottleneck":
        inside = config.get("downsample_in_bottleneck", False)
        _same("downsample_in_bottleneck", inside, False)
    first_stride = 2 if config.get("downsample_in_first_stage", False) else 1
    return {
        "stage_sizes": tuple(config.get("depths", (3, 4, 6, 3))),
        "block": block,
        "width": width,
        "strides": (first_stride, 2, 2, 2),
    }


def from_timm(architecture: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `ResNet` for an architecture and arguments of timm."""
    options = dict(ARCHITECTURES[architecture])
    for name, value in arguments.items():
        if name == "global_pool":
            _same(name, value, "avg")
        elif name == "layers":
            options["stage_sizes"] = tuple(value)
        elif name == "cardinality":
            options["groups"] = value
        elif name == "base_width":
            options["width_per_group"] = value
        elif name not in HARMLESS:
            raise ConversionError(f"{name} of timm's ResNet is not supported")
    return options


def to_hf(module: ResNet, channels: int) -> dict[str, Any]:
    """The configuration of transformers for a module."""
    _check(module)
    _same("groups", module.groups, 1)
    _same("width_per_group", module.width_per_group, 64)
    _same("strides", tuple(module.strides)[1:], (2, 2, 2))
    first = module.width * (4 if module.block == "bottleneck" else 1)
    has_head = module.num_classes is not None
    return {
        "architectures": [f"ResNet{'ForImageClassification' if has_head else 'Model'}"],
        "model_type": "resnet",
        "num_channels": channels,
        "embedding_size": module.width,
        "hidden_sizes": [first * 2**i for i in range(4)],
        "depths": list(module.stage_sizes),
        "layer_type": module.block,
        "hidden_act": "relu",
        "downsample_in_first_stage": module.strides[0] == 2,
        "downsample_in_bottleneck": False,
    }


def to_timm(module: ResNet, channels: int) -> tuple[str, dict[str, Any]]:
    """The architecture of timm for a module, and its arguments."""
    _check(module)
    _same("width", module.width, 64)
    _same("strides", tuple(module.strides), (1, 2, 2, 2))
    arguments: dict[str, Any] = {
        "layers": list(module.stage_sizes),
        "num_classes": module.num_classes or 0,
        "in_chans": channels,
    }
    if module.block == "basic":
        return "resnet18", arguments
    groups, width = module.groups, module.width_per_group
    return "resnet50", arguments | {"cardinality": groups, "base_width": width}


def _check(module: ResNet) -> None:
    """What the libraries' configurations cannot say is refused."""
    _same("stem", module.stem, "imagenet")
    _same("dilations", tuple(module.dilations), (1, 1, 1, 1))
    _same("norm", module.norm, BatchNorm)


def _same(name: str, value: Any, wanted: Any) -> None:
    if value != wanted:
        raise ConversionError(f"{name} must be {wanted}, got {value}")
