"""Masked autoencoders as transformers and their authors name and describe them.

The encoder is a ViT (`jaxml.interop.vit`), the decoder's blocks have the same names below
their own. Positions of both are fixed, and stand in the files all the same: written they
are, and read they must be the sines and cosines that are computed here.

The trap: transformers 5 makes models whose decoder has positions of zero, and writes its
blocks as `decoder_encoder.layer`; the files of trained weights have neither.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxml.interop import vit, vit_config
from jaxml.interop.rules import Conversion, Rule, leading
from jaxml.interop.vit_config import ratio_of
from jaxml.nn import VisionTransformer, sincos_positions
from jaxml.ssl import MAE

STEM = "params/encoder/patch_embed/kernel"
ARCHITECTURES = {  # of the authors
    "mae_vit_base_patch16": ("base", 16),
    "mae_vit_large_patch16": ("large", 16),
    "mae_vit_huge_patch14": ("huge", 14),
}


def conversion(module: MAE, style: str) -> Conversion:
    """How a style names this module's variables: "hf", or "timm" for the authors'."""
    hf = style == "hf"
    encoder = vit.conversion(module.encoder, "hf" if hf else "timm", **_inside(hf))
    base = "decoder." if hf else ""
    rules = vit.nested(encoder, "encoder")
    rules += vit.dense_rules("embed", (f"{base}decoder_embed",))
    rules += vit.dense_rules("paint", (f"{base}decoder_pred",))
    rules += vit.norm_rules("norm", f"{base}decoder_norm")
    rules.append(Rule("params/mask_token", (f"{base}mask_token",), leading(2)))
    if hf:
        for where in ("decoder_layers.{i}", "decoder_encoder.layer.{i}"):
            for names in (vit.HF_VIT, vit.HF_VIT_ALSO):
                rules += vit.block_rules("", f"decoder.{where}", names)
    else:
        rules += vit.block_rules("", "decoder_blocks.{i}", vit.TIMM)
    fixed = {**encoder.fixed, f"{base}decoder_pos_embed": _positions(module)}
    return Conversion(tuple(rules), ("module.", "vit."), (), fixed)


def _inside(hf: bool) -> dict[str, bool]:
    return {"inside": True} if hf else {}


def _positions(module: MAE) -> np.ndarray:
    """The decoder's, with zeros for a class token."""
    own = module.encoder
    size = np.broadcast_to(own.image_size, 2)
    grid = (int(n) // own.patch_size for n in size)
    positions = sincos_positions(*grid, module.decoder_width)
    return np.pad(positions, ((int(own.class_token), 0), (0, 0)))[None]


def from_hf(config: Mapping[str, Any]) -> MAE:
    """The module for a configuration of transformers."""
    width = config.get("decoder_hidden_size", 512)
    hidden = config.get("decoder_intermediate_size", 2048)
    options = vit_config.from_hf(config, has_head=False)
    return MAE(
        VisionTransformer(**options),
        decoder_width=width,
        decoder_depth=config.get("decoder_num_hidden_layers", 8),
        decoder_heads=config.get("decoder_num_attention_heads", 16),
        decoder_mlp_ratio=ratio_of(hidden, width),
        mask_ratio=config.get("mask_ratio", 0.75),
        channels=config.get("num_channels", 3),
    )


def to_hf(module: MAE, channels: int) -> dict[str, Any]:
    """The configuration of transformers for a module."""
    vit_config.same("position", module.encoder.position, "sincos")
    return vit_config.to_hf(module.encoder, channels) | {
        "architectures": ["ViTMAEForPreTraining"],
        "decoder_hidden_size": module.decoder_width,
        "decoder_num_hidden_layers": module.decoder_depth,
        "decoder_num_attention_heads": module.decoder_heads,
        "decoder_intermediate_size": int(
            module.decoder_mlp_ratio * module.decoder_width
        ),
        "mask_ratio": module.mask_ratio,
        "norm_pix_loss": True,
    }


def from_authors(architecture: str) -> MAE:
    """The module for an architecture of the authors'."""
    size, side = ARCHITECTURES[architecture]
    width, depth, heads = vit_config.SIZES[size]
    encoder = VisionTransformer(
        patch_size=side, width=width, depth=depth, heads=heads, position="sincos"
    )
    return MAE(encoder)
