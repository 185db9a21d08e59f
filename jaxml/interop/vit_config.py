"""Vision transformers as the configurations of timm and transformers describe them.

A configuration with anything that the module lacks is refused, by the name of the option;
left out is what training alone would see (dropout inside attention).

The trap: the width of the feedforward layers is stated in widths, and where they are
gated it is cut to two thirds (transformers) or doubled (timm).
"""

import re
from collections.abc import Mapping
from typing import Any

from jaxml.interop.rules import ConversionError
from jaxml.interop.vit import hf_type
from jaxml.nn import VisionTransformer

SIZES = {  # width, depth, heads
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}
GIANT = {"width": 1536, "depth": 40, "heads": 24}  # DINOv2's
TORCHVISION = {
    "vit_b_16": ("base", 16),
    "vit_b_32": ("base", 32),
    "vit_l_16": ("large", 16),
    "vit_l_32": ("large", 32),
    "vit_h_14": ("huge", 14),
}
_NAME = re.compile(
    r"(?P<kind>vit|deit)_(?P<size>tiny|small|base|large|huge|giant)_patch(?P<side>\d+)"
    r"(?:_reg(?P<registers>\d+))?(?P<dinov2>_dinov2)?(?:_(?P<image>\d+))?"
)
HARMLESS = {
    *("num_classes", "in_chans", "drop_rate", "pos_drop_rate", "attn_drop_rate"),
    *("patch_drop_rate", "weight_init", "fix_init", "dynamic_img_size"),
}


def from_hf(config: Mapping[str, Any], *, has_head: bool) -> dict[str, Any]:
    """Options of `VisionTransformer` for a configuration of transformers."""
    kind, width = config["model_type"], config.get("hidden_size", 768)
    _same("hidden_act", config.get("hidden_act", "gelu"), "gelu")
    _same("qkv_bias", config.get("qkv_bias", True), True)
    side = _square(config.get("patch_size", 14 if kind == "dinov2" else 16))
    options: dict[str, Any] = {
        "image_size": _size(config.get("image_size", 224)),
        "patch_size": side,
        "width": width,
        "depth": config.get("num_hidden_layers", 12),
        "heads": config.get("num_attention_heads", 12),
        "dropout": config.get("hidden_dropout_prob", 0.0),
        "epsilon": config.get("layer_norm_eps", 1e-12 if kind == "vit" else 1e-6),
        "antialias_positions": kind == "dinov2_with_registers",
    }
    if kind == "vit":
        hidden = config.get("intermediate_size", 3072)
        return options | {"mlp_ratio": _ratio(hidden, width)}
    hidden = int(width * config.get("mlp_ratio", 4))
    if config.get("use_swiglu_ffn", False):
        hidden = _gated(hidden)
        options["mlp"] = "swiglu"
    if kind == "dinov2_with_registers":
        options["registers"] = config.get("num_register_tokens", 4)
    return options | {
        "mlp_ratio": _ratio(hidden, width),
        "layer_scale": float(config.get("layerscale_value", 1.0)),
        "drop_path": config.get("drop_path_rate", 0.0),
        "pool": "both" if has_head else "class",
    }


def to_hf(module: VisionTransformer, channels: int) -> dict[str, Any]:
    """The configuration of transformers for a module."""
    kind, width = hf_type(module), module.width
    hidden = int(module.mlp_ratio * width)
    has_head = module.num_classes is not None
    _check(module)
    _same("class_token", module.class_token, True)
    _same("class_position", module.class_position, True)
    name = {"vit": "ViT", "dinov2": "Dinov2"}.get(kind, "Dinov2WithRegisters")
    config: dict[str, Any] = {
        "architectures": [f"{name}{'ForImageClassification' if has_head else 'Model'}"],
        "model_type": kind,
        "num_channels": channels,
        "image_size": _listed(module.image_size),
        "patch_size": module.patch_size,
        "hidden_size": width,
        "num_hidden_layers": module.depth,
        "num_attention_heads": module.heads,
        "hidden_act": "gelu",
        "hidden_dropout_prob": module.dropout,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": module.epsilon,
        "qkv_bias": True,
    }
    if kind == "vit":
        _same("pool", module.pool, "class")
        _same("mlp", module.mlp, "gelu")
        return config | {"intermediate_size": hidden}
    _same("pool", module.pool, "both" if has_head else "class")
    if module.layer_scale is None:
        raise ConversionError("layer_scale must not be None where there are registers")
    gated = module.mlp == "swiglu"
    ratios = [
        r for r in range(1, 33) if (_gated(r * width) if gated else r * width) == hidden
    ]
    if not ratios:
        raise ConversionError(
            f"mlp_ratio must be a whole number in {kind}, got {module.mlp_ratio}"
        )
    config |= {
        "mlp_ratio": ratios[0],
        "use_swiglu_ffn": gated,
        "layerscale_value": module.layer_scale,
        "drop_path_rate": module.drop_path,
    }
    if module.registers:
        config["num_register_tokens"] = module.registers
    return config


def is_timm(architecture: str) -> bool:
    """Whether it is an architecture of timm that the module can be."""
    match = _NAME.fullmatch(architecture)
    return (
        match is not None
        and (match["size"] in SIZES or match["dinov2"] is not None)
        and (match["registers"] is None or match["dinov2"] is not None)
    )


def from_timm(
    architecture: str, arguments: Mapping[str, Any], input_size: Any = None
) -> dict[str, Any]:
    """Options of `VisionTransformer` for an architecture and arguments of timm."""
    match = _NAME.fullmatch(architecture)
    assert match is not None  # `is_timm` has been asked
    if match["size"] == "giant":
        options: dict[str, Any] = GIANT | {"mlp": "swiglu"}
        ratio = 2.66667 * 2
    else:
        names = ("width", "depth", "heads")
        options = dict(zip(names, SIZES[match["size"]], strict=True))
        ratio = 4.0
    options["patch_size"] = int(match["side"])
    options["image_size"] = int(match["image"] or (518 if match["dinov2"] else 224))
    if input_size:
        options["image_size"] = tuple(input_size[-2:])
    if match["dinov2"]:
        options["layer_scale"] = 1e-5
    if match["registers"]:
        options["registers"] = int(match["registers"])
    without = bool(match["registers"])  # positions of the tokens before the patches
    renamed = {
        "embed_dim": "width",
        "depth": "depth",
        "num_heads": "heads",
        "init_values": "layer_scale",
        "class_token": "class_token",
        "reg_tokens": "registers",
        "proj_drop_rate": "dropout",
        "drop_path_rate": "drop_path",
    }
    only = {"qkv_bias": True, "qk_norm": False, "pre_norm": False, "final_norm": True}
    for name, value in arguments.items():
        if name in renamed:
            options[renamed[name]] = value
        elif name == "img_size":
            options["image_size"] = _size(value)
        elif name == "patch_size":
            options["patch_size"] = _square(value)
        elif name == "mlp_ratio":
            ratio = value
        elif name == "no_embed_class":
            without = value
        elif name in only:
            _same(name, value, only[name])
        elif name not in HARMLESS | {"global_pool", "fc_norm"}:
            raise ConversionError(f"{name} of timm's ViT is not supported, got {value}")
    pool = arguments.get("global_pool", "token")
    if pool not in ("token", "avg"):
        raise ConversionError(f"global_pool must be token or avg, got {pool}")
    norm_after_pool = arguments.get("fc_norm")
    norm_after_pool = pool == "avg" if norm_after_pool is None else norm_after_pool
    if norm_after_pool:
        raise ConversionError(
            "fc_norm must be false: a norm after the pool is not here"
        )
    if options.get("registers") and not without:
        raise ConversionError("no_embed_class must be true where there are registers")
    if options.get("class_token", True):
        options["class_position"] = not without
    hidden = int(options["width"] * ratio)
    if options.get("mlp") == "swiglu":
        hidden //= 2
    options["mlp_ratio"] = _ratio(hidden, options["width"])
    return options | {"pool": "mean" if pool == "avg" else "class"}


def to_timm(module: VisionTransformer, channels: int) -> tuple[str, dict[str, Any]]:
    """The architecture of timm for a module, and its arguments."""
    _check(module)
    _same("epsilon", module.epsilon, 1e-6)
    if module.pool == "both":
        raise ConversionError("pool must be class or mean, got both")
    if module.registers and module.class_token and module.class_position:
        raise ConversionError(
            "class_position must be false where there are registers, got True"
        )
    gated = module.mlp == "swiglu"
    hidden = int(module.mlp_ratio * module.width) * (2 if gated else 1)
    return "vit_giant_patch14_dinov2" if gated else "vit_base_patch16_224", {
        "img_size": _listed(module.image_size),
        "patch_size": module.patch_size,
        "embed_dim": module.width,
        "depth": module.depth,
        "num_heads": module.heads,
        "mlp_ratio": _ratio(hidden, module.width),
        "init_values": module.layer_scale,
        "class_token": module.class_token,
        "no_embed_class": not module.class_position or not module.class_token,
        "reg_tokens": module.registers,
        "global_pool": "avg" if module.pool == "mean" else "token",
        "fc_norm": False,
        "proj_drop_rate": module.dropout,
        "drop_path_rate": module.drop_path,
        "num_classes": module.num_classes or 0,
        "in_chans": channels,
    }


def from_torchvision(architecture: str) -> dict[str, Any]:
    """Options of `VisionTransformer` for an architecture of torchvision."""
    size, side = TORCHVISION[architecture]
    width, depth, heads = SIZES[size]
    sizes = {"width": width, "depth": depth, "heads": heads}
    return sizes | {"patch_size": side, "image_size": 224, "epsilon": 1e-6}


def _check(module: VisionTransformer) -> None:
    _same("position", module.position, "learned")


def _gated(hidden: int) -> int:
    """Width of SwiGLU: two thirds, a multiple of eight."""
    return (int(hidden * 2 / 3) + 7) // 8 * 8


def _ratio(hidden: int, width: int) -> float:
    """A ratio r with int(r * width) = hidden, whatever the rounding."""
    ratio = hidden / width
    return ratio if int(ratio * width) == hidden else (hidden + 0.5) / width


def _size(size: Any) -> int | tuple[int, int]:
    return size if isinstance(size, int) else (size[0], size[1])


def _listed(size: int | tuple[int, int]) -> int | list[int]:
    return size if isinstance(size, int) else list(size)


def _square(size: Any) -> int:
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise ConversionError(f"patches must be square, got {size}")
    return sides.pop()


def _same(name: str, value: Any, wanted: Any) -> None:
    if value != wanted:
        raise ConversionError(f"{name} must be {wanted}, got {value}")
