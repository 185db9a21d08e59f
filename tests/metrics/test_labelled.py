"""What probes refuse, in and out of jit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.metrics.labelled import check_labelled, count_classes, is_known

X, Y = np.ones((3, 2), np.float32), np.array([0, 2, 1])


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_good_data_passes(kind):
    check_labelled("train", kind(X), kind(Y))
    assert count_classes(None, kind(Y)) == 3
    assert count_classes(None, kind(Y), kind(Y + 4)) == 7
    assert count_classes(5, kind(Y)) == 5


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray, jnp.bfloat16])
def test_rows_that_are_not_finite_are_counted(bad, kind):
    x = X.copy()
    x[1] = bad
    with pytest.raises(
        ValueError, match=r"test_features must be finite, .* 1 of 3 row"
    ):
        check_labelled("test", kind(x))


@pytest.mark.parametrize("labels", [Y - 1, Y + 1, Y.astype(np.int32) - 1])
def test_labels_out_of_range_are_errors(labels):
    with pytest.raises(ValueError, match=r"labels must be in \[0, 3\), got"):
        count_classes(3, Y, labels)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"\[samples, dim\], got \(3, 0\)"):
        check_labelled("train", X[:, :0])
    with pytest.raises(ValueError, match=r"\[samples, dim\], got \(3,\)"):
        check_labelled("train", X[:, 0])
    with pytest.raises(ValueError, match=r"labels must have shape \(3,\), got \(2,\)"):
        check_labelled("train", X, Y[:2])


def test_under_jit_constants_are_still_known():
    @jax.jit
    def check(x, labels):
        assert not is_known(x)
        check_labelled("train", x, labels)  # nothing to see, nothing said
        check_labelled("train", X, Y)
        with pytest.raises(ValueError, match="must be finite"):
            check_labelled("train", X * np.nan, Y)
        assert count_classes(None, Y) == 3
        with pytest.raises(ValueError, match="num_classes must be given under jit"):
            count_classes(None, Y, labels)
        return x

    check(X, Y)
