"""The recipes: their shapes, their numbers, and that they are random where they should be."""

from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxml.ops import views
from jaxml.ops.views import (
    byol_view1,
    byol_view2,
    byol_views,
    digit_view,
    dino_local_view,
    dino_view1,
    dino_view2,
    dino_views,
    mae_view,
    moco_v2_view,
    multi_crop,
    simclr_cifar_view,
    simclr_view,
    simsiam_view,
    swav_view,
    swav_views,
    two_views,
)
from jaxml.parallel import data_mesh

RECIPES = {
    "simclr": simclr_view,
    "simclr_cifar": simclr_cifar_view,
    "moco_v2": moco_v2_view,
    "simsiam": simsiam_view,
    "byol1": byol_view1,
    "byol2": byol_view2,
    "swav": swav_view,
    "swav_local": partial(swav_view, area=(0.05, 0.14)),
    "dino1": dino_view1,
    "dino2": dino_view2,
    "dino_local": dino_local_view,
}
SIZES = {"simclr_cifar": 32, "swav_local": 224, "dino_local": 96}

# name: area, jitter (b, c, s, h), blur, solarize. Flip 0.5, jitter 0.8 and gray 0.2 always.
STRONG, HALF = (0.8, 0.8, 0.8, 0.2), (0.4, 0.4, 0.4, 0.1)
SOFT = (0.4, 0.4, 0.2, 0.1)
PAPERS = {
    "simclr": ((0.08, 1), STRONG, 0.5, 0),
    "simclr_cifar": ((0.08, 1), HALF, 0, 0),
    "moco_v2": ((0.2, 1), HALF, 0.5, 0),
    "simsiam": ((0.2, 1), HALF, 0.5, 0),
    "byol1": ((0.08, 1), SOFT, 1, 0),
    "byol2": ((0.08, 1), SOFT, 0.1, 0.2),
    "swav": ((0.14, 1), STRONG, 0.5, 0),
    "swav_local": ((0.05, 0.14), STRONG, 0.5, 0),
    "dino1": ((0.4, 1), SOFT, 1, 0),
    "dino2": ((0.4, 1), SOFT, 0.1, 0.2),
    "dino_local": ((0.05, 0.4), SOFT, 0.5, 0),
}


@pytest.fixture
def ledger(monkeypatch):
    """What a recipe asks for: (operation, arguments) in order, without doing it."""
    calls = []

    def record(name, keep_shape=True):
        def operation(key, image, *args, **kwargs):
            calls.append((name, args, kwargs))
            if keep_shape:
                return image
            size = args[0] if isinstance(args[0], tuple) else (args[0], args[0])
            return jnp.zeros((*size, image.shape[-1]), image.dtype)

        monkeypatch.setattr(views, name, operation)

    record("random_resized_crop", keep_shape=False)
    for name in (
        "random_horizontal_flip",
        "color_jitter",
        "random_grayscale",
        "random_gaussian_blur",
        "random_solarize",
    ):
        record(name)

    def maybe(key, p, operation, image):
        calls.append(("maybe", (p,), {}))
        return operation(key, image)

    monkeypatch.setattr(views, "apply_with_probability", maybe)
    return calls


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_the_numbers_of_its_paper(name, ledger):
    image = jnp.zeros((40, 30, 3))
    out = RECIPES[name](jax.random.key(0), image)
    size = SIZES.get(name, 224)
    assert out.shape == (size, size, 3)
    area, jitter, blur, solarize = PAPERS[name]
    crop, flip, maybe_jitter, colors, gray, maybe_blur, blurred, inverted = ledger
    assert crop[0] == "random_resized_crop"
    assert crop[2]["area"] == area
    assert "ratio" not in crop[2]  # 3/4 to 4/3
    cubic = name.startswith(("byol", "dino"))
    assert crop[2]["method"] == ("bicubic" if cubic else "bilinear")
    assert flip == ("random_horizontal_flip", (), {})  # 0.5
    assert maybe_jitter == ("maybe", (0.8,), {})
    names = ("brightness", "contrast", "saturation", "hue")
    chex.assert_trees_all_close(colors[2], dict(zip(names, jitter, strict=True)))
    assert gray == ("random_grayscale", (0.2,), {})
    assert maybe_blur == ("maybe", (blur,), {})
    assert "sigma" not in blurred[2]  # 0.1 to 2
    wide = 23 if name.startswith(("swav", "dino")) else None
    assert blurred[2]["kernel_size"] == wide
    assert inverted == ("random_solarize", (solarize,), {})


@cache
def compiled(recipe, size):
    """(keys, images) -> views, compiled once for all tests."""
    return jax.jit(jax.vmap(partial(recipe, size=size)))


def photographs(rng, shape):
    """Smooth random images: noise would not survive a crop."""
    count, height, width, channels = shape
    y, x = np.mgrid[:height, :width] / max(height, width)
    y, x = y[None, :, :, None], x[None, :, :, None]
    waves = rng.normal(size=(3, count, 1, 1, channels)) * 2
    return (0.5 + 0.5 * np.sin(waves[0] + waves[1] * y + waves[2] * x)).astype(
        np.float32
    )


@pytest.mark.parametrize(
    "recipe, channels", [(simclr_view, 1), (byol_view2, 3)], ids=["simclr", "byol"]
)
def test_views_are_images_and_depend_on_their_key_alone(rng, recipe, channels):
    images = photographs(rng, (24, 20, 18, channels))
    keys = jax.random.split(jax.random.key(0), 24)
    view = compiled(recipe, 16)
    out = view(keys, images)
    chex.assert_shape(out, (24, 16, 16, channels))
    chex.assert_tree_all_finite(out)
    assert out.min() >= -1e-6
    assert out.max() <= 1 + 1e-6
    order = rng.permutation(24)
    chex.assert_trees_all_close(view(keys[order], images[order]), out[order], atol=1e-5)
    same = np.asarray(view(keys, np.broadcast_to(images[:1], images.shape)))
    distances = np.abs(same[:, None] - same).max(axis=(2, 3, 4)) + np.eye(24)
    assert (distances > 1e-3).mean() > 0.97  # two may both be black or white


def test_eight_devices_make_the_views_of_one(rng):
    images = photographs(rng, (24, 20, 18, 3))
    keys = jax.random.split(jax.random.key(0), 24)
    many = jax.shard_map(
        jax.vmap(partial(byol_view2, size=16)),
        mesh=data_mesh(),
        in_specs=P("data"),
        out_specs=P("data"),
    )
    expected = compiled(byol_view2, 16)(keys, images)
    chex.assert_trees_all_close(jax.jit(many)(keys, images), expected, atol=1e-5)


def test_the_order_of_the_operations(rng):
    """A white image stays white through all but what inverts it, which comes last."""
    white = jnp.ones((200, 20, 18, 3))
    keys = jax.random.split(jax.random.key(0), 200)
    out = compiled(byol_view2, 16)(keys, white)
    flat = jnp.ptp(out, axis=(1, 2, 3))
    chex.assert_trees_all_close(flat, jnp.zeros(200), atol=1e-5)
    # Brightness 0.6 to 1.4 with probability 0.8, then solarized with 0.2.
    inverted = (out[:, 0, 0, 0] < 0.45).mean()
    assert abs(inverted - 0.2) < 4 * np.sqrt(0.2 * 0.8 / 200)


def test_two_views_are_two_draws_of_two_recipes(rng):
    image = jnp.asarray(photographs(rng, (1, 6, 5, 3))[0])
    noisy = lambda key, x: x + jax.random.uniform(key, x.shape)
    key = jax.random.key(0)
    pair = two_views(noisy)(key, image)
    assert set(pair) == {"view1", "view2"}
    assert jnp.abs(pair["view1"] - pair["view2"]).min() > 0
    pair = two_views(noisy, lambda key, x: -noisy(key, x))(key, image)
    assert pair["view1"].min() >= 0
    assert pair["view2"].max() <= 0
    assert jnp.abs(pair["view1"] + pair["view2"]).min() > 0


def test_multi_crop_stacks_independent_crops():
    image = jnp.zeros((4, 4, 1))
    large = lambda key, x: jnp.full((3, 3, 1), jax.random.uniform(key))
    other = lambda key, x: jnp.full((3, 3, 1), 1 + jax.random.uniform(key))
    small = lambda key, x: jnp.full((2, 2, 1), jax.random.uniform(key))
    crops = multi_crop(large, small, 5)(jax.random.key(0), image)
    chex.assert_shape(crops["global"], (2, 3, 3, 1))
    chex.assert_shape(crops["local"], (5, 2, 2, 1))
    draws = [*crops["global"][:, 0, 0, 0], *crops["local"][:, 0, 0, 0]]
    assert len({float(d) for d in draws}) == 7
    crops = multi_crop(large, small, 0, global2=other)(jax.random.key(0), image)
    assert set(crops) == {"global"}
    first, second = crops["global"][:, 0, 0, 0]
    assert first < 1 <= second
    with pytest.raises(ValueError, match="num_local must not be negative, got -1"):
        multi_crop(large, small, -1)


@pytest.mark.parametrize(
    "recipe, num_local", [(dino_views, 8), (swav_views, 6)], ids=["dino", "swav"]
)
def test_multi_crop_recipes_have_static_shapes(recipe, num_local):
    image = jax.ShapeDtypeStruct((256, 200, 3), jnp.float32)
    crops = jax.eval_shape(recipe, jax.random.key(0), image)
    assert crops["global"].shape == (2, 224, 224, 3)
    assert crops["local"].shape == (num_local, 96, 96, 3)
    small = partial(recipe, num_local=2, global_size=(20, 16), local_size=5)
    crops = jax.eval_shape(small, jax.random.key(0), image)
    assert crops["global"].shape == (2, 20, 16, 3)
    assert crops["local"].shape == (2, 5, 5, 3)


def test_dino_and_byol_treat_their_views_differently(ledger):
    image = jnp.zeros((40, 30, 3))
    byol_views(jax.random.key(0), image, size=20)
    assert [c[1] for c in ledger if c[0] == "random_solarize"] == [(0,), (0.2,)]
    ledger.clear()
    dino_views(jax.random.key(0), image, num_local=3, global_size=20, local_size=10)
    assert [c[1] for c in ledger if c[0] == "random_solarize"] == [(0,), (0.2,), (0,)]
    areas = [c[2]["area"] for c in ledger if c[0] == "random_resized_crop"]
    assert areas == [(0.4, 1), (0.4, 1), (0.05, 0.4)]  # the last under vmap
    ledger.clear()
    swav_views(jax.random.key(0), image, num_local=3, global_size=20, local_size=10)
    areas = [c[2]["area"] for c in ledger if c[0] == "random_resized_crop"]
    assert areas == [(0.14, 1), (0.14, 1), (0.05, 0.14)]


def test_digit_view_moves_and_changes_a_digit():
    digit = jnp.zeros((8, 8, 1)).at[2:6, 3:5].set(0.5)
    keys = jax.random.split(jax.random.key(0), 100)
    out = jax.jit(jax.vmap(digit_view, (0, None)))(keys, digit)
    chex.assert_shape(out, (100, 8, 8, 1))
    assert out.min() >= 0
    assert out.max() <= 1
    # It stays a bright thing near the middle, of varying place and brightness.
    mass = out.sum(axis=(1, 2, 3))
    rows = jnp.einsum("nijc,i->n", out, jnp.arange(8.0)) / mass
    assert jnp.abs(rows - 3.5).max() < 1.6
    assert jnp.std(rows) > 0.3
    assert jnp.std(out.max(axis=(1, 2, 3))) > 0.05
    quiet = partial(
        digit_view,
        degrees=0,
        translate=0,
        scale=(1, 1),
        shear=0,
        gain=(1, 1),
        sigma=(0, 0),
    )
    same = jax.jit(quiet)(keys[0], digit)
    chex.assert_trees_all_close(same, digit, atol=1e-6)


def test_mae_crops_and_flips_alone(rng):
    """The whole image as it is, or its mirror image; smaller crops of the size asked."""
    image = np.float32(rng.uniform(size=(8, 8, 3)))
    whole = partial(mae_view, size=8, area=(1, 1))
    views = jax.vmap(whole, (0, None))(jax.random.split(jax.random.key(0), 8), image)
    views = np.asarray(views)
    same = np.abs(views - image).max(axis=(1, 2, 3)) < 1e-5
    turned = np.abs(views - image[:, ::-1]).max(axis=(1, 2, 3)) < 1e-5
    assert (same ^ turned).all()
    assert 0 < same.sum() < 8
    crop = mae_view(jax.random.key(1), image, size=5)
    assert crop.shape == (5, 5, 3)
    assert 0 <= crop.min() < crop.max() <= 1
