"""Vision transformers as timm, torchvision and transformers name them.

timm's names (`blocks.0.attn.qkv.weight`) are also those of DINO's and DINOv2's own
checkpoints. transformers keeps three matrices for q, k and v where others have one, and
has changed its names: files have the old ones, memory the new; both are read and the old
written. DINOv2 there is a model type of its own, with layer scale, and one more with
registers; its classifier reads the class token and the mean side by side. BEiT's attention
has biases by distance, and none of keys; the encoder of MAE has fixed positions.

The pooler and the mask token, which features do not need, have no counterpart here.

The trap is the gate of SwiGLU: it is the first half of a joined layer here and in all of
these libraries, and the second half elsewhere.
"""

import numpy as np

from jaxml.interop.rules import (
    DENSE,
    SAME,
    Conversion,
    Layout,
    Rule,
    joined,
    leading,
    patches,
    stacked,
    without_key,
)
from jaxml.nn import VisionTransformer, sincos_positions

HF_TYPES = ("vit", "dinov2", "dinov2_with_registers", "vit_mae", "beit")
STEM = "params/patch_embed/kernel"  # of its tensor, the second axis is the channels
HEAD = "params/head"

Names = dict[str, tuple[str, ...]]

# Our path of a block's layer: its names there; several are joined.
TIMM: Names = {
    "norm1": ("norm1",),
    "attention/qkv": ("attn.qkv",),
    "attention/out": ("attn.proj",),
    "norm2": ("norm2",),
    "mlp/dense1": ("mlp.fc1",),
    "mlp/dense2": ("mlp.fc2",),
    "scale1": ("ls1.gamma",),
    "scale2": ("ls2.gamma",),
}
TIMM_BEIT: Names = {"scale1": ("gamma_1",), "scale2": ("gamma_2",)}
TIMM_ALSO: Names = {"mlp/dense1": ("mlp.w12",), "mlp/dense2": ("mlp.w3",)}  # DINOv2's
_HF: Names = {
    "attention/qkv": tuple(
        f"attention.attention.{x}" for x in ("query", "key", "value")
    ),
    "attention/out": ("attention.output.dense",),
}
_HF_ALSO: Names = {
    "attention/qkv": tuple(f"attention.{x}_proj" for x in "qkv"),
    "attention/out": ("attention.o_proj",),
}
HF_VIT: Names = _HF | {
    "norm1": ("layernorm_before",),
    "norm2": ("layernorm_after",),
    "mlp/dense1": ("intermediate.dense",),
    "mlp/dense2": ("output.dense",),
}
HF_VIT_ALSO: Names = _HF_ALSO | {
    "norm1": ("layernorm_before",),
    "norm2": ("layernorm_after",),
    "mlp/dense1": ("mlp.fc1",),
    "mlp/dense2": ("mlp.fc2",),
}
HF_BEIT: Names = {"scale1": ("lambda_1",), "scale2": ("lambda_2",)}
HF_DINOV2: Names = _HF | {
    "norm1": ("norm1",),
    "norm2": ("norm2",),
    "mlp/dense1": ("mlp.fc1",),
    "mlp/dense2": ("mlp.fc2",),
    "scale1": ("layer_scale1.lambda1",),
    "scale2": ("layer_scale2.lambda1",),
}
SWIGLU: Names = {"mlp/dense1": ("mlp.weights_in",), "mlp/dense2": ("mlp.weights_out",)}
SWIGLU_ALSO: Names = {
    "mlp/dense1": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp/dense2": ("mlp.down_proj",),
}
TORCHVISION_BLOCK: Names = {
    "norm1": ("ln_1",),
    "attention/out": ("self_attention.out_proj",),
    "norm2": ("ln_2",),
    "mlp/dense1": ("mlp.0",),
    "mlp/dense2": ("mlp.3",),
}
TORCHVISION_ALSO: Names = {
    "mlp/dense1": ("mlp.linear_1",),
    "mlp/dense2": ("mlp.linear_2",),
}


def conversion(
    module: VisionTransformer, style: str, *, inside: bool = False
) -> Conversion:
    """How a style names this module's variables.

    The styles are "torchvision", "timm" and "hf". `inside` of a larger model the names
    of transformers have the prefix that its heads do without.
    """
    if style == "timm":
        return _timm(module)
    if style == "torchvision":
        return _torchvision(module)
    return _hf(module, inside or module.num_classes is not None)


def _timm(module: VisionTransformer) -> Conversion:
    embed = ("patch_embed.proj", "cls_token", "pos_embed", "reg_token")
    norm = "fc_norm" if module.pool_norm else "norm"
    rules = _outside(module, *embed, norm, "head")
    names, qkv = TIMM, "blocks.{i}.attn"
    if is_beit(module):
        names = TIMM | TIMM_BEIT
        shared = ("rel_pos_bias.relative_position_bias_table",)
        each = ("blocks.{i}.attn.relative_position_bias_table",)
        rules += _relative(module, shared, each)
        rules += _without_key((f"{qkv}.qkv.weight",), f"{qkv}.q_bias", f"{qkv}.v_bias")
    rules += block_rules("", "blocks.{i}", names)
    rules += block_rules("", "blocks.{i}", TIMM_ALSO)
    prefixes = ("module.", "backbone.", "student.", "teacher.")
    ignored = ("mask_token", r".*relative_position_index")
    return Conversion(tuple(rules), prefixes, ignored, _fixed(module, "pos_embed"))


def _torchvision(module: VisionTransformer) -> Conversion:
    embed = ("conv_proj", "class_token", "encoder.pos_embedding", "registers")
    rules = _outside(module, *embed, "encoder.ln", "heads.head")
    where = "encoder.layers.encoder_layer_{i}"
    qkv = f"{where}.self_attention.in_proj_"
    ours = "params/blocks_{i}/attention/qkv/"
    rules.append(Rule(f"{ours}kernel", (f"{qkv}weight",), DENSE))
    rules.append(Rule(f"{ours}bias", (f"{qkv}bias",)))
    rules += block_rules("", where, TORCHVISION_BLOCK)
    rules += block_rules("", where, TORCHVISION_ALSO)
    return Conversion(tuple(rules), ("module.",))


def _hf(module: VisionTransformer, inside: bool) -> Conversion:
    kind = hf_type(module)
    prefix = "vit" if kind == "vit_mae" else kind
    base = f"{prefix}." if inside else ""
    embed = (
        f"{base}embeddings.patch_embeddings.projection",
        f"{base}embeddings.cls_token",
        f"{base}embeddings.position_embeddings",
        f"{base}embeddings.register_tokens",
    )
    norm = "pooler.layernorm" if module.pool_norm else "layernorm"
    rules = _outside(module, *embed, f"{base}{norm}", "classifier")
    where, newer = f"{base}encoder.layer.{{i}}", f"{base}layers.{{i}}"
    if kind == "beit":
        rules += _hf_beit(module, base, where, newer)
    if kind in ("vit", "vit_mae", "beit"):
        own = HF_BEIT if kind == "beit" else {}
        rules += block_rules("", where, HF_VIT | own)
        rules += block_rules("", where, HF_VIT_ALSO)
        rules += block_rules("", newer, HF_VIT_ALSO | own)
    else:
        gated = module.mlp == "swiglu"
        rules += block_rules("", where, HF_DINOV2 | (SWIGLU if gated else {}))
        rules += block_rules("", where, _HF_ALSO | (SWIGLU_ALSO if gated else {}))
    ignored = (
        r"pooler\.dense\.(weight|bias)",
        r"embeddings\.mask_token",
        r".*relative_position_index",
    )
    fixed = _fixed(module, embed[2])
    return Conversion(tuple(rules), ("module.", f"{prefix}."), ignored, fixed)


def _hf_beit(
    module: VisionTransformer, base: str, where: str, newer: str
) -> list[Rule]:
    table = "relative_position_bias.relative_position_bias_table"
    shared = (
        f"{base}encoder.{table}",
        f"{base}shared_position_bias.relative_position_bias_table",
    )
    each = (f"{where}.attention.attention.{table}", f"{newer}.{table}")
    rules = _relative(module, shared, each)
    for block, names in ((where, _HF), (newer, _HF_ALSO), (where, _HF_ALSO)):
        q, k, v = (f"{block}.{name}" for name in names["attention/qkv"])
        weights = tuple(f"{name}.weight" for name in (q, k, v))
        rules += _without_key(weights, f"{q}.bias", f"{v}.bias")
    return rules


def is_beit(module: VisionTransformer) -> bool:
    """Whether it has BEiT's positions."""
    return module.relative_position is not None or module.position == "none"


def hf_type(module: VisionTransformer) -> str:
    """The `model_type` of transformers that has what the module has."""
    if is_beit(module):
        return "beit"
    if module.position == "sincos":
        return "vit_mae"
    if module.registers:
        return "dinov2_with_registers"
    if module.pool_norm:
        return "beit"
    return "vit" if module.layer_scale is None else "dinov2"


def _outside(
    module: VisionTransformer,
    stem: str,
    token: str,
    position: str,
    registers: str,
    norm: str,
    head: str,
) -> list[Rule]:
    """All but the blocks."""
    rules = [
        Rule(STEM, (f"{stem}.weight",), patches(module.patch_size)),
        Rule("params/patch_embed/bias", (f"{stem}.bias",)),
        *norm_rules("norm", norm),
        *dense_rules("head", (head,)),
    ]
    named = (
        ("class", token, 2),
        ("position", position, 1),
        ("registers", registers, 1),
    )
    for ours, theirs, axes in named:
        rules.append(Rule(f"params/{ours}", (theirs,), leading(axes)))
    return rules


def _fixed(module: VisionTransformer, name: str) -> dict[str, np.ndarray]:
    """The positions that are not learned, with zeros for a class token."""
    if module.position != "sincos":
        return {}
    size, side = np.broadcast_to(module.image_size, 2), module.patch_size
    positions = sincos_positions(*(int(n) // side for n in size), module.width)
    return {name: np.pad(positions, ((int(module.class_token), 0), (0, 0)))[None]}


def _relative(
    module: VisionTransformer, shared: tuple[str, ...], each: tuple[str, ...]
) -> list[Rule]:
    """Tables of biases, of all blocks or of each, under one of several names."""
    if module.relative_position == "shared":
        return [Rule("params/relative", (name,), stacked()) for name in shared]
    blocks = [{"i": i} for i in range(module.depth)]
    return [
        Rule("params/relative", tuple(name.format(**i) for i in blocks), stacked())
        for name in each
    ]


def _without_key(weights: tuple[str, ...], query: str, value: str) -> list[Rule]:
    """Attention whose keys have no bias."""
    ours = "params/blocks_{i}/attention/qkv/"
    layout = DENSE if len(weights) == 1 else joined(DENSE, len(weights))
    return [
        Rule(f"{ours}kernel", weights, layout),
        Rule(f"{ours}bias", (query, value), without_key()),
    ]


def block_rules(path: str, where: str, names: Names) -> list[Rule]:
    """Rules of blocks: below `path` here, at `where` there."""
    rules: list[Rule] = []
    for name, theirs in names.items():
        ours = f"{path}blocks_{{i}}/{name}"
        theirs = tuple(f"{where}.{n}" for n in theirs)
        if "scale" in name:
            rules.append(Rule(f"params/{ours}", theirs))
        elif "norm" in name:
            rules += norm_rules(ours, *theirs)
        else:
            rules += dense_rules(ours, theirs)
    return rules


def norm_rules(ours: str, theirs: str) -> list[Rule]:
    """A layer norm."""
    return [
        Rule(f"params/{ours}/scale", (f"{theirs}.weight",)),
        Rule(f"params/{ours}/bias", (f"{theirs}.bias",)),
    ]


def dense_rules(ours: str, theirs: tuple[str, ...]) -> list[Rule]:
    """A dense layer, or several that are one here."""

    def layout(one: Layout) -> Layout:
        return one if len(theirs) == 1 else joined(one, len(theirs))

    weights = tuple(f"{name}.weight" for name in theirs)
    biases = tuple(f"{name}.bias" for name in theirs)
    return [
        Rule(f"params/{ours}/kernel", weights, layout(DENSE)),
        Rule(f"params/{ours}/bias", biases, layout(SAME)),
    ]


def nested(conversion: Conversion, path: str) -> list[Rule]:
    """The rules of a module that is a part of another, below `path`."""
    return [
        rule._replace(ours=rule.ours.replace("params/", f"params/{path}/", 1))
        for rule in conversion.rules
    ]
