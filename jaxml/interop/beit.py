"""BEiT before fine-tuning, with its mask token and classifier of visual words.

The encoder is a ViT with positions by distance (`jaxml.interop.vit`), which is also what a
fine-tuned BEiT is. The styles are that of transformers, and that of the authors ("timm").

The trap is the norm: without a classifier of classes it stands before the pool, and
transformers calls it as if it were the head's.
"""

from collections.abc import Mapping
from typing import Any

from jaxml.interop import vit, vit_config
from jaxml.interop.rules import Conversion, Rule, leading
from jaxml.interop.vit_config import same
from jaxml.nn import VisionTransformer
from jaxml.ssl import BEiT

STEM = "params/encoder/patch_embed/kernel"


def conversion(module: BEiT, style: str) -> Conversion:
    """How a style names this module's variables."""
    hf = style == "hf"
    options = {"inside": True} if hf else {}
    encoder = vit.conversion(module.encoder, style, **options)
    token = "beit.embeddings.mask_token" if hf else "mask_token"
    rules = [
        Rule("params/mask_token", (token,), leading(2)),
        *vit.dense_rules("codes", ("lm_head",)),
        *vit.norm_rules("encoder/norm", "layernorm" if hf else "norm"),
        *vit.nested(encoder, "encoder"),
    ]
    return Conversion(tuple(rules), encoder.prefixes, (r".*relative_position_index",))


def from_hf(config: Mapping[str, Any]) -> BEiT:
    """The module for a configuration of transformers."""
    same("use_mean_pooling", config.get("use_mean_pooling", True), True)
    same("use_mask_token", config.get("use_mask_token", True), True)
    options = vit_config.from_hf(config, has_head=False) | {"pool_norm": False}
    return BEiT(VisionTransformer(**options), config.get("vocab_size", 8192))


def to_hf(module: BEiT, channels: int) -> dict[str, Any]:
    """The configuration of transformers for a module."""
    encoder = module.encoder.clone(pool="mean", pool_norm=True)
    return vit_config.to_hf(encoder, channels) | {
        "architectures": ["BeitForMaskedImageModeling"],
        "use_mask_token": True,
        "use_mean_pooling": True,
        "vocab_size": module.vocab_size,
    }
