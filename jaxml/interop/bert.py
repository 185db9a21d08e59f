"""BERT as transformers names and describes it.

Read are files with the prefix `bert.` and without, with the norms of the first files
(`LayerNorm.gamma`, `LayerNorm.beta`) and of later ones. The last matrix of the head is that
of the embeddings; a copy of it in a file is passed over.

The trap is the norm's epsilon, 1e-12, which is smaller than elsewhere.
"""

from collections.abc import Collection, Mapping
from typing import Any

from jaxml.interop import vit
from jaxml.interop.rules import Conversion, Rule
from jaxml.interop.vit import Names
from jaxml.interop.vit_config import same
from jaxml.ssl import BERT, BertEncoder

BLOCK: Names = {
    "attention/qkv": tuple(f"attention.self.{x}" for x in ("query", "key", "value")),
    "attention/out": ("attention.output.dense",),
    "norm1": ("attention.output.LayerNorm",),
    "mlp/dense1": ("intermediate.dense",),
    "mlp/dense2": ("output.dense",),
    "norm2": ("output.LayerNorm",),
}


def conversion(module: BERT | BertEncoder, style: str) -> Conversion:
    """How transformers names this module's variables."""
    same("style", style, "hf")
    whole = isinstance(module, BERT)
    path, base = ("encoder/", "bert.") if whole else ("", "")
    tables = {"word": "word", "position": "position", "type": "token_type"}
    rules = [
        Rule(f"params/{path}{ours}", (f"{base}embeddings.{theirs}_embeddings.weight",))
        for ours, theirs in tables.items()
    ]
    rules += vit.norm_rules(f"{path}embed_norm", f"{base}embeddings.LayerNorm")
    rules += vit.block_rules(path, f"{base}encoder.layer.{{i}}", BLOCK)
    if whole:
        rules += _heads()
    rules += _first_names(rules)
    ignored = [r"cls\.predictions\.decoder\.(weight|bias)", r"embeddings\.position_ids"]
    if not (whole and module.next_sentence):
        ignored += [r"pooler\.dense\.(weight|bias)", r"cls\.seq_relationship\..*"]
    return Conversion(tuple(rules), ("module.", "bert."), tuple(ignored))


def _heads() -> list[Rule]:
    biases = ("cls.predictions.bias", "cls.predictions.decoder.bias")
    return [
        *vit.dense_rules("transform", ("cls.predictions.transform.dense",)),
        *vit.norm_rules("norm", "cls.predictions.transform.LayerNorm"),
        *(Rule("params/bias", (name,)) for name in biases),
        *vit.dense_rules("pooler", ("bert.pooler.dense",)),
        *vit.dense_rules("follows", ("cls.seq_relationship",)),
    ]


def _first_names(rules: list[Rule]) -> list[Rule]:
    """The rules of norms with the names that they had at first."""
    then = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    return [
        rule._replace(theirs=(rule.theirs[0].replace(now, first),))
        for rule in rules
        for now, first in then.items()
        if rule.theirs[0].endswith(now)
    ]


def stem(module: BERT | BertEncoder) -> str:
    """The path of the embeddings of words."""
    return "params/encoder/word" if isinstance(module, BERT) else "params/word"


def from_hf(config: Mapping[str, Any], names: Collection[str]) -> BERT | BertEncoder:
    """The module for a configuration of transformers and the names of the tensors."""
    for name, wanted in (
        ("hidden_act", "gelu"),
        ("position_embedding_type", "absolute"),
        ("is_decoder", False),
        ("tie_word_embeddings", True),
    ):
        same(name, config.get(name, wanted), wanted)
    encoder = BertEncoder(
        vocab_size=config.get("vocab_size", 30522),
        width=config.get("hidden_size", 768),
        depth=config.get("num_hidden_layers", 12),
        heads=config.get("num_attention_heads", 12),
        hidden=config.get("intermediate_size", 3072),
        max_length=config.get("max_position_embeddings", 512),
        num_types=config.get("type_vocab_size", 2),
        pad=config.get("pad_token_id", 0),
        dropout=config.get("hidden_dropout_prob", 0.1),
        epsilon=config.get("layer_norm_eps", 1e-12),
    )
    if not any("cls.predictions." in name for name in names):
        return encoder
    return BERT(encoder, any("cls.seq_relationship." in name for name in names))


def to_hf(module: BERT | BertEncoder, channels: int) -> dict[str, Any]:
    """The configuration of transformers for a module."""
    del channels
    own, kind = module, "Model"
    if isinstance(module, BERT):
        own = module.encoder
        kind = "ForPreTraining" if module.next_sentence else "ForMaskedLM"
    return {
        "architectures": [f"Bert{kind}"],
        "model_type": "bert",
        "vocab_size": own.vocab_size,
        "hidden_size": own.width,
        "num_hidden_layers": own.depth,
        "num_attention_heads": own.heads,
        "intermediate_size": own.hidden,
        "max_position_embeddings": own.max_length,
        "type_vocab_size": own.num_types,
        "pad_token_id": own.pad,
        "hidden_act": "gelu",
        "hidden_dropout_prob": own.dropout,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": own.epsilon,
        "tie_word_embeddings": True,
    }
