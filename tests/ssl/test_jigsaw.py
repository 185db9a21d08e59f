"""Jigsaw: the set of permutations, the tiles and their shortcuts, the loss, devices."""

import itertools
import operator

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.nn import ConvNet
from jaxml.ssl import (
    Jigsaw,
    cut_tiles,
    hamming_distances,
    hamming_permutations,
    jigsaw,
    jigsaw_views,
    normalize_tiles,
    shuffle_tiles,
)
from tests.numerical import close, gradients
from tests.ssl.trials import (
    TinyBackbone,
    check_all_moved,
    check_bfloat16,
    check_devices,
    train,
)


def greedy(num, tiles, rule, first):
    """Algorithm 1 as it is printed, with loops."""
    rest = list(itertools.permutations(range(tiles)))
    chosen = [tuple(first)]
    rest.remove(chosen[0])
    while len(chosen) < num:
        rows = [[sum(map(operator.ne, p, q)) for q in chosen] for p in rest]
        means = [np.mean(row) for row in rows]
        if rule == "middle":
            best = sorted(range(len(rest)), key=means.__getitem__)[len(rest) // 2]
        elif rule == "mean":
            best = max(range(len(rest)), key=means.__getitem__)
        else:
            best = max(range(len(rest)), key=lambda i: (min(rows[i]), means[i]))
        chosen.append(rest.pop(best))
    return chosen


@pytest.mark.parametrize("rule", ["mean", "max", "middle"])
@pytest.mark.parametrize("num, tiles, seed", [(24, 4, 0), (17, 5, 3), (2, 2, 1)])
def test_permutations_are_those_of_the_printed_algorithm(num, tiles, seed, rule):
    found = hamming_permutations(num, tiles, rule=rule, seed=seed)
    assert found.tolist() == [list(p) for p in greedy(num, tiles, rule, found[0])]


def test_sets_of_nine_are_distinct_and_far_apart():
    """Permutations drawn blindly differ in 8 of 9 places on average, in 2 at least."""
    apart = {}
    for rule in ("mean", "max"):
        found = hamming_permutations(100, rule=rule)
        assert len({tuple(p) for p in found}) == 100
        assert (np.sort(found) == np.arange(9)).all()
        apart[rule] = hamming_distances(found)
    assert apart["mean"][0] > 8.05
    assert apart["max"][1] > apart["mean"][1] >= 2
    # Nine permutations can differ everywhere, ten cannot.
    assert hamming_distances(hamming_permutations(9))[1] == 9
    assert hamming_distances(hamming_permutations(10))[1] < 9


def test_the_set_is_the_same_every_time():
    a, b = (hamming_permutations(6, 5, seed=4) for _ in range(2))
    chex.assert_trees_all_equal(a, b)
    firsts = {tuple(hamming_permutations(1, 5, seed=s)[0]) for s in range(20)}
    assert len(firsts) > 10


def test_distances_count_places():
    p = np.array([[0, 1, 2, 3], [1, 0, 2, 3], [3, 2, 1, 0]])
    assert hamming_distances(p) == ((2 + 4 + 4) / 3, 2)


def coordinates(height, width, channels=1):
    rows, columns = np.mgrid[:height, :width]
    return np.float32(np.stack([rows * 100 + columns] * channels, axis=-1))


@pytest.mark.parametrize(
    "shape, grid, size, jitter", [((20, 23), (3, 3), 4, 1), ((9, 8), (2, 4), 2, 0)]
)
def test_tiles_are_crops_of_their_cells(shape, grid, size, jitter):
    image = coordinates(*shape, 3)
    tiles = jax.vmap(
        lambda key: cut_tiles(key, image, grid, size, channel_jitter=jitter)
    )(jax.random.split(jax.random.key(0), 300))
    chex.assert_shape(tiles, (300, grid[0] * grid[1], size, size, 3))
    corner = np.asarray(tiles[:, :, :1, :1])
    inside = coordinates(size, size)[None, None]
    chex.assert_trees_all_equal(
        np.asarray(tiles) - corner, np.broadcast_to(inside, tiles.shape)
    )
    cell = np.array(shape) // grid
    spare = np.array(shape) % grid // 2
    for k in range(grid[0] * grid[1]):
        start = spare + cell * np.array(divmod(k, grid[1]))
        place = np.stack(np.divmod(corner[:, k, 0, 0], 100), axis=-1) - start
        for axis in range(2):  # every place of the cell, and none outside
            wanted = set(range(cell[axis] - size + 1))
            assert set(np.unique(place[..., axis])) == wanted
    moved = np.ptp(corner // 100, axis=-1).max()
    assert moved == (min(2 * jitter, cell[0] - size) if jitter else 0)


def test_some_images_are_gray_and_channels_of_others_jittered(rng):
    image = np.float32(rng.uniform(size=(12, 12, 3)))
    keys = jax.random.split(jax.random.key(0), 400)
    views = jax.vmap(jigsaw_views((3, 3), 2), in_axes=(0, None))
    tiles = np.asarray(views(keys, image)["tiles"])
    is_gray = np.ptp(tiles, axis=-1).max(axis=(1, 2, 3)) == 0
    assert 0.22 < is_gray.mean() < 0.38  # 0.3
    gray = np.repeat(rng.uniform(size=(12, 12, 1)), 3, axis=-1)
    tiles = np.asarray(views(keys[:50], np.float32(gray))["tiles"])
    assert np.ptp(tiles, axis=-1).max() == 0  # what is gray is not jittered


def test_normalised_tiles_tell_neither_brightness_nor_contrast(rng):
    x = rng.uniform(size=(2, 3, 5, 4, 3))
    expected = (x - x.mean((2, 3), keepdims=True)) / x.std((2, 3), keepdims=True)
    close(normalize_tiles(np.float32(x)), expected, rtol=1e-5, atol=1e-5)
    gain = rng.uniform(0.5, 2, size=(2, 3, 1, 1, 3))
    lit = np.float32(gain * x + rng.normal(size=(2, 3, 1, 1, 3)))
    close(normalize_tiles(lit), expected, rtol=1e-4, atol=1e-4)
    flat = normalize_tiles(np.full((2, 2, 1), 0.7, np.float32))
    chex.assert_trees_all_close(flat, np.zeros((2, 2, 1)), atol=1e-2)
    assert normalize_tiles(jnp.ones((2, 2, 1), jnp.bfloat16)).dtype == jnp.bfloat16


def make_batch(rng, size=8):
    """2 x 2 tiles, each with a bright spot of its own."""
    tiles = 0.2 * rng.uniform(size=(size, 4, 2, 2, 1))
    for k in range(4):
        tiles[:, k, k // 2, k % 2] += 0.8
    image = np.float32(rng.uniform(size=(size, 4, 4, 1)))
    return {"tiles": np.float32(tiles), "image": image[:, :2, :2]}


# None is its own inverse: which way tiles are moved makes a difference.
TABLE = np.array(
    [
        [1, 2, 3, 0],
        [2, 0, 3, 1],
        [3, 1, 0, 2],
        [0, 2, 3, 1],
        [1, 3, 2, 0],
        [2, 3, 1, 0],
    ]
)


def build(axis_name=None, backbone=None, **options):
    options = {"dim": 4, "widths": (8,), **options}
    model = Jigsaw(
        backbone or TinyBackbone(4), num_permutations=6, axis_name=axis_name, **options
    )
    return jigsaw(model, TABLE)


def test_loss_is_that_of_the_shuffled_tiles(rng):
    method, batch = build(widths=()), make_batch(rng, 5)
    params, state = method.init(jax.random.key(0), batch)
    key = jax.random.key(3)
    drawn = [
        int(jax.random.randint(jax.random.fold_in(key, i), (), 0, 6)) for i in range(5)
    ]
    assert len(set(drawn)) > 2

    def loss(w, b, v, c, u, d):
        total = 0.0
        for image, which in zip(np.float64(batch["tiles"]), drawn, strict=True):
            codes = []
            for k in range(4):
                x = image[TABLE[which][k]]
                x = (x - x.mean()) / np.sqrt(x.var() + 1e-8)
                codes.append(np.maximum((x.reshape(-1) @ w + b) @ v + c, 0))
            logits = np.concatenate(codes) @ u + d
            total += np.log(np.exp(logits).sum()) - logits[which]
        return total / 5

    def parts(tree):
        for layer in (
            tree["backbone"]["Dense_0"],
            tree["code"],
            tree["head"]["Dense_0"],
        ):
            yield from (layer["kernel"], layer["bias"])

    (value, (_, metrics)), grads = jax.value_and_grad(method.loss, has_aux=True)(
        params, state, batch, key
    )
    arrays = [np.float64(x) for x in parts(params)]
    close(value, loss(*arrays), scale=3)
    for grad, expected in zip(parts(grads), gradients(loss, *arrays), strict=True):
        close(grad, expected, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_equal(metrics["loss"], value)


def test_shuffled_tiles_go_back(rng):
    tiles = np.float32(rng.normal(size=(3, 4, 1, 1, 2)))
    p = hamming_permutations(3, 4)
    shown = shuffle_tiles(tiles, p)
    for i, k in itertools.product(range(3), range(4)):
        chex.assert_trees_all_equal(shown[i, k], tiles[i, p[i, k]])
    back = shuffle_tiles(shown, np.argsort(p, axis=1).astype(np.int32))
    chex.assert_trees_all_equal(back, tiles)


def test_codes_know_no_other_tile(rng):
    """The network is context-free: all it does before the classifier is of one tile."""
    model = Jigsaw(ConvNet((4,)), 6, 4)
    tiles = make_batch(rng, 2)["tiles"]
    variables = model.init(jax.random.key(0), tiles, train=False)
    changed = tiles.copy()
    changed[:, 2] = rng.uniform(size=changed[:, 2].shape)
    h, _ = model.apply(variables, tiles, train=False)
    other, _ = model.apply(variables, changed, train=False)
    same = np.isclose(h, other, rtol=1e-6, atol=1e-7).all(axis=1).reshape(2, 4)
    assert same.tolist() == [[True, True, False, True]] * 2


def test_the_state_keeps_the_permutations(rng):
    """A checkpoint's own set is used, whatever the method was built with."""
    method, batch = build(), make_batch(rng)
    params, state = method.init(jax.random.key(0), batch)
    chex.assert_trees_all_equal(state["permutations"], TABLE.astype(np.int32))
    other = {**state, "permutations": jnp.flip(state["permutations"], axis=1)}
    losses = [
        method.loss(params, s, batch, jax.random.key(0))[0] for s in (state, other)
    ]
    assert abs(losses[0] - losses[1]) > 1e-3


def test_it_learns_and_touches_every_parameter(rng):
    start, state, history = train(build(), make_batch(rng, 32), 120)
    check_all_moved(start, state)
    assert np.mean([row["accuracy"] for row in history[-20:]]) > 0.8
    chex.assert_trees_all_equal(
        state.model_state["permutations"], start.model_state["permutations"]
    )


def test_a_step_runs_in_bfloat16(rng):
    check_bfloat16(build(backbone=ConvNet((4,))), make_batch(rng))


def test_many_devices_take_the_same_steps_as_one(rng):
    def make(axis_name):
        return build(axis_name, ConvNet((4,), axis_name=axis_name))

    check_devices(make, make_batch(rng, 16), 8)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: hamming_permutations(7, 3), "from 1 to 6"),
        (lambda: hamming_permutations(7, 11), "tiles must be from 2 to 10"),
        (lambda: hamming_permutations(2, 3, rule="best"), "rule"),
        (lambda: hamming_distances(np.array([[0, 1]])), "two permutations"),
        (
            lambda: cut_tiles(jax.random.key(0), jnp.ones((9, 8, 1)), (3, 3), 3),
            "fit into cells of 3 x 2",
        ),
        (
            lambda: cut_tiles(jax.random.key(0), jnp.ones((9, 8, 1)), (0, 3), 3),
            "must be positive",
        ),
        (
            lambda: jigsaw(Jigsaw(TinyBackbone(), 3), np.array([[0, 1], [1, 0]])),
            "tell 2 permutations apart, got 3",
        ),
        (
            lambda: jigsaw(Jigsaw(TinyBackbone(), 2), np.array([[0, 1], [0, 1]])),
            "distinct",
        ),
        (
            lambda: build().init(
                jax.random.key(0), {"tiles": jnp.ones((2, 3, 2, 2, 1))}
            ),
            "must be 4 tiles, got 3",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
