"""`load` and `save` without the other libraries; with them in tests/oracle."""

import json
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxml import interop
from jaxml.interop import vit_config
from jaxml.nn import VGG, BatchNorm, ConvNet, ResNet, VisionTransformer
from jaxml.ssl import BERT, MAE, BEiT, BertEncoder

VIT = {"image_size": (8, 12), "patch_size": 4, "width": 12, "depth": 2, "heads": 3}
DINOV2 = {"layer_scale": 0.5, "mlp": "swiglu", "mlp_ratio": 24 / 12}
TIMM = {"registers": 2, "class_position": False, "layer_scale": 1e-5}
WIDE = {"width": 8, "stage_sizes": (2, 1, 1, 1)}
HF = {"antialias_positions": False}
MODULES = {
    "hf vit": VisionTransformer(**VIT, **HF, num_classes=3),
    "hf scan": VisionTransformer(**VIT, **HF, scan=True),
    "hf dinov2": VisionTransformer(**VIT, **HF, **DINOV2, pool="both", num_classes=3),
    "hf registers": VisionTransformer(**VIT, layer_scale=0.5, registers=2),
    "hf basic": ResNet(block="basic", num_classes=3, **WIDE),
    "hf bottleneck": ResNet(block="bottleneck", strides=(2, 2, 2, 2), **WIDE),
    "timm vit": VisionTransformer(**VIT, num_classes=3),
    "timm registers": VisionTransformer(**VIT, **TIMM),
    "timm mean": VisionTransformer(
        **VIT, class_token=False, pool="mean", num_classes=3, dropout=0.1, drop_path=0.2
    ),
    "timm swiglu": VisionTransformer(**VIT, **DINOV2),
}


def shapes(module, channels=3):
    size = getattr(module, "image_size", (64, 64))
    images = jnp.ones((1, *size, channels))
    return jax.eval_shape(lambda: module.init(jax.random.key(0), images, train=False))


def random_variables(rng, module, channels=3):
    draw = lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype)
    return jax.tree.map(draw, shapes(module, channels))


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("name", list(MODULES))
def test_there_and_back(name, channels, rng, tmp_path):
    """The module comes back from its own configuration, and the weights to the bit."""
    style, module = name.split()[0], MODULES[name]
    variables = random_variables(rng, module, channels)
    interop.save(tmp_path, module, variables, style=style)
    scan = {"scan": True} if getattr(module, "scan", False) else {}
    again, loaded, report = interop.load(tmp_path, **scan)
    assert again == module
    assert report.exact
    chex.assert_trees_all_equal(loaded, variables)


BEIT = {"position": "none", "relative_position": "shared", "layer_scale": 0.1}
TEXT = BertEncoder(11, 12, 2, 3, 20, 7, dropout=0.2)
DECODER = {"decoder_width": 8, "decoder_depth": 2, "decoder_heads": 2}
PRETRAINED = {
    "mae": MAE(VisionTransformer(**VIT, **HF, position="sincos"), **DECODER),
    "beit": BEiT(VisionTransformer(**VIT, **HF, **BEIT, pool="mean"), 5),
    "bert": BERT(TEXT, next_sentence=True),
    "bert for words": BERT(TEXT),
    "bert's encoder": TEXT,
    "beit's encoder": VisionTransformer(
        **VIT,
        **HF,
        **BEIT | {"relative_position": "each"},
        pool="mean",
        pool_norm=True,
        num_classes=3,
    ),
    "mae's encoder": VisionTransformer(**VIT, **HF, position="sincos"),
}


def pretrained_variables(rng, module):
    if "ert" in type(module).__name__ or isinstance(module, BERT):
        inputs = [jnp.ones((1, 4), int)]
    else:
        inputs = [jnp.ones((1, 8, 12, 3))]
        if isinstance(module, MAE | BEiT):
            kind = bool if isinstance(module, BEiT) else float
            inputs.append(jnp.ones((1, 6), kind))
    like = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs, train=False))
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), like)


@pytest.mark.parametrize("name", list(PRETRAINED))
def test_pretrained_modules_there_and_back(name, rng, tmp_path):
    """With all that they were pretrained with, and the encoder of it alone."""
    module = PRETRAINED[name]
    variables = pretrained_variables(rng, module)
    interop.save(tmp_path, module, variables, style="hf")
    again, loaded, report = interop.load(tmp_path)
    assert again == module
    assert report.exact
    for path, x in flatten_dict(variables, sep="/").items():
        expected = np.array(x)
        if "beit" in name and path.endswith("qkv/bias"):
            expected[12:24] = 0  # keys have none there, and need none
        np.testing.assert_array_equal(flatten_dict(loaded, sep="/")[path], expected)


def test_options_go_to_the_encoder_where_they_are_its(rng, tmp_path):
    module = PRETRAINED["mae"]
    interop.save(tmp_path, module, pretrained_variables(rng, module), style="hf")
    again, *_ = interop.load(tmp_path, mask_ratio=0.5, drop_path=0.2, axis_name="data")
    encoder = module.encoder.clone(drop_path=0.2, axis_name="data")
    assert again == module.clone(mask_ratio=0.5, encoder=encoder)
    with pytest.raises(TypeError, match=r"no such option of MAE.*colour"):
        interop.load(tmp_path, colour="red")


def test_positions_that_are_not_learned_must_be_the_same(rng, tmp_path):
    module = PRETRAINED["mae"]
    interop.save(tmp_path, module, pretrained_variables(rng, module), style="hf")
    state = interop.read_safetensors(tmp_path)
    state["decoder.decoder_pos_embed"][0, 3, 2] += 0.01
    interop.write_safetensors(tmp_path / "model.safetensors", state)
    with pytest.raises(
        interop.ConversionError, match="decoder_pos_embed: it must be the constant"
    ):
        interop.load(tmp_path)
    del state["decoder.decoder_pos_embed"], state["decoder.decoder_norm.weight"]
    state["decoder.another.weight"] = np.zeros(3, np.float32)
    interop.write_safetensors(tmp_path / "model.safetensors", state)
    with pytest.raises(interop.ConversionError) as error:
        interop.load(tmp_path)
    told = str(error.value)
    assert "params/norm/scale: there is no decoder.decoder_norm.weight" in told
    assert "decoder.another.weight" in told


def test_bert_has_no_style_but_one(rng, tmp_path):
    variables = pretrained_variables(rng, TEXT)
    with pytest.raises(interop.ConversionError, match="style must be hf, got timm"):
        interop.save(tmp_path, TEXT, variables, style="timm")


@pytest.mark.parametrize(
    "name", ["vit_b_16", "vit_base_patch16_224", "deit_base_patch16_224"]
)
def test_architecture_by_name(name, rng, tmp_path):
    sizes = {"image_size": 32, "depth": 1, "width": 24}
    module = VisionTransformer(**sizes, num_classes=3)
    variables = random_variables(rng, module.clone(image_size=(32, 32)))
    style = "torchvision" if name == "vit_b_16" else "timm"
    path = tmp_path / "x.safetensors"
    interop.save(path, module, variables, style=style)
    again, loaded, _ = interop.load(path, architecture=name, **sizes)
    assert again == module
    chex.assert_trees_all_equal(loaded, variables)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["vgg11", "vgg16_bn"])
def test_vgg_with_its_classifier_without_or_with_another(name, rng, tmp_path):
    small = {"stage_sizes": (1, 1, 2, 1, 1), "width": 4, "hidden": 6}
    norm = BatchNorm if name.endswith("bn") else None
    module = VGG(**small, norm=norm, num_classes=3)
    variables = random_variables(rng, module)
    path = tmp_path / "x.safetensors"
    interop.save(path, module, variables, style="torchvision")
    again, loaded, report = interop.load(path, architecture=name, **small)
    assert again == module
    assert report.exact
    chex.assert_trees_all_equal(loaded, variables)
    features, loaded, _ = interop.load(
        path, architecture=name, num_classes=None, **small
    )
    assert features == module.clone(num_classes=None)
    for key in loaded["params"]:
        chex.assert_trees_all_equal(loaded["params"][key], variables["params"][key])
    assert not any("dense" in key for key in loaded["params"])
    _, loaded, report = interop.load(
        path, architecture=name, num_classes=5, new_head=True, **small
    )
    assert not np.any(loaded["params"]["dense_2"]["kernel"])
    assert set(report.mismatched) == {"params/dense_2/kernel", "params/dense_2/bias"}
    with pytest.raises(interop.ConversionError, match="style must be torchvision"):
        interop.save(tmp_path, module, variables, style="timm")


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_in_shards(dtype, rng, tmp_path):
    module = MODULES["hf dinov2"]
    variables = random_variables(rng, module)
    interop.save(tmp_path, module, variables, style="hf", dtype=dtype, shard_bytes=2000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["dtype"] == np.dtype(dtype).name
    _, loaded, report = interop.load(tmp_path)
    rounded = jax.tree.map(lambda x: x.astype(dtype), variables)
    chex.assert_trees_all_equal(loaded, jax.tree.map(jnp.float32, rounded))
    assert len(report.converted) == len(report.matched)
    _, loaded, report = interop.load(tmp_path, param_dtype=dtype)
    chex.assert_trees_all_equal(loaded, rounded)
    assert not report.converted


@pytest.fixture
def folder(rng, tmp_path):
    module = MODULES["hf vit"]
    interop.save(tmp_path, module, random_variables(rng, module), style="hf")
    return tmp_path


def test_heads_differ_only_if_asked(folder):
    with pytest.raises(
        interop.ConversionError, match=r"classifier\.weight is \(3, 12\)"
    ):
        interop.load(folder, num_classes=7)
    with pytest.raises(interop.ConversionError, match="unexpected"):
        interop.load(folder, num_classes=None)
    module, variables, report = interop.load(folder, num_classes=7, new_head=True)
    assert module.num_classes == 7
    assert not np.any(variables["params"]["head"]["kernel"])
    assert set(report.mismatched) == {"params/head/kernel", "params/head/bias"}
    module, variables, report = interop.load(folder, num_classes=None, new_head=True)
    assert "head" not in variables["params"]
    assert report.unexpected == ("classifier.bias", "classifier.weight")
    images = jnp.ones((2, 8, 12, 3))
    assert module.apply(variables, images, train=False).shape == (2, 12)


def test_other_options_are_the_modules(folder):
    module, *_ = interop.load(folder, any_size=True, drop_path=0.3)
    assert module.any_size
    assert module.drop_path == 0.3
    with pytest.raises(TypeError, match=r"no such option of VisionTransformer.*colour"):
        interop.load(folder, colour="red")
    with pytest.raises(interop.ConversionError, match="position_embeddings is"):
        interop.load(folder, image_size=24)


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_type": "swin"}, "'swin' is not known; there are the model types"),
        ({"model_type": None}, "no config.json that says"),
        ({"hidden_act": "relu"}, "hidden_act must be gelu, got relu"),
        ({"qkv_bias": False}, "qkv_bias must be True, got False"),
        ({"patch_size": [4, 2]}, "patches must be square"),
        ({"model_type": "resnet", "hidden_sizes": [1]}, "hidden_sizes must be"),
        ({"num_hidden_layers": 3}, "missing"),
        ({"num_hidden_layers": 1}, "unexpected"),
        (
            {"model_type": None, "architecture": "vit_base_patch16_clip_224"},
            "not known",
        ),
        (
            {
                "model_type": None,
                "architecture": "vit_base_patch16_224",
                "global_pool": "avg",
            },
            "must hold a VisionTransformer",
        ),
        (
            {
                "model_type": None,
                "architecture": "vit_base_patch16_224",
                "model_args": {"qk_norm": True},
            },
            "qk_norm must be False, got True",
        ),
        (
            {
                "model_type": None,
                "architecture": "vit_base_patch16_224",
                "model_args": {"novelty": 1},
            },
            "novelty of timm's ViT is not supported",
        ),
        (
            {
                "model_type": None,
                "architecture": "resnet50",
                "model_args": {"output_stride": 8},
            },
            "output_stride of timm's ResNet is not supported",
        ),
    ],
)
def test_configurations_that_do_not_fit(folder, changes, message):
    edit(folder, **changes)
    with pytest.raises(interop.ConversionError, match=message):
        interop.load(folder)


def test_a_damaged_configuration(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(interop.WeightsError, match="is not JSON"):
        interop.load(folder)


def test_weights_of_something_else(folder):
    with pytest.raises(
        interop.ConversionError, match="must hold a ResNet in the style"
    ):
        interop.load(folder, architecture="resnet18")
    with pytest.raises(interop.ConversionError, match="'resnet19' is not known"):
        interop.load(folder, architecture="resnet19")


@pytest.mark.parametrize(
    "module, style, message",
    [
        (VisionTransformer(**VIT, pool="mean"), "hf", "pool must be class, got mean"),
        (
            VisionTransformer(**VIT, position="sincos"),
            "timm",
            "position must be learned",
        ),
        (VisionTransformer(**VIT, registers=1), "hf", "layer_scale must not be None"),
        (VisionTransformer(**VIT, registers=1), "timm", "class_position must be false"),
        (VisionTransformer(**VIT, epsilon=1e-5), "timm", "epsilon must be 1e-06"),
        (
            VisionTransformer(**VIT, layer_scale=1.0, mlp_ratio=2.5),
            "hf",
            "mlp_ratio must be a whole number",
        ),
        (ResNet((1, 1, 1, 1), "basic", stem="cifar"), "hf", "stem must be imagenet"),
        (ResNet((1, 1, 1, 1), "basic", width=8), "timm", "width must be 64, got 8"),
        (
            ResNet((1, 1, 1, 1), "bottleneck", groups=32, width_per_group=4),
            "hf",
            "groups must be 1, got 32",
        ),
    ],
)
def test_what_a_library_lacks_is_not_written(module, style, message, rng, tmp_path):
    like = shapes(module.clone(position="learned") if "sin" in message else module)
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
    with pytest.raises(interop.ConversionError, match=message):
        interop.save(tmp_path, module, zeros, style=style)
    assert not list(tmp_path.iterdir())


def test_save_wants_a_style_and_a_module(tmp_path):
    with pytest.raises(ValueError, match="style must be one of hf, timm, torchvision"):
        interop.save(tmp_path, MODULES["hf vit"], {"params": {}}, style="keras")
    with pytest.raises(interop.ConversionError, match="got ConvNet"):
        interop.save(tmp_path, ConvNet(), {"params": {}}, style="hf")


def test_nothing_there(tmp_path, monkeypatch):
    for source in (tmp_path / "x", str(tmp_path / "x"), "x", "./x", "a/x.safetensors"):
        with pytest.raises(FileNotFoundError, match="there is no file"):
            interop.load(source)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r'pip install "jaxml\[hf\]"'):
        interop.load("organisation/name")


def test_the_hub(folder, monkeypatch):
    """A repository is asked for by its name; without a network it says so."""
    asked = []

    class Hub:
        @staticmethod
        def snapshot_download(repository, *, revision, allow_patterns):
            asked.append((repository, revision))
            assert "config.json" in allow_patterns
            if repository == "away/model":
                raise ConnectionError("no route")
            return str(folder)

    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub)
    module, *_ = interop.load("organisation/name", revision="v1")
    assert module == MODULES["hf vit"]
    assert asked == [("organisation/name", "v1")]
    with pytest.raises(FileNotFoundError, match=r"offline.*ConnectionError: no route"):
        interop.load("away/model")


def test_offline_for_real(monkeypatch, tmp_path):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="cannot be had from the hub"):
        interop.load("organisation/name-that-is-not-there")


def test_ratios_survive_rounding():
    for width in range(1, 60):
        for hidden in range(1, 4 * width):
            assert int(vit_config.ratio_of(hidden, width) * width) == hidden


@pytest.mark.parametrize(
    "name, width, hidden, side, size",  # as published
    [
        ("vit_tiny_patch16_224", 192, 768, 16, 224),
        ("vit_huge_patch14_224", 1280, 5120, 14, 224),
        ("vit_base_patch16_384", 768, 3072, 16, 384),
        ("vit_small_patch14_dinov2", 384, 1536, 14, 518),
        ("vit_giant_patch14_reg4_dinov2", 1536, 4096, 14, 518),
    ],
)
def test_timms_names(name, width, hidden, side, size):
    assert vit_config.is_timm(name)
    options = vit_config.from_timm(name, {})
    assert (options["width"], options["patch_size"]) == (width, side)
    assert int(options["mlp_ratio"] * width) == hidden
    assert options["image_size"] == size
    assert options.get("registers", 0) == (4 if "reg4" in name else 0)


@pytest.mark.parametrize(
    "name",
    [
        "vit_giant_patch14_224",
        "vit_base_patch16_clip_224",
        "vit_base_patch16_224_miil",
        "vit_base_patch16_reg4_gap_256",
        "vit_base_patch16_reg4_224",
        "resnet50",
    ],
)
def test_other_names_are_not_guessed(name):
    assert not vit_config.is_timm(name)
