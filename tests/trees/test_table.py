"""Data sets at the door: what is padded, what is counted, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.trees.cart_config import Config
from jaxml.trees.table import (
    LEAST_ROWS,
    PADDED_ROWS,
    check_rows,
    check_width,
    pad_rows,
    table,
)

X, Y = np.ones((70, 3), np.float32), np.arange(70) % 3


def test_small_tables_share_programs():
    data = table(X, Y, Config(), None)
    assert data.x.shape == (128, 8)
    assert (data.rows, data.columns, data.outputs, data.num_classes) == (70, 3, 1, 3)
    assert data.weights.tolist() == [1] * 70 + [0] * 58
    assert not data.has_missing
    assert data.squeeze
    few = table(X[:5], np.stack([Y[:5]] * 2, axis=1), Config(), 2 * np.ones(5))
    assert few.x.shape[0] == LEAST_ROWS
    assert (few.outputs, few.squeeze, few.weights.sum()) == (2, False, 10)


def test_large_tables_stay_as_they_are():
    rows = PADDED_ROWS
    full = table(np.zeros((rows, 3)), np.zeros(rows), Config(), None)
    assert full.x.shape == (rows, 8)
    rows += 1
    data = table(np.full((rows, 3), np.nan), np.zeros(rows), Config(), None)
    assert data.x.shape == (rows, 3)
    assert data.has_missing


def test_what_cannot_be_looked_at_is_taken_as_it_is():
    config = Config(num_classes=3)
    shapes = jax.eval_shape(lambda x, y: table(x, y, config, None).x, X, Y)
    assert shapes.shape == X.shape
    with pytest.raises(ValueError, match="num_classes must be given"):
        jax.eval_shape(lambda x, y: table(x, y, Config(), None).x, X, Y)


@pytest.mark.parametrize(
    ("x", "y", "weights", "message"),
    [
        (X[0], Y, None, "x must be \\[rows, columns\\]"),
        (X[:0], Y[:0], None, "both positive"),
        (X, Y[:-1], None, "y must be \\[70\\]"),
        (X, Y[:, None, None], None, "y must be \\[70\\]"),
        (X, np.zeros((70, 0)), None, "y must be \\[70\\]"),
        (X, Y, np.ones(3), "weights must be \\[70\\]"),
        (np.full_like(X, np.inf), Y, None, "x must be finite"),
        (X, Y - 1, None, "class indices"),
        (X, Y + 0.5, None, "class indices"),
        (X, np.where(Y, 1.0, np.nan), None, "y must be finite"),
        (X, Y.astype(str), None, "y must be numbers"),
        (X, Y, -np.ones(70), "not negative"),
        (X, Y, np.full(70, np.inf), "finite and not negative"),
        (X, Y, np.zeros(70), "not all be zero"),
    ],
)
def test_bad_tables_are_refused(x, y, weights, message):
    with pytest.raises(ValueError, match=message):
        table(x, y, Config(), weights)


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        (X, Y, {"num_classes": 2}, "below num_classes, 2, got 2"),
        (X, Y - 0.5, {"criterion": "poisson"}, "not be negative"),
        (X, 0 * Y, {"criterion": "poisson"}, "nor all zero"),
        (X * np.nan, Y, {"criterion": "absolute_error"}, "no missing values"),
    ],
)
def test_tables_that_a_configuration_cannot_take_are_refused(x, y, options, message):
    with pytest.raises(ValueError, match=message):
        table(x, y, Config(**options), None)


def test_classes_are_counted_or_given():
    assert table(X, Y, Config(num_classes=5), None).num_classes == 5
    assert table(X, Y, Config("squared_error", num_classes=5), None).num_classes == 0
    seen = []
    numbers = Config("squared_error", num_classes=5)
    jax.eval_shape(
        lambda y: seen.append(table(X, y, numbers, None).num_classes), 1.0 * Y
    )
    assert seen == [0]


@pytest.mark.parametrize("shape", [(3,), (4, 2), (4, 4), (4, 3, 1)])
def test_other_widths_are_refused(shape):
    check_width(np.zeros((4, 3)), 3)
    with pytest.raises(ValueError, match=r"x must be \[rows, 3\]"):
        check_width(np.zeros(shape), 3)


def test_rows_are_padded_for_the_program_and_cut_from_its_answer():
    seen = []

    def double(x):
        seen.append(x.shape)
        return 2 * x

    told = pad_rows(double, X[:5].astype(np.float64))
    assert seen == [(LEAST_ROWS, 3)]
    assert told.shape == (5, 3)
    assert (told == 2).all()
    many = np.zeros((PADDED_ROWS + 3, 1))
    assert pad_rows(double, many).shape == seen[-1] == (PADDED_ROWS + 3, 1)


def test_rows_of_other_learners_are_checked_alike():
    x, y, weights = check_rows(X, Y, None, 3)
    assert (x.dtype, y.dtype, weights.tolist()) == (jnp.float32, jnp.int32, [1.0] * 70)
    for bad, mass, classes, message in [
        (Y, None, 2, "below 2"),
        (Y - 1, None, 3, "class indices"),
        (Y / 2, None, 3, "class indices"),
        (Y[:3], None, 3, "one per row"),
        (np.full(70, np.inf), None, 0, "finite"),
        (Y, -np.ones(70), 3, "not negative"),
        (Y, np.full(70, np.nan), 3, "finite"),
        (Y, np.zeros(70), 3, "not all zero"),
        (Y, np.ones(3), 3, "weights must be"),
    ]:
        with pytest.raises(ValueError, match=message):
            check_rows(X, bad, mass, classes)
    for x in (X[:, 0], X[:, :0]):
        with pytest.raises(ValueError, match="both positive"):
            check_rows(x, Y, None, 3)
