"""How many columns a node draws, and what a tree refuses."""

import pytest

from jaxml.trees.cart_config import Config, check_config, num_features


@pytest.mark.parametrize(
    ("asked", "columns", "expected"),
    [
        (None, 7, 7),
        ("sqrt", 28, 5),
        ("log2", 8, 3),
        ("log2", 1, 1),
        (1, 9, 1),
        (1.0, 9, 9),
        (0.5, 9, 4),
        (0.01, 9, 1),
    ],
)
def test_columns_of_a_node(asked, columns, expected):
    assert num_features(asked, columns) == expected


@pytest.mark.parametrize("asked", ["half", 0, 0.0, 1.5, 10])
def test_other_numbers_of_columns_are_refused(asked):
    with pytest.raises(ValueError, match="max_features must be"):
        num_features(asked, 9)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Config(max_depth=-1), "max_depth"),
        (Config(min_samples_leaf=0), "min_samples_leaf"),
        (Config(min_samples_leaf=1.5), "min_samples_leaf"),
        (Config(min_weight_fraction_leaf=0.6), "min_weight_fraction_leaf"),
        (Config(min_impurity_decrease=-1.0), "min_impurity_decrease"),
        (Config(max_bins=1), "max_bins"),
        (Config("absolute_error", "random"), "splitter"),
    ],
)
def test_numbers_out_of_range_are_refused(config, message):
    with pytest.raises(ValueError, match=f"{message} must be"):
        check_config(config)
