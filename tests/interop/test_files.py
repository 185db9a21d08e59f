"""safetensors files: what is written is read, and what is damaged is said."""

import json
import pickle

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

from jaxml.interop.files import WeightsError, read_safetensors, write_safetensors

DTYPES = [np.float32, np.float64, np.float16, jnp.bfloat16, np.int64]


@pytest.fixture
def state(rng):
    return {
        f"layer.{np.dtype(dtype)}": (8 * rng.normal(size=(3, i + 1))).astype(dtype)
        for i, dtype in enumerate(DTYPES)
    } | {"scalar": np.array(3, np.float32)}


def same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, x in expected.items():
        assert actual[name].dtype == x.dtype
        np.testing.assert_array_equal(actual[name], x)


def test_there_and_back(state, tmp_path):
    path = tmp_path / "new/model.safetensors"
    write_safetensors(path, state)
    same(read_safetensors(path), state)
    same(read_safetensors(path.parent), state)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    header = path.read_bytes()[8:]
    length = int.from_bytes(path.read_bytes()[:8], "little")
    # transformers and timm refuse a file that does not say this
    assert json.loads(header[:length])["__metadata__"] == {"format": "pt"}


@pytest.mark.parametrize("size", [1, 40, 100])
def test_shards(state, size, tmp_path):
    path = tmp_path / "model.safetensors"
    write_safetensors(path, state)  # an old file must not hide the shards
    write_safetensors(path, state, shard_bytes=size)
    index = tmp_path / "model.safetensors.index.json"
    files = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(files) > 1
    assert not path.exists()
    for file in files:
        shard = read_safetensors(file)
        assert len(shard) == 1 or sum(x.nbytes for x in shard.values()) <= size
    same(read_safetensors(index), state)
    same(read_safetensors(tmp_path), state)
    write_safetensors(path, state, shard_bytes=10**6)
    assert path.exists()
    assert not index.exists()


def test_a_shard_is_missing_or_lacks_tensors(state, tmp_path):
    write_safetensors(tmp_path / "model.safetensors", state, shard_bytes=40)
    first, second, *_ = sorted(tmp_path.glob("model-*"))
    first.write_bytes(second.read_bytes())
    with pytest.raises(WeightsError, match=r"lacks layer\.\w+ of the index"):
        read_safetensors(tmp_path)
    first.unlink()
    with pytest.raises(FileNotFoundError, match="00001-of"):
        read_safetensors(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"weight_map": {"a": "../x.safetensors"}}',
        '{"weight_map": {"a": "x.bin"}}',
        '{"weight_map": {"a": 3}}',
    ],
)
def test_a_bad_index(text, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(WeightsError, match=r"is not JSON|must hold a weight_map"):
        read_safetensors(tmp_path)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was opened",))


@pytest.mark.parametrize("suffix", [".bin", ".pth", ".pt", ".ckpt"])
def test_pickles_are_refused_unopened(suffix, tmp_path):
    path = tmp_path / f"pytorch_model{suffix}"
    path.write_bytes(pickle.dumps(Bomb()))
    for source in (path, tmp_path):
        with pytest.raises(WeightsError, match=r"any code.*weights_only=True"):
            read_safetensors(source)
    write_safetensors(tmp_path / "model.safetensors", {})
    assert read_safetensors(tmp_path) == {}


def test_a_pickle_under_another_name_is_not_opened(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(WeightsError, match="damaged or no safetensors file"):
        read_safetensors(path)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_truncated_files(data, state, tmp_path):
    path = tmp_path / "model.safetensors"
    write_safetensors(path, state)
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(WeightsError, match=r"damaged or no safetensors file \(\d+ b"):
        read_safetensors(path)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.binary(max_size=200))
def test_any_bytes(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="damaged"):
        read_safetensors(path)


def test_a_folder_must_have_one_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="got none"):
        read_safetensors(tmp_path)
    write_safetensors(tmp_path / "a.safetensors", {})
    assert read_safetensors(tmp_path) == {}
    write_safetensors(tmp_path / "b.safetensors", {})
    with pytest.raises(FileNotFoundError, match=r"got a\.safetensors, b\.safetensors"):
        read_safetensors(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_safetensors(tmp_path / "c.safetensors")


def test_writing_wants_a_name_and_a_size(tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        write_safetensors(tmp_path / "x.bin", {})
    with pytest.raises(ValueError, match="shard_bytes must be positive, got 0"):
        write_safetensors(tmp_path / "x.safetensors", {}, shard_bytes=0)


def test_a_failed_write_leaves_the_old_file(state, tmp_path):
    path = tmp_path / "model.safetensors"
    write_safetensors(path, state)
    with pytest.raises((KeyError, TypeError, ValueError, SafetensorError)):
        write_safetensors(path, {"x": np.array(["text"])})
    same(read_safetensors(path), state)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
