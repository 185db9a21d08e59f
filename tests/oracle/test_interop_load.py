"""Weights of timm, torchvision and transformers, there and back, give one output."""

import json

import chex
import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")
transformers = pytest.importorskip("transformers")

from safetensors.torch import save_file  # noqa: E402
from timm.models._hub import save_for_hf  # noqa: E402

from jaxml import interop  # noqa: E402

pytestmark = pytest.mark.oracle

SMALL = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 12,
    "patch_size": 4,
}
STAGES = {"embedding_size": 8, "depths": [2, 1, 1, 1]}
BASIC = STAGES | {"hidden_sizes": [8, 16, 32, 64], "layer_type": "basic"}
BOTTLENECK = STAGES | {"hidden_sizes": [32, 64, 128, 256]}


def hf(name, **options):
    config = getattr(
        transformers, f"{name.partition('For')[0].removesuffix('Model')}Config"
    )
    return getattr(transformers, name)(config(**options))


HF = {
    "vit": lambda: hf("ViTModel", intermediate_size=40, **SMALL),
    "vit_head": lambda: hf(
        "ViTForImageClassification",
        intermediate_size=40,
        **SMALL | {"image_size": [8, 12], "num_labels": 5, "num_channels": 1},
    ),
    "dinov2": lambda: hf("Dinov2Model", mlp_ratio=2, **SMALL),
    "dinov2_swiglu_head": lambda: hf(
        "Dinov2ForImageClassification",
        use_swiglu_ffn=True,
        num_labels=5,
        layerscale_value=0.5,
        **SMALL,
    ),
    "registers": lambda: hf(
        "Dinov2WithRegistersModel", mlp_ratio=2, num_register_tokens=3, **SMALL
    ),
    "registers_head": lambda: hf(
        "Dinov2WithRegistersForImageClassification", num_labels=5, **SMALL
    ),
    "resnet": lambda: hf("ResNetModel", **BASIC),
    "resnet_head": lambda: hf(
        "ResNetForImageClassification",
        num_labels=5,
        downsample_in_first_stage=True,
        **BOTTLENECK,
    ),
}
VIT = {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 3}
TIMM = {
    "resnet18": lambda: timm.create_model(
        "resnet18", num_classes=5, layers=[1, 1, 2, 1]
    ),
    "resnext50": lambda: timm.create_model(
        "resnext50_32x4d", num_classes=0, layers=[1, 1, 1, 1]
    ),
    "vit": lambda: timm.create_model("vit_tiny_patch16_224", num_classes=5, **VIT),
    "deit": lambda: timm.create_model(
        "deit_small_patch16_224", num_classes=0, **VIT | {"img_size": (32, 48)}
    ),
    "mean": lambda: timm.create_model(
        "vit_base_patch16_224",
        num_classes=5,
        class_token=False,
        global_pool="avg",
        fc_norm=False,
        init_values=0.3,
        **VIT,
    ),
    "norm_behind": lambda: timm.create_model(
        "vit_base_patch16_224", num_classes=5, global_pool="avg", **VIT
    ),
    "dinov2": lambda: timm.create_model(
        "vit_small_patch14_dinov2", num_classes=5, **VIT | {"img_size": 28}
    ),
    "registers": lambda: timm.create_model(
        "vit_small_patch14_reg4_dinov2", **VIT | {"img_size": 28}
    ),
    "giant": lambda: timm.create_model(
        "vit_giant_patch14_dinov2", **VIT | {"img_size": 28}
    ),
}


def torchvision_vit():
    model = torchvision.models.VisionTransformer(32, 16, 2, 12, 768, 40, num_classes=5)
    return model


def randomised(model):
    """Nothing as at the start: no zeros, no ones, statistics as after training."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, x in model.state_dict().items():
            if name.endswith("running_var"):
                x.uniform_(0.5, 1.5, generator=generator)
            elif x.is_floating_point():
                x.add_(0.1 * torch.randn(x.shape, generator=generator))
    return model.eval()


def outputs(model, images):
    """Logits, or the features before them."""
    with torch.no_grad():
        y = model(torch.from_numpy(images).permute(0, 3, 1, 2))
    if hasattr(y, "logits"):
        y = y.logits
    elif hasattr(y, "last_hidden_state"):
        pooled = "ResNet" in type(model).__name__
        y = y.pooler_output.flatten(1) if pooled else y.last_hidden_state[:, 0]
    return y.numpy()


def images_of(module, rng):
    channels = (
        1
        if "patch_embed" in module[1]["params"]
        and (
            len(module[1]["params"]["patch_embed"]["kernel"])
            == module[0].patch_size ** 2
        )
        else 3
    )
    size = getattr(module[0], "image_size", 48)
    height, width = (size, size) if isinstance(size, int) else size
    return np.float32(rng.normal(size=(2, height, width, channels)))


def check(folder, model, rng, **options):
    """What `load` makes of the folder gives the model's outputs."""
    module, variables, report = interop.load(folder, **options)
    assert report.exact
    images = images_of((module, variables), rng)
    expected = outputs(model, images)
    actual = jax.jit(lambda v, x: module.apply(v, x, train=False))(variables, images)
    error = np.linalg.norm(actual - expected) / np.linalg.norm(expected)
    assert error < 1e-5
    return module, variables, images, expected


def same_tensors(actual, expected, ignored=()):
    """All tensors are there again, to the bit."""
    names = {
        name
        for name in expected
        if "num_batches" not in name and not name.endswith(tuple(ignored))
    }
    assert set(actual) == names
    for name in names:
        np.testing.assert_array_equal(actual[name], expected[name], err_msg=name)


LEFT = ("pooler.dense.weight", "pooler.dense.bias", "mask_token")


@pytest.mark.parametrize("name", list(HF))
def test_transformers(name, rng, tmp_path):
    torch.manual_seed(0)
    model = randomised(HF[name]())
    model.save_pretrained(tmp_path / "theirs")
    module, variables, images, expected = check(tmp_path / "theirs", model, rng)
    interop.save(tmp_path / "ours", module, variables, style="hf")
    file = "model.safetensors"
    same_tensors(
        interop.read_safetensors(tmp_path / "ours" / file),
        interop.read_safetensors(tmp_path / "theirs" / file),
        LEFT,
    )
    again, info = type(model).from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    lacking = [n for n in info["missing_keys"] if "num_batches" not in n]
    assert all(n.endswith(LEFT) for n in lacking)
    assert not info["unexpected_keys"]
    chex.assert_trees_all_equal(outputs(again.eval(), images), expected)


@pytest.mark.parametrize("name", ["vit_head", "dinov2_swiglu_head", "registers"])
def test_transformers_names_in_memory(name, rng, tmp_path):
    """The names of the newest version load as do those of its files."""
    model = randomised(HF[name]())
    model.save_pretrained(tmp_path)
    state = {f"module.{n}": x.contiguous() for n, x in model.state_dict().items()}
    assert any("q_proj" in name for name in state)
    save_file(state, tmp_path / "model.safetensors")
    check(tmp_path, model, rng)


@pytest.mark.parametrize("name", list(TIMM))
def test_timm(name, rng, tmp_path):
    torch.manual_seed(0)
    model = randomised(TIMM[name]())
    save_for_hf(model, str(tmp_path / "theirs"), safe_serialization=True)
    module, variables, images, expected = check(tmp_path / "theirs", model, rng)
    interop.save(tmp_path / "ours", module, variables, style="timm")
    state = interop.read_safetensors(tmp_path / "ours")
    same_tensors(state, {n: x.numpy() for n, x in model.state_dict().items()})
    config = json.loads((tmp_path / "ours/config.json").read_text())
    again = timm.create_model(config["architecture"], **config["model_args"])
    again.load_state_dict({n: torch.tensor(x) for n, x in state.items()})
    chex.assert_trees_all_equal(outputs(again.eval(), images), expected)
    check(tmp_path / "ours", model, rng)


def test_torchvision_resnet(rng, tmp_path):
    model = randomised(torchvision.models.resnet18(num_classes=5))
    save_file(model.state_dict(), tmp_path / "x.safetensors")
    file = tmp_path / "x.safetensors"
    module, variables, *_ = check(file, model, rng, architecture="resnet18")
    interop.save(tmp_path / "y.safetensors", module, variables, style="torchvision")
    state = interop.read_safetensors(tmp_path / "y.safetensors")
    same_tensors(state, {n: x.numpy() for n, x in model.state_dict().items()})


@pytest.mark.parametrize("old", [False, True])
def test_torchvision_vit(old, rng, tmp_path):
    model = randomised(torchvision_vit())
    state = model.state_dict()
    if old:  # as before version 0.13
        pairs = (("mlp.0", "mlp.linear_1"), ("mlp.3", "mlp.linear_2"))
        for new, then in pairs:
            state = {n.replace(new, then): x for n, x in state.items()}
    file = tmp_path / "x.safetensors"
    save_file(state, file)
    options = {"image_size": 32, "depth": 2, "mlp_ratio": 40.5 / 768}
    module, variables, *_ = check(file, model, rng, architecture="vit_b_16", **options)
    interop.save(tmp_path / "y.safetensors", module, variables, style="torchvision")
    again = interop.read_safetensors(tmp_path / "y.safetensors")
    same_tensors(again, {n: x.numpy() for n, x in model.state_dict().items()})


@pytest.mark.parametrize("name", ["vit", "dinov2", "registers"])
def test_other_sizes(name, rng, tmp_path):
    """Positions are resampled as transformers does it, to fewer and to more."""
    model = randomised(HF[name]())
    model.save_pretrained(tmp_path)
    module, variables, _ = interop.load(tmp_path, any_size=True)
    options = {"interpolate_pos_encoding": True} if name == "vit" else {}
    for size in ((8, 20), (12, 4)):
        images = np.float32(rng.normal(size=(2, *size, 3)))
        expected = outputs(lambda x: model(x, **options), images)
        actual = module.apply(variables, images, train=False)
        error = np.linalg.norm(actual - expected) / np.linalg.norm(expected)
        assert error < 1e-5


REFUSED = {
    "qkv_bias": lambda: hf("ViTModel", qkv_bias=False, **SMALL),
    "hidden_act": lambda: hf("ViTModel", hidden_act="relu", **SMALL),
    "downsample_in_bottleneck": lambda: hf(
        "ResNetModel", downsample_in_bottleneck=True, **BOTTLENECK
    ),
}


@pytest.mark.parametrize("option", list(REFUSED))
def test_what_the_module_lacks_is_refused_by_name(option, tmp_path):
    REFUSED[option]().save_pretrained(tmp_path)
    with pytest.raises(interop.ConversionError, match=f"{option} must be"):
        interop.load(tmp_path)
