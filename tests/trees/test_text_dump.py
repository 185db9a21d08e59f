"""Trees as text; that it is XGBoost's stands in tests/oracle."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.trees.text_dump import text_dump
from jaxml.trees.xgboost import Config, fit


def model():
    x = np.array([[0.0], [0.0], [1.0], [1.0]], np.float32)
    config = Config(max_depth=1, num_boost_round=1, max_bin=4, eta=1.0, reg_lambda=0.0)
    return fit(x, np.array([0.0, 0.0, 2.0, 2.0]), config, jax.random.key(0))


def test_questions_leaves_and_statistics():
    (text,) = text_dump(model(), feature_names=["size"])
    assert text == "0:[size<1] yes=1,no=2,missing=2\n\t1:leaf=-1\n\t2:leaf=1\n"
    (text,) = text_dump(model(), with_stats=True)
    assert "0:[f0<1] yes=1,no=2,missing=2,gain=4,cover=4" in text
    assert "\t1:leaf=-1,cover=2\n" in text


def test_sets_are_written_with_the_second_child_first():
    found = model()
    trees = found.trees._replace(categories=jnp.full((1, 3, 1), 5, jnp.uint32))
    (text,) = text_dump(replace(found, trees=trees))
    assert text.startswith("0:[f0:{0,2}] yes=2,no=1,missing=2\n")


def test_missing_rows_columns_and_digits():
    x = np.array([[5.0, 0], [5, np.nan], [5, 1 / 3], [5, 1 / 3]], np.float32)
    config = Config(max_depth=1, num_boost_round=1, eta=1.0, reg_lambda=0.0)
    found = fit(x, np.array([0.0, 0.0, 2.0, 2.0]), config, jax.random.key(0))
    (text,) = text_dump(found, feature_names=["size", "share"])
    assert text.startswith("0:[share<0.333333343] yes=1,no=2,missing=1\n")


def test_nodes_are_numbered_without_gaps():
    x = np.array([[0.0], [1], [2]], np.float32)
    config = Config(max_depth=2, num_boost_round=1, eta=1.0, reg_lambda=0.0)
    found = fit(x, np.array([0.0, 8.0, 9.0]), config, jax.random.key(0))
    (text,) = text_dump(found)
    lines = [line.split("leaf")[0] for line in text.splitlines()]
    assert lines[1:] == ["\t1:", "\t2:[f0<2] yes=3,no=4,missing=4", "\t\t3:", "\t\t4:"]


def test_vectors_are_written_in_brackets():
    found = model()
    value = jnp.concatenate((found.trees.value, 2 * found.trees.value), axis=-1)
    (text,) = text_dump(replace(found, trees=found.trees._replace(value=value)))
    assert text.endswith("\t1:leaf=[-1,-2]\n\t2:leaf=[1,2]\n")


def test_bad_names_are_told():
    with pytest.raises(ValueError, match="feature_names must be 1, got 2"):
        text_dump(model(), feature_names=["a", "b"])
