"""FPN: levels, odd sizes, extra maps; its outputs are torchvision's in tests/oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.nn import FPN, BatchNorm
from jaxml.nn.fpn import resize_nearest


def draw(rng, sizes=((13, 18), (7, 9), (4, 5))):
    return {
        f"c{level}": np.float32(rng.normal(size=(2, *size, 2**level)))
        for level, size in enumerate(sizes, 2)
    }


def nearest_numpy(x, size):
    out = np.empty((len(x), *size, x.shape[-1]))
    for i in range(size[0]):
        for j in range(size[1]):
            out[:, i, j] = x[:, i * x.shape[1] // size[0], j * x.shape[2] // size[1]]
    return out


@pytest.mark.parametrize("size", [(13, 18), (8, 10), (4, 5), (3, 2)])
def test_nearest_matches_loops(rng, size):
    x = np.float32(rng.normal(size=(2, 4, 5, 3)))
    np.testing.assert_array_equal(
        resize_nearest(x, size), np.float32(nearest_numpy(x, size))
    )


def test_it_is_the_paper_s_sum(rng):
    """1 x 1 products, the sum from above, and 3 x 3 windows, in float64."""
    maps = draw(rng)
    model = FPN(3, extra="none")
    params = model.init(jax.random.key(0), maps, train=False)["params"]
    params = jax.tree.map(lambda p: np.float32(rng.normal(size=p.shape)), params)
    actual = model.apply({"params": params}, maps, train=False)
    above = None
    for level in (4, 3, 2):
        kernel = np.float64(params[f"lateral{level}"]["kernel"][0, 0])
        middle = (
            np.float64(maps[f"c{level}"]) @ kernel + params[f"lateral{level}"]["bias"]
        )
        if above is not None:
            middle = middle + nearest_numpy(above, middle.shape[1:3])
        above = middle
        padded = np.pad(middle, ((0, 0), (1, 1), (1, 1), (0, 0)))
        expected = np.zeros(middle.shape) + params[f"output{level}"]["bias"]
        for i in range(3):
            for j in range(3):
                window = padded[:, i : i + middle.shape[1], j : j + middle.shape[2]]
                expected += window @ np.float64(
                    params[f"output{level}"]["kernel"][i, j]
                )
        np.testing.assert_allclose(actual[f"p{level}"], expected, rtol=1e-4, atol=1e-3)


def test_extra_maps(rng):
    maps = draw(rng)
    for extra, names in (
        ("none", "p2 p3 p4"),
        ("pool", "p2 p3 p4 p5"),
        ("c5", "p2 p3 p4 p5 p6"),
        ("p5", "p2 p3 p4 p5 p6"),
    ):
        model = FPN(3, extra=extra)
        variables = model.init(jax.random.key(0), maps, train=False)
        outputs = model.apply(variables, maps, train=False)
        assert list(outputs) == names.split()
        assert {x.shape[-1] for x in outputs.values()} == {3}
        if extra == "pool":
            np.testing.assert_array_equal(outputs["p5"], outputs["p4"][:, ::2, ::2])
        if extra in ("c5", "p5"):
            assert outputs["p5"].shape == (2, 2, 3, 3)
            assert outputs["p6"].shape == (2, 1, 2, 3)
            channels = variables["params"]["extra5"]["kernel"].shape[2]
            assert channels == (16 if extra == "c5" else 3)


def test_norms_take_the_biases_place(rng):
    maps = draw(rng)
    model = FPN(3, norm=BatchNorm)
    variables = model.init(jax.random.key(0), maps, train=True)
    assert "bias" not in variables["params"]["lateral2"]
    _, changed = model.apply(variables, maps, train=True, mutable=["batch_stats"])
    assert not np.allclose(changed["batch_stats"]["output2_norm"]["mean"], 0)


@pytest.mark.parametrize(
    "names, extra, message",
    [
        (["c2", "c4"], "pool", "without gaps"),
        (["c2", "x"], "pool", "must be named c2"),
        ([], "pool", "must be named"),
        (["c2"], "p6", "extra must be one of"),
    ],
)
def test_bad_input_is_refused(names, extra, message):
    maps = {name: jnp.ones((1, 4, 4, 2)) for name in names}
    with pytest.raises(ValueError, match=message):
        FPN(3, extra=extra).init(jax.random.key(0), maps, train=False)
