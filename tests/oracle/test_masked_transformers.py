"""MAE, BEiT and BERT: outputs and losses of transformers and timm, there and back."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
timm = pytest.importorskip("timm")

from safetensors.torch import save_file  # noqa: E402
from timm.models._hub import save_for_hf  # noqa: E402

from jaxml import interop  # noqa: E402
from jaxml.nn import VisionTransformer, sincos_positions  # noqa: E402
from jaxml.ssl import (  # noqa: E402
    BERT,
    MAE,
    BEiT,
    BertEncoder,
    beit_loss,
    hidden_places,
    mae_loss,
    masked_lm_loss,
)

pytestmark = pytest.mark.oracle

SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
}
PICTURE = {**SIZES, "image_size": 16, "patch_size": 4}


def hf(name, **options):
    config = getattr(
        transformers, f"{name.partition('For')[0].removesuffix('Model')}Config"
    )
    torch.manual_seed(0)
    model = getattr(transformers, name)(config(**options))
    return randomised(model)


def randomised(model):
    """Nothing as at the start but positions that are no parameters."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, x in model.named_parameters():
            if x.requires_grad:
                x.add_(0.1 * torch.randn(x.shape, generator=generator))
            elif "pos" in name:  # zero in new models alone
                positions = sincos_positions(4, 4, x.shape[-1])
                x.copy_(torch.tensor(np.pad(positions, ((1, 0), (0, 0))))[None])
    return model.eval()


def near(actual, expected, limit=1e-5):
    expected = np.asarray(expected)
    error = np.linalg.norm(np.asarray(actual) - expected) / np.linalg.norm(expected)
    assert error < limit, error


def channels_first(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def renamed(model, folder, change):
    """Saves the tensors of a model under other names beside its configuration."""
    model.save_pretrained(folder)
    state = {change(n): x.contiguous().clone() for n, x in model.state_dict().items()}
    save_file(state, folder / "model.safetensors")


def back(model, tmp_path, module, variables, lacking=()):
    """What `save` writes, transformers reads whole, to the bit."""
    interop.save(tmp_path / "ours", module, variables, style="hf")
    again, info = type(model).from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert all(name.endswith(tuple(lacking)) for name in info["missing_keys"]), info
    assert not info["unexpected_keys"]
    ours = again.state_dict()
    for name, x in model.state_dict().items():
        if not name.endswith(tuple(lacking) or ("\0",)):
            limit = 1e-6 if "pos" in name else 0
            assert float((ours[name] - x).abs().max()) <= limit, name


@pytest.fixture(scope="module")
def mae_model():
    decoder = {
        "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 24,
    }
    return hf("ViTMAEForPreTraining", **PICTURE, **decoder)


def mae_outputs(module, variables, rng, model):
    images = np.float32(rng.normal(size=(3, 16, 16, 3)))
    noise = np.float32(rng.uniform(size=(3, 16)))
    with torch.no_grad():
        theirs = model(channels_first(images), noise=torch.from_numpy(noise))
        model.config.norm_pix_loss = True
        normal = model(channels_first(images), noise=torch.from_numpy(noise)).loss
        model.config.norm_pix_loss = False
    painted, hidden = jax.jit(lambda v: module.apply(v, images, noise, train=False))(
        variables
    )
    np.testing.assert_array_equal(hidden, theirs.mask.numpy() > 0)
    near(painted, theirs.logits)
    near(mae_loss(painted, images, hidden, 4, normalize=False), theirs.loss)
    near(mae_loss(painted, images, hidden, 4), normal)


def test_mae(mae_model, rng, tmp_path):
    mae_model.save_pretrained(tmp_path / "theirs")
    module, variables, report = interop.load(tmp_path / "theirs")
    assert isinstance(module, MAE)
    assert report.exact
    mae_outputs(module, variables, rng, mae_model)
    back(mae_model, tmp_path, module, variables)
    again, same, _ = interop.load(tmp_path / "ours")
    assert again == module
    chex.assert_trees_all_equal(same, variables)


def test_mae_under_other_names(mae_model, rng, tmp_path):
    """In memory, and with the blocks of the decoder as in the files of the hub."""
    renamed(mae_model, tmp_path / "new", lambda name: name)
    module, variables, report = interop.load(tmp_path / "new", mask_ratio=0.5)
    assert report.exact
    assert module.mask_ratio == 0.5
    state = interop.read_safetensors(tmp_path / "new")
    assert "decoder.decoder_layers.0.attention.q_proj.weight" in state
    interop.save(tmp_path / "timm.safetensors", module, variables, style="timm")
    state = interop.read_safetensors(tmp_path / "timm.safetensors")
    assert {"decoder_blocks.0.attn.qkv.weight", "decoder_pos_embed"} <= set(state)
    sizes = {"image_size": 16, "patch_size": 4, "width": 24, "depth": 2, "heads": 3}
    own = {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
    _, again, report = interop.load(
        tmp_path / "timm.safetensors",
        architecture="mae_vit_base_patch16",
        decoder_mlp_ratio=1.5,
        mlp_ratio=40.5 / 24,
        **sizes,
        **own,
    )
    assert report.exact
    chex.assert_trees_all_equal(again, variables)


def test_the_encoder_of_mae_alone(rng, tmp_path):
    model = hf("ViTMAEModel", **PICTURE, mask_ratio=0.0)
    model.save_pretrained(tmp_path)
    module, variables, report = interop.load(tmp_path)
    assert isinstance(module, VisionTransformer)
    assert report.exact
    images = np.float32(rng.normal(size=(2, 16, 16, 3)))
    noise = torch.arange(16.0)[None].repeat(2, 1)
    with torch.no_grad():
        theirs = model(channels_first(images), noise=noise).last_hidden_state
    near(
        jax.jit(lambda v: module.apply(v, images, train=False))(variables), theirs[:, 0]
    )
    state = interop.read_safetensors(tmp_path)
    state["embeddings.position_embeddings"] += 1
    interop.write_safetensors(tmp_path / "model.safetensors", state)
    with pytest.raises(interop.ConversionError, match="must be the constant"):
        interop.load(tmp_path)


@pytest.mark.parametrize("old", [True, False])
def test_beit_before_fine_tuning(old, rng, tmp_path):
    kind = {"use_mask_token": True, "use_shared_relative_position_bias": True}
    model = hf("BeitForMaskedImageModeling", **PICTURE, **kind, vocab_size=7)
    if old:
        model.save_pretrained(tmp_path)
    else:
        renamed(model, tmp_path, lambda name: name)
    module, variables, report = interop.load(tmp_path)
    assert isinstance(module, BEiT)
    assert report.exact
    images = np.float32(rng.normal(size=(2, 16, 16, 3)))
    hidden = np.stack([rng.permutation(16) < 6 for _ in range(2)])
    codes = rng.integers(0, 7, size=(2, 6))
    with torch.no_grad():
        theirs = model(
            channels_first(images),
            bool_masked_pos=torch.from_numpy(hidden),
            labels=torch.from_numpy(codes).reshape(-1),
        )
    logits = jax.jit(lambda v: module.apply(v, images, hidden, train=False))(variables)
    near(logits, theirs.logits)
    places = hidden_places(jnp.asarray(hidden), 6)
    at = jnp.take_along_axis(logits, places[..., None], axis=1)
    near(beit_loss(at, jnp.asarray(codes)), theirs.loss)
    if old:
        back(model, tmp_path, module, variables)
    else:
        interop.save(tmp_path / "x.safetensors", module, variables, style="timm")
        state = interop.read_safetensors(tmp_path / "x.safetensors")
        assert {"lm_head.weight", "blocks.1.attn.q_bias", "mask_token"} <= set(state)
        assert "rel_pos_bias.relative_position_bias_table" in state


def test_beit_after_fine_tuning(rng, tmp_path):
    """A table for each block, and the norm behind the mean."""
    kind = {"use_relative_position_bias": True, "num_labels": 5}
    model = hf("BeitForImageClassification", **PICTURE, **kind)
    model.save_pretrained(tmp_path / "theirs")
    module, variables, report = interop.load(tmp_path / "theirs")
    assert report.exact
    images = np.float32(rng.normal(size=(2, 16, 16, 3)))
    with torch.no_grad():
        theirs = model(channels_first(images)).logits
    near(jax.jit(lambda v: module.apply(v, images, train=False))(variables), theirs)
    back(model, tmp_path, module, variables)


def test_beit_by_its_class_token_with_learned_positions(rng, tmp_path):
    kind = {"use_absolute_position_embeddings": True, "use_mean_pooling": False}
    kind["use_shared_relative_position_bias"] = True
    model = hf("BeitModel", **PICTURE, **kind)
    renamed(model, tmp_path, lambda name: name)
    module, variables, _ = interop.load(tmp_path)
    images = np.float32(rng.normal(size=(2, 16, 16, 3)))
    with torch.no_grad():
        theirs = model(channels_first(images)).pooler_output
    near(jax.jit(lambda v: module.apply(v, images, train=False))(variables), theirs)


def test_timms_beit(rng, tmp_path):
    model = randomised(
        timm.create_model(
            "beit_base_patch16_224",
            img_size=32,
            embed_dim=24,
            depth=2,
            num_heads=3,
            num_classes=5,
        )
    )
    save_for_hf(model, str(tmp_path), safe_serialization=True)
    module, variables, report = interop.load(tmp_path)
    assert report.exact
    images = np.float32(rng.normal(size=(2, 32, 32, 3)))
    with torch.no_grad():
        theirs = model(channels_first(images))
    near(jax.jit(lambda v: module.apply(v, images, train=False))(variables), theirs)
    interop.save(tmp_path / "ours", module, variables, style="timm")
    state = interop.read_safetensors(tmp_path / "ours")
    model.load_state_dict({n: torch.tensor(x) for n, x in state.items()})
    again, same, _ = interop.load(tmp_path / "ours")
    assert again == module
    chex.assert_trees_all_equal(same, variables)


TEXT = {**SIZES, "vocab_size": 31, "max_position_embeddings": 12}


def sentences(rng):
    tokens = rng.integers(1, 31, size=(3, 9))
    tokens[0, 5:] = 0
    types = np.broadcast_to(np.arange(9) > 3, (3, 9)).astype(np.int64)
    return tokens, types


def first_names(name):
    name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
    return name.replace("LayerNorm.bias", "LayerNorm.beta")


@pytest.mark.parametrize("name", ["BertForPreTraining", "BertForMaskedLM"])
def test_bert(name, rng, tmp_path):
    model = hf(name, **TEXT)
    if name == "BertForMaskedLM":
        model.save_pretrained(tmp_path / "theirs")
    else:  # the names of the first files
        renamed(model, tmp_path / "theirs", first_names)
    module, variables, report = interop.load(tmp_path / "theirs", dropout=0.0)
    assert isinstance(module, BERT)
    assert report.exact
    tokens, types = sentences(rng)
    labels = np.where(rng.uniform(size=tokens.shape) < 0.4, tokens, -100)
    labels[tokens == 0] = -100
    given = {"labels": torch.from_numpy(labels)}
    if module.next_sentence:
        given["next_sentence_label"] = torch.tensor([0, 1, 1])
    with torch.no_grad():
        theirs = model(
            torch.from_numpy(tokens),
            attention_mask=torch.from_numpy(tokens != 0).long(),
            token_type_ids=torch.from_numpy(types),
            **given,
        )
    run = jax.jit(lambda v: module.apply(v, tokens, types, train=False))
    logits, follows = run(variables)
    real, value = (
        tokens != 0,
        masked_lm_loss(
            logits, jnp.asarray(np.maximum(labels, 0)), jnp.asarray(labels >= 0)
        ),
    )
    if module.next_sentence:
        near(np.asarray(logits)[real], theirs.prediction_logits.numpy()[real])
        near(follows, theirs.seq_relationship_logits)
        value += jnp.mean(-jax.nn.log_softmax(follows)[np.arange(3), [0, 1, 1]])
    else:
        near(np.asarray(logits)[real], theirs.logits.numpy()[real])
    near(value, theirs.loss)
    back(model, tmp_path, module, variables)
    again, same, _ = interop.load(tmp_path / "ours", dropout=0.0)
    assert again == module
    chex.assert_trees_all_equal(same, variables)


def test_berts_encoder_alone_and_without_its_prefix(rng, tmp_path):
    model = hf("BertModel", **TEXT)
    renamed(model, tmp_path / "theirs", lambda name: name)
    module, variables, report = interop.load(tmp_path / "theirs")
    assert isinstance(module, BertEncoder)
    assert report.ignored == ("pooler.dense.bias", "pooler.dense.weight")
    tokens, types = sentences(rng)
    with torch.no_grad():
        theirs = model(
            torch.from_numpy(tokens),
            attention_mask=torch.from_numpy(tokens != 0).long(),
            token_type_ids=torch.from_numpy(types),
        )
    h = jax.jit(lambda v: module.apply(v, tokens, types, train=False))(variables)
    near(h, theirs.last_hidden_state[:, 0])
    back(
        model, tmp_path, module, variables, ("pooler.dense.weight", "pooler.dense.bias")
    )


REFUSED = {
    "hidden_act": lambda: hf("BertModel", **TEXT | {"hidden_act": "relu"}),
    "use_mean_pooling": lambda: hf(
        "BeitForMaskedImageModeling",
        use_mask_token=True,
        use_mean_pooling=False,
        **PICTURE,
    ),
    "use_relative_position_bias": lambda: hf(
        "BeitModel",
        use_relative_position_bias=True,
        use_shared_relative_position_bias=True,
        **PICTURE,
    ),
}


@pytest.mark.parametrize("option", list(REFUSED))
def test_what_the_module_lacks_is_refused_by_name(option, tmp_path):
    REFUSED[option]().save_pretrained(tmp_path)
    with pytest.raises(interop.ConversionError, match=f"{option} must be"):
        interop.load(tmp_path)
