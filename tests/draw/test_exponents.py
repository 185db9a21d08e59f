"""The histogram of magnitudes: bars in their places, coloured by their fate."""

import numpy as np
import pytest

from jaxml.draw import COLOURS, save_exponents
from jaxml.draw.exponents import _fates, _shares
from jaxml.precision import float_report


def texts(path):
    """What stands in an SVG: matplotlib notes each text beside its outline."""
    lines = path.read_text("utf-8").splitlines()
    return [line.strip()[5:-4] for line in lines if line.strip().startswith("<!-- ")]


def test_bars_stand_after_the_scale_and_sum_to_one(rng):
    x = rng.normal(size=1000) * np.exp2(rng.uniform(-30, 0, size=1000))
    places, shares = _shares(float_report([x.astype(np.float32)], scale=1024.0))
    magnitudes = np.floor(np.log2(np.abs(x.astype(np.float32)))) + 10
    expected, counts = np.unique(magnitudes, return_counts=True)
    np.testing.assert_array_equal(places, expected)
    np.testing.assert_allclose(shares, counts / 1000)


def test_colours_are_fates():
    blue, amber, red = COLOURS[:3]
    edges = [-25, -14, 16]
    places = np.array([-26, -25, -15, -14, 15, 16])
    assert _fates(places, edges) == [red, amber, amber, blue, blue, red]


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_picture_tells_the_shares(tmp_path, suffix):
    grads = [np.float32([1e-9, 1e-9, 1e-9, 1.0])]
    reports = {
        "plain": float_report(grads),
        "times 65536": float_report(grads, scale=2.0**16),
    }
    path = tmp_path / f"exponents.{suffix}"
    picture = save_exponents(path, reports, title="Gradients")
    assert path.stat().st_size > 0
    assert picture.width > picture.height > 300
    if suffix == "svg":
        shown = set(texts(path))
        assert "Gradients" in shown
        assert "plain: 75.0% become zero, 0.0% subnormal" in shown
        fate = "times 65536: 0.0% become zero, 0.0% subnormal, 25.0% infinite"
        assert fate in shown
        assert {"zero", "subnormal", "float16", "infinite"} <= shown


def test_all_zero_gradients_leave_an_empty_panel():
    assert save_exponents(None, {"dead": float_report([np.zeros(3, np.float32)])})


def test_bad_arguments():
    with pytest.raises(ValueError, match="reports must be of one dtype, got none"):
        save_exponents(None, {})
    x = [np.ones(2, np.float32)]
    mixed = {"a": float_report(x), "b": float_report(x, "bfloat16")}
    with pytest.raises(ValueError, match="of one dtype, got bfloat16, float16"):
        save_exponents(None, mixed)
