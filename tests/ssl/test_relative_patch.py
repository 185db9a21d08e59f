"""Relative patch: where patches lie, the shortcuts, the loss, and what it learns."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.nn import ConvNet
from jaxml.ssl import (
    DIRECTIONS,
    RelativePatch,
    drop_colors,
    pair_views,
    patch_pair,
    pixelate,
    project_colors,
    relative_patch,
)
from tests.numerical import close, gradients
from tests.ssl.trials import (
    TinyBackbone,
    check_all_moved,
    check_bfloat16,
    check_devices,
    train,
)


def pairs(image, count, **options):
    keys = jax.random.split(jax.random.key(0), count)
    return jax.vmap(lambda key: patch_pair(key, image, **options))(keys)


def coordinates(height, width):
    """An image that says of each pixel where it is: (row, column)."""
    return jnp.stack(
        jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij"), axis=-1
    ).astype(jnp.float32)


@pytest.mark.parametrize(
    "shape, size, gap, jitter", [((23, 19), 3, 4, 1), ((15, 15), 3, 3, 0)]
)
def test_neighbours_lie_where_they_should(shape, size, gap, jitter):
    first, second, direction = pairs(
        coordinates(*shape), 600, size=size, gap=gap, jitter=jitter
    )
    chex.assert_shape((first, second), (600, size, size, 2))
    corner = first[:, 0, 0]
    chex.assert_trees_all_equal(
        first - corner[:, None, None],
        jnp.broadcast_to(coordinates(size, size)[None], first.shape),
    )
    apart = (
        np.asarray(second[:, 0, 0] - corner)
        - (size + gap) * np.array(DIRECTIONS)[direction]
    )
    assert abs(apart).max() == 2 * jitter
    # All directions, all of the places, all of the jitters.
    assert set(np.unique(direction)) == set(range(8))
    for axis, length in enumerate(shape):
        last = length - 2 * size - gap
        found = np.unique(np.asarray(corner[:, axis]))
        assert found.tolist() == list(range(size + gap, last + 1))
        assert second[:, 0, 0, axis].min() >= 0
        assert second[:, -1, -1, axis].max() <= length - 1
        assert len(np.unique(apart[:, axis])) == 4 * jitter + 1
    # Never nearer than this, so no edge goes on.
    between = np.abs(np.asarray(second[:, 0, 0] - corner)).max(axis=1) - size
    assert between.min() == gap - 2 * jitter


def test_the_first_patch_alone_tells_nothing():
    """Its place is drawn alike for every direction, at the borders too."""
    first, _, direction = pairs(coordinates(13, 13), 6000, size=2, gap=2, jitter=1)
    place = np.asarray(first[:, 0, 0, 0] * 13 + first[:, 0, 0, 1]).astype(int)
    places, place = np.unique(place, return_inverse=True)
    table = np.zeros((len(places), 8))
    np.add.at(table, (place, np.asarray(direction)), 1)
    expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
    freedom = (table.shape[0] - 1) * 7
    chi2 = ((table - expected) ** 2 / expected).sum()
    assert freedom > 100
    assert abs(chi2 - freedom) < 5 * np.sqrt(2 * freedom)


def test_one_colour_is_left(rng):
    """Other colours, wherever a lens has displaced them, change nothing at all."""
    patch = np.float32(rng.uniform(size=(6, 6, 3)))
    kept = set()
    for seed in range(30):
        key = jax.random.key(seed)
        dropped = np.asarray(drop_colors(key, patch))
        (which,) = (c for c in range(3) if (dropped[..., c] == patch[..., c]).all())
        kept.add(which)
        displaced = np.stack(
            [
                patch[..., c] if c == which else np.roll(patch[..., c], 2, axis=0)
                for c in range(3)
            ],
            axis=-1,
        )
        chex.assert_trees_all_equal(dropped, np.asarray(drop_colors(key, displaced)))
        noise = np.delete(dropped, which, axis=-1) - 0.5
        assert 0.6 < noise.std() / (patch[..., which].std() / 100) < 1.4
        assert abs(noise.mean()) < 0.1 * patch[..., which].std()
    assert kept == {0, 1, 2}


def test_both_patches_draw_their_colours_apart():
    image = jnp.ones((12, 12, 3)) * jnp.arange(12.0).reshape(12, 1, 1) / 12
    views = jax.vmap(pair_views(2, gap=2), in_axes=(0, None))
    made = views(jax.random.split(jax.random.key(0), 200), image)
    kept = [np.std(made[k], axis=(1, 2)).argmax(axis=1) for k in ("patch1", "patch2")]
    assert 0.2 < np.mean(kept[0] == kept[1]) < 0.5
    whole = jax.vmap(pair_views(2, gap=2, drop=False), in_axes=(0, None))
    made = whole(jax.random.split(jax.random.key(0), 9), image)
    assert np.ptp(np.asarray(made["patch1"]), axis=-1).max() == 0


def test_projection_matches_its_matrix(rng):
    x = rng.uniform(size=(2, 3, 5, 3))
    a = np.array([[-1.0, 2.0, -1.0]])
    b = np.eye(3) - a.T @ a / (a @ a.T)
    y = project_colors(np.float32(x))
    close(y, x @ b)
    close(project_colors(y), y)  # once is enough
    close(project_colors(np.float32(x + 0.3 * a)), y)  # a fringe is gone
    gray = np.float32(np.repeat(x[..., :1], 3, axis=-1))
    close(project_colors(gray), gray)


def test_the_model_sees_projected_colours_everywhere(rng):
    batch = make_batch(rng, channels=3)
    fringe = np.float32([-0.1, 0.2, -0.1]).reshape(1, 1, 1, 3)
    other = {k: v + fringe if v.ndim == 4 else v for k, v in batch.items()}
    for project in (True, False):
        method = relative_patch(RelativePatch(TinyBackbone(), (), project))
        params, state = method.init(jax.random.key(0), batch)
        same = [
            np.allclose(f(batch), f(other), rtol=1e-4, atol=1e-5)
            for f in (
                lambda b, m=method, p=params, s=state: m.predict(p, s, b),
                lambda b, m=method, p=params, s=state: m.loss(
                    p, s, b, jax.random.key(0)
                )[0],
            )
        ]
        assert same == [project, project]


def test_pixelation_is_resizing_there_and_back(rng):
    from jaxml.ops import resize_image

    patch = np.float32(rng.uniform(size=(7, 7, 2)))
    small = [resize_image(patch, (n, n)) for n in range(3, 8)]
    back = np.stack([resize_image(x, (7, 7)) for x in small])
    made = jax.vmap(lambda key: pixelate(key, patch, 9))(
        jax.random.split(jax.random.key(0), 60)
    )
    apart = np.abs(np.asarray(made)[:, None] - back).max(axis=(2, 3, 4))
    assert apart.min(axis=1).max() < 1e-5
    assert set(apart.argmin(axis=1)) == set(range(5))
    chex.assert_trees_all_close(
        pixelate(jax.random.key(0), patch, 100), patch, atol=1e-6
    )
    views = jax.vmap(pair_views(7, gap=0, pixelated=0.3), in_axes=(0, None))
    image = np.float32(rng.uniform(size=(21, 21, 1)))
    keys = jax.random.split(jax.random.key(0), 300)
    made = views(keys, image)["patch1"]  # 7 x 7 < 100: nothing is to be seen
    first = jax.vmap(lambda k: patch_pair(k, image, 7, gap=0)[0])(
        jax.vmap(lambda k: jax.random.split(k, 3)[0])(keys)
    )
    chex.assert_trees_all_close(made, first, atol=1e-6)


def make_batch(rng, size=8, channels=1):
    """A slope that falls downwards and to the right, so that directions can be told."""
    slope = np.linspace(1, 0, 9)[:, None] + 0.5 * np.linspace(1, 0, 9)[None]
    noise = 0.05 * rng.uniform(size=(size, 9, 9, channels))
    image = np.float32(0.6 * slope[None, :, :, None] + noise)
    keys = jax.random.split(jax.random.key(7), size)
    views = jax.vmap(pair_views(3, gap=0, drop=False))(keys, image)
    return {"image": np.float32(image[:, :3, :3]), **views}


def test_loss_is_that_of_late_fusion(rng):
    """One encoder for both, their features side by side, first patch first."""
    method = relative_patch(RelativePatch(TinyBackbone(4), ()))
    batch = make_batch(rng, 5)
    params, state = method.init(jax.random.key(0), batch)

    def loss(w, b, v, c):
        h = [np.float64(batch[k]).reshape(5, -1) @ w + b for k in ("patch1", "patch2")]
        logits = np.concatenate(h, axis=1) @ v + c
        wanted = logits[np.arange(5), np.asarray(batch["direction"])]
        return np.mean(np.log(np.exp(logits).sum(1)) - wanted)

    def parts(tree):
        dense, last = tree["backbone"]["Dense_0"], tree["directions"]
        return dense["kernel"], dense["bias"], last["kernel"], last["bias"]

    (value, (_, metrics)), grads = jax.value_and_grad(method.loss, has_aux=True)(
        params, state, batch, jax.random.key(0)
    )
    arrays = [np.float64(x) for x in parts(params)]
    close(value, loss(*arrays), scale=3)
    for grad, expected in zip(parts(grads), gradients(loss, *arrays), strict=True):
        close(grad, expected, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_equal(metrics["loss"], value)


def test_batch_norm_sees_both_patches_at_once(rng):
    """Otherwise a constant between the two would be normalised away."""
    model = RelativePatch(ConvNet((3,)), (5,))
    batch = make_batch(rng)
    params, state = relative_patch(model).init(jax.random.key(0), batch)
    _, (after, _) = relative_patch(model).loss(params, state, batch, jax.random.key(0))
    conv = params["backbone"]["Conv_0"]["kernel"]
    both = np.concatenate([batch["patch1"], batch["patch2"]])
    from jaxml.nn import convolve

    mean = np.mean(convolve(both, conv), axis=(0, 1, 2))
    stats = after["batch_stats"]["backbone"]["BatchNorm_0"]["mean"]
    chex.assert_trees_all_close(stats, 0.1 * mean, rtol=1e-4, atol=1e-6)


def test_it_learns_and_touches_every_parameter(rng):
    method = relative_patch(RelativePatch(TinyBackbone(), (16,)))
    start, state, history = train(method, make_batch(rng, 32), 80)
    check_all_moved(start, state)
    assert history[-1]["accuracy"] > 0.9
    assert history[-1]["loss"] < 0.5 < np.log(8) - 0.5 < history[0]["loss"]


def test_noise_teaches_nothing(rng):
    """Patches of noise have no places: new ones are guessed, one in eight."""
    method = relative_patch(RelativePatch(TinyBackbone(), (16,)))

    def noise(step):
        draw = np.random.default_rng(step)
        shape = (64, 3, 3, 1)
        patches = {f"patch{i}": np.float32(draw.uniform(size=shape)) for i in (1, 2)}
        return {**patches, "direction": draw.integers(0, 8, 64, dtype=np.int32)}

    *_, history = train(method, noise, 40)
    assert np.mean([row["accuracy"] for row in history[20:]]) < 0.2


def test_a_step_runs_in_bfloat16(rng):
    model = RelativePatch(ConvNet((4,)), (6,))
    check_bfloat16(relative_patch(model), make_batch(rng))


def test_many_devices_take_the_same_steps_as_one(rng):
    def build(axis_name):
        backbone = ConvNet((4,), axis_name=axis_name)
        return relative_patch(RelativePatch(backbone, (6,), axis_name=axis_name))

    check_devices(build, make_batch(rng, 16), 8, atol=1e-4)


def test_views_run_in_bfloat16():
    image = jnp.ones((9, 9, 3), jnp.bfloat16)
    made = pair_views(3, gap=0, pixelated=0.5)(jax.random.key(0), image)
    assert made["patch1"].dtype == made["patch2"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    "options, message",
    [
        ({"size": 0, "gap": 1}, "size must be positive"),
        ({"size": 2, "gap": 1, "jitter": 1}, "at least twice the jitter"),
        ({"size": 4, "gap": 2, "jitter": 1}, "at least 18 pixels .* got 17 x 20"),
    ],
)
def test_bad_input_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        patch_pair(jax.random.key(0), jnp.ones((17, 20, 1)), **options)
