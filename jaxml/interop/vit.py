"""Vision transformers as timm, torchvision and transformers name them.

timm's names (`blocks.0.attn.qkv.weight`) are also those of DINO's and DINOv2's own
checkpoints. transformers keeps three matrices for q, k and v where others have one, and
has changed its names: files have the old ones, memory the new; both are read and the old
written. DINOv2 there is a model type of its own, with layer scale, and one more with
registers; its classifier reads the class token and the mean side by side.

The pooler and the mask token, which features do not need, have no counterpart here.

The trap is the gate of SwiGLU: it is the first half of a joined layer here and in all of
these libraries, and the second half elsewhere.
"""

from jaxml.interop.rules import (
    DENSE,
    SAME,
    Conversion,
    Layout,
    Rule,
    joined,
    leading,
    patches,
)
from jaxml.nn import VisionTransformer

HF_TYPES = ("vit", "dinov2", "dinov2_with_registers")
STEM = "params/patch_embed/kernel"  # of its tensor, the second axis is the channels

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


def conversion(module: VisionTransformer, style: str) -> Conversion:
    """How a style names this module's variables.

    The styles are "torchvision", "timm" and "hf".
    """
    rules: list[Rule] = []

    def outside(
        stem: str, token: str, position: str, registers: str, norm: str, head: str
    ) -> None:
        kernel = Rule(STEM, (f"{stem}.weight",), patches(module.patch_size))
        bias = Rule("params/patch_embed/bias", (f"{stem}.bias",))
        rules.extend((kernel, bias, *_norm("norm", norm), *_dense("head", (head,))))
        for ours, theirs, axes in (
            ("class", token, 2),
            ("position", position, 1),
            ("registers", registers, 1),
        ):
            rules.append(Rule(f"params/{ours}", (theirs,), leading(axes)))

    def blocks(where: str, names: Names) -> None:
        for ours, theirs in names.items():
            theirs = tuple(f"{where}.{name}" for name in theirs)
            rules.extend(_rules(f"blocks_{{i}}/{ours}", theirs))

    if style == "timm":
        embed = ("patch_embed.proj", "cls_token", "pos_embed", "reg_token")
        outside(*embed, "norm", "head")
        blocks("blocks.{i}", TIMM)
        blocks("blocks.{i}", TIMM_ALSO)
        prefixes = ("module.", "backbone.", "student.", "teacher.")
        return Conversion(tuple(rules), prefixes, ("mask_token",))
    if style == "torchvision":
        embed = ("conv_proj", "class_token", "encoder.pos_embedding", "registers")
        outside(*embed, "encoder.ln", "heads.head")
        where = "encoder.layers.encoder_layer_{i}"
        qkv = f"{where}.self_attention.in_proj_"
        ours = "params/blocks_{i}/attention/qkv/"
        rules.append(Rule(f"{ours}kernel", (f"{qkv}weight",), DENSE))
        rules.append(Rule(f"{ours}bias", (f"{qkv}bias",)))
        blocks(where, TORCHVISION_BLOCK)
        blocks(where, TORCHVISION_ALSO)
        return Conversion(tuple(rules), ("module.",))
    kind = hf_type(module)
    base = f"{kind}." if module.num_classes is not None else ""
    inside = f"{base}embeddings."
    embed = (
        f"{inside}patch_embeddings.projection",
        f"{inside}cls_token",
        f"{inside}position_embeddings",
        f"{inside}register_tokens",
    )
    outside(*embed, f"{base}layernorm", "classifier")
    where = f"{base}encoder.layer.{{i}}"
    if kind == "vit":
        blocks(where, HF_VIT)
        blocks(where, HF_VIT_ALSO)
        blocks(f"{base}layers.{{i}}", HF_VIT_ALSO)
    else:
        gated = module.mlp == "swiglu"
        also = _HF_ALSO | (SWIGLU_ALSO if gated else {})
        blocks(where, HF_DINOV2 | (SWIGLU if gated else {}))
        blocks(where, also)
    ignored = (r"pooler\.dense\.(weight|bias)", r"embeddings\.mask_token")
    return Conversion(tuple(rules), ("module.", f"{kind}."), ignored)


def hf_type(module: VisionTransformer) -> str:
    """The `model_type` of transformers that has what the module has."""
    if module.registers:
        return "dinov2_with_registers"
    return "vit" if module.layer_scale is None else "dinov2"


def _rules(ours: str, theirs: tuple[str, ...]) -> list[Rule]:
    if ours.endswith(("scale1", "scale2")):
        return [Rule(f"params/{ours}", theirs)]
    if "norm" in ours:
        return _norm(ours, *theirs)
    return _dense(ours, theirs)


def _norm(ours: str, theirs: str) -> list[Rule]:
    return [
        Rule(f"params/{ours}/scale", (f"{theirs}.weight",)),
        Rule(f"params/{ours}/bias", (f"{theirs}.bias",)),
    ]


def _dense(ours: str, theirs: tuple[str, ...]) -> list[Rule]:
    def layout(one: Layout) -> Layout:
        return one if len(theirs) == 1 else joined(one, len(theirs))

    weights = tuple(f"{name}.weight" for name in theirs)
    biases = tuple(f"{name}.bias" for name in theirs)
    return [
        Rule(f"params/{ours}/kernel", weights, layout(DENSE)),
        Rule(f"params/{ours}/bias", biases, layout(SAME)),
    ]
