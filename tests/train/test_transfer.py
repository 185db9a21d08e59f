"""Parameters into another model: what fits is taken, all else is told."""

import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxml.parallel import data_mesh
from jaxml.train import CheckpointError, TrainState, restore_params, save


@pytest.fixture
def pretrained(rng):
    """A training state with an encoder of two layers and a head."""

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    params = {
        "encoder": [{"w": normal(3, 4), "b": normal(4)}, {"w": normal(4, 5)}],
        "head": {"w": normal(5, 10)},
    }
    statistics = {"encoder": {"mean": normal(4)}}
    state = optax.adam(0.1).init(params)
    return TrainState(jnp.int32(7), params, statistics, state)


@pytest.fixture(params=["disk", "memory"])
def source(request, pretrained, tmp_path):
    if request.param == "memory":
        return pretrained
    save(tmp_path / "checkpoints", pretrained)
    return tmp_path


def zeros(tree):
    return jax.tree.map(jnp.zeros_like, tree)


def test_the_same_model_comes_back_whole(source, pretrained):
    params, report = restore_params(source, zeros(pretrained.params), strict=True)
    chex.assert_trees_all_equal(params, pretrained.params)
    assert report.exact
    assert len(report.matched) == 4
    assert "4 of 4 arrays restored" in str(report)


def test_what_does_not_fit_keeps_its_value_and_is_told(source, pretrained):
    like = {
        "encoder": [
            {"w": jnp.zeros((3, 4), jnp.bfloat16), "b": jnp.full(5, 9.0)},
            {"w": jnp.zeros((4, 5), jnp.int32), "new": jnp.full(2, 8.0)},
        ],
    }
    params, report = restore_params(source, like)
    old = pretrained.params["encoder"]
    expected = {
        "encoder": [
            {"w": old[0]["w"].astype(jnp.bfloat16), "b": jnp.full(5, 9.0)},
            {"w": jnp.zeros((4, 5), jnp.int32), "new": jnp.full(2, 8.0)},
        ],
    }
    chex.assert_trees_all_equal(params, expected)
    chex.assert_trees_all_equal_dtypes(params, expected)
    assert not report.exact
    assert report.matched == ("encoder/0/w",)
    assert report.missing == ("encoder/1/new",)
    assert report.left_over == ("params/head/w",)
    assert report.mismatched == {
        "encoder/0/b": "float32[4] in the source, float32[5] here",
        "encoder/1/w": "float32[4,5] in the source, int32[4,5] here",
    }
    assert report.converted == {"encoder/0/w": "float32 to bfloat16"}
    lines = str(report).splitlines()
    assert lines[0].endswith(": 1 of 4 arrays restored")
    assert lines[1:] == [
        "  kept, the source has none (1):",
        "    encoder/1/new",
        "  kept, does not fit (2):",
        "    encoder/0/b: float32[4] in the source, float32[5] here",
        "    encoder/1/w: float32[4,5] in the source, int32[4,5] here",
        "  left over in the source (1):",
        "    params/head/w",
        "  converted (1):",
        "    encoder/0/w: float32 to bfloat16",
    ]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda p: {**p, "extra": jnp.zeros(1)}, "has none .1.:\n *extra"),
        (lambda p: {"encoder": p["encoder"]}, "left over .*:\n *params/head/w"),
        (lambda p: {**p, "head": {"w": jnp.zeros((5, 3))}}, r"head/w: float32\[5,10\]"),
    ],
)
def test_strict_refuses_any_difference(source, pretrained, change, told):
    with pytest.raises(CheckpointError, match=f"(?s)not everything fits: .*{told}"):
        restore_params(source, change(zeros(pretrained.params)), strict=True)


def test_nothing_in_common_is_always_an_error(source):
    with pytest.raises(CheckpointError, match="0 of 1 arrays restored"):
        restore_params(source, {"weights": jnp.zeros((3, 4))})


def test_model_state_is_a_part_as_well(source, pretrained):
    like = {"encoder": {"mean": jnp.zeros(4)}}
    state, report = restore_params(source, like, part="model_state", strict=True)
    chex.assert_trees_all_equal(state, pretrained.model_state)
    assert report.matched == ("encoder/mean",)


@pytest.mark.parametrize(
    ("rename", "build"),
    [
        ({"encoder": "backbone"}, lambda e: {"backbone": e}),
        ({"encoder": ""}, lambda e: e),
        ({"encoder": "a/b/c"}, lambda e: {"a": {"b": {"c": e}}}),
        ({"": "teacher"}, lambda e: {"teacher": {"encoder": e}}),
        ({"": "x", "encoder": "y"}, lambda e: {"y": e}),  # the longest counts
        (
            {"encoder/0": "stem", "encoder/1/w": "last"},
            lambda e: {"stem": e[0], "last": e[1]["w"]},
        ),
    ],
)
def test_branches_and_arrays_may_be_renamed(source, pretrained, rename, build):
    expected = build(pretrained.params["encoder"])
    params, report = restore_params(source, zeros(expected), rename=rename)
    chex.assert_trees_all_equal(params, expected)
    assert not report.missing
    assert report.left_over == ("params/head/w",)


def test_renaming_follows_whole_names_and_keeps_paths_apart(source, pretrained):
    like = zeros({"enc": pretrained.params["encoder"]})
    with pytest.raises(CheckpointError, match="0 of 3"):
        restore_params(source, like, rename={"enc": "x", "encode": "enc"})
    with pytest.raises(
        ValueError, match="got w for params/encoder/1/w and params/head/w"
    ):
        restore_params(source, like, rename={"encoder/1": "", "head": ""})


def test_values_come_to_the_devices_of_the_new_model(source, pretrained):
    sharding = NamedSharding(data_mesh(jax.devices()[:5]), PartitionSpec(None, "data"))
    like = {"head": {"w": jax.device_put(jnp.zeros((5, 10)), sharding)}}
    params, _ = restore_params(source, like)
    assert params["head"]["w"].sharding == sharding
    np.testing.assert_array_equal(params["head"]["w"], pretrained.params["head"]["w"])


def test_shapes_will_do_where_everything_is_found(source, pretrained):
    like = jax.eval_shape(lambda: pretrained.params)
    params, _ = restore_params(source, like)
    chex.assert_trees_all_equal(params, pretrained.params)
    like["head"]["new"] = jax.ShapeDtypeStruct((3,), jnp.float32)
    with pytest.raises(CheckpointError, match=r"4 of 5 arrays(?s:.*)head/new"):
        restore_params(source, like)


def test_a_bare_tree_of_parameters_is_a_source(pretrained):
    params, _ = restore_params(pretrained.params, zeros(pretrained.params), strict=True)
    chex.assert_trees_all_equal(params, pretrained.params)


def test_only_the_part_that_is_asked_for_is_read(pretrained, tmp_path):
    """The rest may be damaged, or gone; the part itself may not."""
    save(tmp_path, pretrained)
    shutil.rmtree(tmp_path / "7" / "opt_state")
    shutil.rmtree(tmp_path / "7" / "state")
    params, _ = restore_params(tmp_path, zeros(pretrained.params), strict=True)
    chex.assert_trees_all_equal(params, pretrained.params)
    (tmp_path / "7" / "params" / "manifest.ocdbt").write_bytes(b"damaged")
    with pytest.raises(
        CheckpointError, match=r"is damaged: params/manifest\.ocdbt has 7"
    ):
        restore_params(tmp_path, zeros(pretrained.params))


def test_the_step_can_be_chosen(pretrained, tmp_path):
    for step in (1, 2):
        save(tmp_path, jax.tree.map(lambda x, s=step: jnp.full_like(x, s), pretrained))
    for source, step, expected in [
        (tmp_path, None, 2),
        (tmp_path, 1, 1),
        (tmp_path / "1", None, 1),
    ]:
        params, report = restore_params(source, zeros(pretrained.params), step=step)
        assert float(params["head"]["w"][0, 0]) == expected
        assert str(report).startswith(f"{tmp_path}/{expected}, params: 4 of 4")
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 3 .*\[1, 2\]"):
        restore_params(tmp_path, zeros(pretrained.params), step=3)
