"""A module and its weights from the files of other libraries, and back.

The configuration beside the weights says what they are: `model_type` of transformers,
`architecture` of timm. What was pretrained comes whole where the file has it all: a `MAE`
with its decoder, a `BEiT` or `BERT` with its heads, else their encoders alone. torchvision
writes none, so that the architecture must be named. Everything is checked: an option the
module lacks is refused by name, and every tensor must find its place. Heads and the images'
channels are those of the weights.

The trap is preprocessing, which no file of weights holds: most of these models want
images minus a mean, divided by a deviation, per channel.

Example:
    module, variables, report = interop.load("model_folder", any_size=True)
    features = module.apply(variables, images, train=False)
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxml.export import export
from jaxml.interop import beit, bert, mae, resnet, vgg, vit, vit_config
from jaxml.interop.files import (
    NAME,
    located,
    read_json,
    read_safetensors,
    write_json,
    write_safetensors,
)
from jaxml.interop.rules import (
    Conversion,
    ConversionError,
    Report,
    State,
    Variables,
    convert,
    export_state,
)
from jaxml.nn import VGG, ResNet, VisionTransformer, stack_blocks, unstack_blocks
from jaxml.ssl import BERT, MAE, BEiT, BertEncoder

STYLES = ("hf", "timm", "torchvision")
CONFIG = "config.json"
FAMILIES: tuple[tuple[type[nn.Module], ModuleType], ...] = (
    (ResNet, resnet),
    (VGG, vgg),
    (VisionTransformer, vit),
    (MAE, mae),
    (BEiT, beit),
    (BERT, bert),
    (BertEncoder, bert),
)
NAMES = ", ".join(
    (
        *resnet.ARCHITECTURES,
        *vgg.ARCHITECTURES,
        *mae.ARCHITECTURES,
        *vit_config.TORCHVISION,
    )
)
MODEL_TYPES = ("resnet", "bert", *vit.HF_TYPES)


@export("interop.load", since="0.1")
def load(
    source: str | Path,
    *,
    architecture: str | None = None,
    new_head: bool = False,
    revision: str | None = None,
    **options: Any,
) -> tuple[Any, Variables, Report]:
    """A module with the weights of a file, a folder or a repository of the hub.

    Args:
        source: a .safetensors file, the index of its shards, a folder of either, or the
            id of a repository, such as "organisation/name", which is downloaded by
            huggingface_hub (the extra `hf`).
        architecture: a name of torchvision's or timm's, where no config.json says it.
        new_head: the head of the file need not fit, or be there: where it does not, it
            is left out or starts at zero. Give `num_classes` to say which.
        revision: branch, tag or commit of the repository.
        options: of the module, or else of its encoder, in the place of those of the
            configuration, such as `num_classes`, `any_size`, `drop_path`, `dtype` or
            `axis_name`.

    Returns:
        The module, its variables in the module's `param_dtype`, and what was matched.

    Raises:
        FileNotFoundError: if there is no such file, or nothing to be had offline.
        ImportError: if the hub is asked for and huggingface_hub is not installed.
        WeightsError: if a file is damaged, or is a pickle.
        ConversionError: if the architecture is unknown, has what the module lacks, or
            the weights do not fit.
    """
    folder, weights = _files(source, revision)
    config_file = folder / CONFIG
    config = read_json(config_file) if config_file.is_file() else {}
    if not isinstance(config, dict):
        raise ConversionError(f"{config_file} must hold an object")
    state = read_safetensors(weights)
    style, build = _recognised(config, architecture)
    module = build(state)
    family = _family(module)
    if hasattr(module, "num_classes"):
        there = f"{family.HEAD}/kernel"
        head = _theirs(state, family.conversion(module, style), there)
        options = {"num_classes": None if head is None else len(head)} | options
    module = _with_options(module, options)
    stem = _theirs(state, family.conversion(module, style), _stem(module))
    if stem is None or stem.ndim != (2 if family is bert else 4):
        raise ConversionError(
            f"{weights} must hold a {type(module).__name__} in the style of {style}, "
            f"got {', '.join(sorted(state)[:5])}, ..."
        )
    loop = module.clone(scan=False) if isinstance(module, VisionTransformer) else module
    variables, report = convert(
        state,
        family.conversion(module, style),
        _shapes(loop, stem.shape[1]),
        fresh=(getattr(family, "HEAD", "params/head"),) if new_head else (),
    )
    if getattr(module, "scan", False):
        variables = {**variables, "params": stack_blocks(variables["params"])}
    return module, variables, report


@export("interop.save", since="0.1")
def save(
    path: str | Path,
    module: nn.Module,
    variables: Variables,
    *,
    style: str,
    dtype: Any = None,
    shard_bytes: int | None = None,
) -> None:
    """Writes weights so that another library, or `load`, reads them.

    Args:
        path: a .safetensors file for the weights alone, or a folder, which gets
            model.safetensors and, in the styles "hf" and "timm", config.json.
        module: a `ResNet`, `VGG`, `VisionTransformer`, `MAE`, `BEiT`, `BERT` or its
            encoder.
        variables: of the module.
        style: "hf" (transformers), "timm" or "torchvision".
        dtype: of the tensors; None keeps that of the variables.
        shard_bytes: the most that one file may hold; None writes one.

    Raises:
        ValueError: if the style is unknown.
        ConversionError: if the module has what that library's has not.
    """
    if style not in STYLES:
        raise ValueError(f"style must be one of {', '.join(STYLES)}, got {style!r}")
    family = _family(module)
    if "blocks" in variables["params"]:
        variables = {**variables, "params": unstack_blocks(variables["params"])}
    conversion = family.conversion(module, style)
    state = export_state(variables, conversion)
    if dtype is not None:
        state = {name: x.astype(jnp.dtype(dtype)) for name, x in state.items()}
    stem = _theirs(state, conversion, _stem(module))
    assert stem is not None
    path = Path(path)
    if path.suffix == ".safetensors":
        write_safetensors(path, state, shard_bytes=shard_bytes)
        return
    config = _config(module, style, stem.shape[1])
    write_safetensors(path / NAME, state, shard_bytes=shard_bytes)
    if style == "hf":
        config["dtype"] = str(stem.dtype)
    if config:
        write_json(path / CONFIG, config)


def _family(module: nn.Module) -> ModuleType:
    for kind, family in FAMILIES:
        if isinstance(module, kind):
            return family
    known = " or ".join(kind.__name__ for kind, _ in FAMILIES)
    raise ConversionError(f"module must be a {known}, got {type(module).__name__}")


def _stem(module: Any) -> str:
    """Our path of the first layer, whose tensor tells the channels."""
    family = _family(module)
    return bert.stem(module) if family is bert else family.STEM


def _with_options(module: Any, options: Mapping[str, Any]) -> Any:
    """The module with other options, of its own or of its encoder."""
    own = {name: x for name, x in options.items() if hasattr(module, name)}
    rest = {name: x for name, x in options.items() if name not in own}
    try:
        if rest and isinstance(getattr(module, "encoder", None), nn.Module):
            own["encoder"], rest = module.encoder.clone(**rest), {}
        return module.clone(**own, **rest)
    except TypeError as error:
        raise TypeError(f"no such option of {type(module).__name__}: {error}") from None


def _hf(config: Mapping[str, Any], state: State) -> nn.Module:
    """The module for a configuration and the tensors of transformers."""
    kind = config["model_type"]
    if kind == "resnet":
        return ResNet(**resnet.from_hf(config))
    if kind == "bert":
        return bert.from_hf(config, state)
    if kind == "vit_mae" and any("decoder.mask_token" in name for name in state):
        return mae.from_hf(config)
    if kind == "beit" and any("lm_head." in name for name in state):
        return beit.from_hf(config)
    has_head = any(name.endswith("classifier.weight") for name in state)
    return VisionTransformer(**vit_config.from_hf(config, has_head=has_head))


def _recognised(
    config: Mapping[str, Any], architecture: str | None
) -> tuple[str, Callable[[State], nn.Module]]:
    """Style, and what builds the module, given the tensors."""
    kind = config.get("model_type")
    name = architecture or config.get("architecture")
    if architecture is None and kind in MODEL_TYPES:
        return "hf", lambda state: _hf(config, state)
    arguments, size = {}, None
    if architecture is None and name is not None:
        arguments = dict(config.get("model_args") or {})
        arguments.setdefault("global_pool", config.get("global_pool"))
        arguments = {k: v for k, v in arguments.items() if v is not None}
        size = (config.get("pretrained_cfg") or {}).get("input_size")
    if name in resnet.ARCHITECTURES:
        return "timm", lambda _: ResNet(**resnet.from_timm(name, arguments))
    if name in vgg.ARCHITECTURES:
        return "torchvision", lambda _: vgg.ARCHITECTURES[name]()
    if name in mae.ARCHITECTURES:
        return "timm", lambda _: mae.from_authors(name)
    if name in vit_config.TORCHVISION:
        return "torchvision", lambda _: VisionTransformer(
            **vit_config.from_torchvision(name)
        )
    if name is not None and vit_config.is_timm(name):
        return "timm", lambda state: _timm(name, arguments, size, state)
    if name is None and kind is None:
        raise ConversionError(
            f"there is no {CONFIG} that says what the weights are of; name it, as in "
            'load(path, architecture="resnet50")'
        )
    raise ConversionError(
        f"{name or kind!r} is not known; there are the model types "
        f"{', '.join(MODEL_TYPES)} of transformers, and the architectures {NAMES} and "
        "(vit|deit|beit|beitv2)_<size>_patch<n>[_reg<n>][_dinov2][_<size>]"
    )


def _timm(
    name: str, arguments: Mapping[str, Any], size: Any, state: State
) -> nn.Module:
    module = VisionTransformer(**vit_config.from_timm(name, arguments, size))
    if "lm_head.weight" in state:  # as the authors of BEiT keep it
        return BEiT(module.clone(pool_norm=False), len(state["lm_head.weight"]))
    return module


def _config(module: Any, style: str, channels: int) -> dict[str, Any]:
    """The configuration that a library reads; torchvision's reads none."""
    classes = getattr(module, "num_classes", None)
    family = _family(module)
    family = vit_config if family is vit else family
    if style == "torchvision":
        return {}
    if style == "hf":
        names = {i: f"LABEL_{i}" for i in range(classes or 0)}
        labels = {
            "id2label": {str(i): name for i, name in names.items()},
            "label2id": {name: i for i, name in names.items()},
        }
        return family.to_hf(module, channels) | (labels if names else {})
    if family not in (resnet, vit_config):  # timm has no such architecture
        return {}
    name, arguments = family.to_timm(module, channels)
    size = getattr(module, "image_size", 224)
    height, width = (size, size) if isinstance(size, int) else size
    return {
        "architecture": name,
        "num_classes": classes or 0,
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [channels, height, width],
            "num_classes": classes or 0,
        },
    }


def _theirs(state: State, conversion: Conversion, path: str) -> np.ndarray | None:
    """The first tensor of one of our leaves, if it is there."""
    bare = {conversion.bare(name): x for name, x in state.items()}
    for names, _ in conversion.candidates(path):
        if conversion.bare(names[0]) in bare:
            return bare[conversion.bare(names[0])]
    return None


def _shapes(module: Any, channels: int) -> Variables:
    if _family(module) is bert:
        inputs = [jax.ShapeDtypeStruct((1, 1), jnp.int32)]
    else:
        encoder = getattr(module, "encoder", module)
        height, width = np.broadcast_to(getattr(encoder, "image_size", 64), 2)
        shape = (1, int(height), int(width), channels)
        inputs = [jax.ShapeDtypeStruct(shape, jnp.float32)]
        if encoder is not module:  # noise, or what is hidden
            kind = jnp.bool_ if isinstance(module, BEiT) else jnp.float32
            number = (height // encoder.patch_size) * (width // encoder.patch_size)
            inputs.append(jax.ShapeDtypeStruct((1, int(number)), kind))

    def init(*inputs: Any) -> Variables:
        return module.init(jax.random.key(0), *inputs, train=False)

    return jax.eval_shape(init, *inputs)


def _files(source: str | Path, revision: str | None) -> tuple[Path, Path]:
    """The folder of the configuration, and the weights."""
    path = Path(source)
    if not path.exists():
        if isinstance(source, Path) or not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
            raise FileNotFoundError(f"there is no file or folder {source}")
        if path.suffix == ".safetensors" or source[0] == ".":
            raise FileNotFoundError(f"there is no file {source}")
        path = _downloaded(source, revision)
    weights = located(path)
    return weights.parent, weights


def _downloaded(repository: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ImportError(
            f"there is no folder {repository}; to download a repository of that name, "
            'install huggingface_hub: pip install "jaxml[hf]"'
        ) from error
    patterns = [CONFIG, "model*.safetensors", "model.safetensors.index.json"]
    try:
        return Path(
            snapshot_download(repository, revision=revision, allow_patterns=patterns)
        )
    except Exception as error:  # its kinds differ from version to version
        raise FileNotFoundError(
            f"there is no folder {repository}, and it cannot be had from the hub "
            f"(offline, or no such repository): {type(error).__name__}: {error}"
        ) from error
