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
from jaxml.interop.vit import hf_type, is_beit
from jaxml.nn import VisionTransformer

SIZES = {  # width, depth, heads
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}
GIANT = {"width": 1536, "depth": 40, "heads": 24}  # DINOv2's
HF_NAMES = {
    "vit": "ViT",
    "vit_mae": "ViTMAE",
    "beit": "Beit",
    "dinov2": "Dinov2",
    "dinov2_with_registers": "Dinov2WithRegisters",
}
TORCHVISION = {
    "vit_b_16": ("base", 16),
    "vit_b_32": ("base", 32),
    "vit_l_16": ("large", 16),
    "vit_l_32": ("large", 32),
    "vit_h_14": ("huge", 14),
}
_NAME = re.compile(
    r"(?P<kind>vit|deit|beit|beitv2)_(?P<size>tiny|small|base|large|huge|giant)_patch(?P<side>\d+)"
    r"(?:_reg(?P<registers>\d+))?(?P<dinov2>_dinov2)?(?:_(?P<image>\d+))?"
)
BEIT_ARGUMENTS = {  # of timm: option here, and its value where the argument is true
    "use_abs_pos_emb": ("position", "learned"),
    "use_rel_pos_bias": ("relative_position", "each"),
    "use_shared_rel_pos_bias": ("relative_position", "shared"),
    "use_fc_norm": None,
    "head_init_scale": None,
}
HARMLESS = {
    *("num_classes", "in_chans", "drop_rate", "pos_drop_rate", "attn_drop_rate"),
    *("patch_drop_rate", "weight_init", "fix_init", "dynamic_img_size"),
}


def from_hf(config: Mapping[str, Any], *, has_head: bool) -> dict[str, Any]:
    """Options of `VisionTransformer` for a configuration of transformers."""
    kind, width = config["model_type"], config.get("hidden_size", 768)
    same("hidden_act", config.get("hidden_act", "gelu"), "gelu")
    same("qkv_bias", config.get("qkv_bias", True), True)
    side = square(config.get("patch_size", 14 if kind == "dinov2" else 16))
    options: dict[str, Any] = {
        "image_size": size_of(config.get("image_size", 224)),
        "patch_size": side,
        "width": width,
        "depth": config.get("num_hidden_layers", 12),
        "heads": config.get("num_attention_heads", 12),
        "dropout": config.get("hidden_dropout_prob", 0.0),
        "epsilon": config.get("layer_norm_eps", 1e-6 if "dino" in kind else 1e-12),
        "antialias_positions": kind == "dinov2_with_registers",
    }
    if kind in ("vit", "vit_mae", "beit"):
        hidden = config.get("intermediate_size", 3072)
        options["mlp_ratio"] = ratio_of(hidden, width)
        if kind == "vit_mae":
            options["position"] = "sincos"
        return options | (_beit(config) if kind == "beit" else {})
    hidden = int(width * config.get("mlp_ratio", 4))
    if config.get("use_swiglu_ffn", False):
        hidden = _gated(hidden)
        options["mlp"] = "swiglu"
    if kind == "dinov2_with_registers":
        options["registers"] = config.get("num_register_tokens", 4)
    return options | {
        "mlp_ratio": ratio_of(hidden, width),
        "layer_scale": float(config.get("layerscale_value", 1.0)),
        "drop_path": config.get("drop_path_rate", 0.0),
        "pool": "both" if has_head else "class",
    }


def _beit(config: Mapping[str, Any]) -> dict[str, Any]:
    """What BEiT's configuration has beyond that of a ViT."""
    has = {
        kind: config.get(f"use_{name}relative_position_bias", False)
        for kind, name in (("shared", "shared_"), ("each", ""))
    }
    if all(has.values()):
        raise ConversionError(
            "use_relative_position_bias must be False beside the shared one, got True"
        )
    absolute = config.get("use_absolute_position_embeddings", False)
    scale, mean = (
        config.get("layer_scale_init_value", 0.1),
        config.get("use_mean_pooling", True),
    )
    return {
        "position": "learned" if absolute else "none",
        "relative_position": next((kind for kind in has if has[kind]), None),
        "layer_scale": float(scale) if scale else None,
        "drop_path": config.get("drop_path_rate", 0.1),
        "pool": "mean" if mean else "class",
        "pool_norm": mean,
    }


def to_hf(module: VisionTransformer, channels: int) -> dict[str, Any]:
    """The configuration of transformers for a module."""
    kind, width = hf_type(module), module.width
    hidden = int(module.mlp_ratio * width)
    has_head = module.num_classes is not None
    same("class_token", module.class_token, True)
    same("class_position", module.class_position, True)
    same("pool_norm", module.pool_norm, kind == "beit" and module.pool == "mean")
    name = HF_NAMES[kind]
    config: dict[str, Any] = {
        "architectures": [f"{name}{'ForImageClassification' if has_head else 'Model'}"],
        "model_type": kind,
        "num_channels": channels,
        "image_size": listed(module.image_size),
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
    if kind in ("vit", "vit_mae", "beit"):
        same("mlp", module.mlp, "gelu")
        config["intermediate_size"] = hidden
        if kind == "beit":
            return config | _to_beit(module)
        same("layer_scale", module.layer_scale, None)
        same("pool", module.pool, "class")
        same("num_classes", kind == "vit_mae" and has_head, False)
        return config
    same("pool", module.pool, "both" if has_head else "class")
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


def _to_beit(module: VisionTransformer) -> dict[str, Any]:
    """What BEiT's configuration has beyond that of a ViT."""
    return {
        "use_absolute_position_embeddings": module.position == "learned",
        "use_relative_position_bias": module.relative_position == "each",
        "use_shared_relative_position_bias": module.relative_position == "shared",
        "use_mask_token": False,
        "use_mean_pooling": module.pool == "mean",
        "layer_scale_init_value": module.layer_scale or 0.0,
        "drop_path_rate": module.drop_path,
    }


def is_timm(architecture: str) -> bool:
    """Whether it is an architecture of timm that the module can be."""
    match = _NAME.fullmatch(architecture)
    return (
        match is not None
        and (match["size"] in SIZES or match["dinov2"] is not None)
        and (match["registers"] is None or match["dinov2"] is not None)
        and not ("beit" in match["kind"] and match["dinov2"])
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
    beit = "beit" in match["kind"]
    if beit:
        small = match["size"] != "base" or match["kind"] == "beitv2"
        options["layer_scale"] = 1e-5 if small else 0.1
        options |= {"position": "none", "relative_position": "each"}
        arguments = {"global_pool": "avg", **arguments}
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
            options["image_size"] = size_of(value)
        elif name == "patch_size":
            options["patch_size"] = square(value)
        elif name == "mlp_ratio":
            ratio = value
        elif name == "no_embed_class":
            without = value
        elif beit and name in BEIT_ARGUMENTS:
            if BEIT_ARGUMENTS[name] is not None:
                field, kind = BEIT_ARGUMENTS[name]
                options[field] = kind if value else _without(options, field, kind)
        elif name in only:
            same(name, value, only[name])
        elif name not in HARMLESS | {"global_pool", "fc_norm"}:
            raise ConversionError(f"{name} of timm's ViT is not supported, got {value}")
    pool = arguments.get("global_pool", "token")
    if pool not in ("token", "avg"):
        raise ConversionError(f"global_pool must be token or avg, got {pool}")
    pool_norm = arguments.get("use_fc_norm" if beit else "fc_norm")
    options["pool_norm"] = pool == "avg" if pool_norm is None else pool_norm
    if options.get("registers") and not without:
        raise ConversionError("no_embed_class must be true where there are registers")
    if options.get("class_token", True):
        options["class_position"] = not without
    hidden = int(options["width"] * ratio)
    if options.get("mlp") == "swiglu":
        hidden //= 2
    options["mlp_ratio"] = ratio_of(hidden, options["width"])
    return options | {"pool": "mean" if pool == "avg" else "class"}


def _without(options: Mapping[str, Any], field: str, kind: str) -> Any:
    """The option where timm's argument for `kind` is false."""
    empty = "none" if field == "position" else None
    return empty if options.get(field, empty) == kind else options.get(field)


def to_timm(module: VisionTransformer, channels: int) -> tuple[str, dict[str, Any]]:
    """The architecture of timm for a module, and its arguments."""
    beit = is_beit(module)
    same("position", module.position, "none" if beit else "learned")
    same("epsilon", module.epsilon, 1e-6)
    if module.pool == "both":
        raise ConversionError("pool must be class or mean, got both")
    if module.registers and module.class_token and module.class_position:
        raise ConversionError(
            "class_position must be false where there are registers, got True"
        )
    if beit:
        return "beit_base_patch16_224", _to_timm_beit(module, channels)
    gated = module.mlp == "swiglu"
    hidden = int(module.mlp_ratio * module.width) * (2 if gated else 1)
    return "vit_giant_patch14_dinov2" if gated else "vit_base_patch16_224", {
        "img_size": listed(module.image_size),
        "patch_size": module.patch_size,
        "embed_dim": module.width,
        "depth": module.depth,
        "num_heads": module.heads,
        "mlp_ratio": ratio_of(hidden, module.width),
        "init_values": module.layer_scale,
        "class_token": module.class_token,
        "no_embed_class": not module.class_position or not module.class_token,
        "reg_tokens": module.registers,
        "global_pool": "avg" if module.pool == "mean" else "token",
        "fc_norm": module.pool_norm,
        "proj_drop_rate": module.dropout,
        "drop_path_rate": module.drop_path,
        "num_classes": module.num_classes or 0,
        "in_chans": channels,
    }


def _to_timm_beit(module: VisionTransformer, channels: int) -> dict[str, Any]:
    same("class_token", module.class_token, True)
    same("mlp", module.mlp, "gelu")
    return {
        "img_size": listed(module.image_size),
        "patch_size": module.patch_size,
        "embed_dim": module.width,
        "depth": module.depth,
        "num_heads": module.heads,
        "mlp_ratio": module.mlp_ratio,
        "init_values": module.layer_scale,
        "use_abs_pos_emb": False,
        "use_rel_pos_bias": module.relative_position == "each",
        "use_shared_rel_pos_bias": module.relative_position == "shared",
        "global_pool": "avg" if module.pool == "mean" else "token",
        "use_fc_norm": module.pool_norm,
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


def _gated(hidden: int) -> int:
    """Width of SwiGLU: two thirds, a multiple of eight."""
    return (int(hidden * 2 / 3) + 7) // 8 * 8


def ratio_of(hidden: int, width: int) -> float:
    """A ratio r with int(r * width) = hidden, whatever the rounding."""
    ratio = hidden / width
    return ratio if int(ratio * width) == hidden else (hidden + 0.5) / width


def size_of(size: Any) -> int | tuple[int, int]:
    """One number, or (height, width)."""
    return size if isinstance(size, int) else (size[0], size[1])


def listed(size: int | tuple[int, int]) -> int | list[int]:
    """The same for JSON."""
    return size if isinstance(size, int) else list(size)


def square(size: Any) -> int:
    """The side of a square patch."""
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise ConversionError(f"patches must be square, got {size}")
    return sides.pop()


def same(name: str, value: Any, wanted: Any) -> None:
    """Refuses an option by its name unless it has the only value there is here."""
    if value != wanted:
        raise ConversionError(f"{name} must be {wanted}, got {value}")
