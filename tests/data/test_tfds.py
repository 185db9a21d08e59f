"""TFDS's own sets, read back: every feature, either record format, decoded or not."""

import importlib
import json
import shutil
import struct

import chex
import numpy as np
import pytest

from jaxml.data.tfds import find_prepared, list_prepared, prepared, tfds_folder

MODULE = importlib.import_module("jaxml.data.tfds")
PLAIN = ("image", "label", "vector", "packed", "flag", "number")


@pytest.fixture
def path(tiny_dir, tmp_path):
    """A copy to spoil."""
    copy = tmp_path / "tiny" / "1.2.0"
    shutil.copytree(
        tiny_dir / "tiny" / "1.2.0", copy, ignore=shutil.ignore_patterns("jaxml-*")
    )
    return copy


def as_tfrecord(path):
    """Writes the same records in TensorFlow's format and takes the others away."""
    from array_record.python.array_record_module import ArrayRecordReader

    for old in sorted(path.glob("*.array_record*")):
        new = path / old.name.replace("array_record", "tfrecord")
        records = ArrayRecordReader(str(old)).read_all()
        with open(new, "wb") as file:
            for record in records:
                file.write(struct.pack("<QI", len(record), 0) + record + bytes(4))
        old.unlink()
    info = json.loads((path / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    (path / "dataset_info.json").write_text(json.dumps(info))


def check(source, tiny, features):
    assert dict(source.sizes) == tiny.sizes
    assert tuple(source.classes) == ("ape", "bee", "cat")
    for split, size in tiny.sizes.items():
        batch = source.open(split)(np.arange(size))
        assert set(batch) == set(features)
        for name, values in batch.items():
            expected = [tiny.samples[split][i][name] for i in batch["number"]]
            if name == "text":
                assert values.tolist() == expected
            else:
                chex.assert_trees_all_close(values, np.array(expected), rtol=1e-6)
        assert sorted(batch["number"]) == list(range(size))


@pytest.mark.parametrize("memory", [0, 2 << 30])
@pytest.mark.parametrize("record_format", ["array_record", "tfrecord"])
def test_round_trip(path, tiny, monkeypatch, memory, record_format):
    monkeypatch.setattr(MODULE, "_MEMORY", memory)
    if record_format == "tfrecord":
        as_tfrecord(path)
    check(prepared(path, features=PLAIN), tiny, PLAIN)
    check(prepared(path, features=PLAIN), tiny, PLAIN)  # now from the decoded files
    assert bool(list(path.glob("jaxml-*/train"))) == (memory > 0)
    with_text = (*PLAIN, "text")
    check(prepared(path, features=with_text), tiny, with_text)


def test_types_are_those_of_jax(path):
    batch = prepared(path, features=(*PLAIN, "text")).open("test")(np.arange(7))
    assert {name: values.dtype.name for name, values in batch.items()} == {
        "image": "uint8",
        "label": "int32",
        "vector": "float32",
        "packed": "float32",
        "flag": "bool",
        "number": "int32",
        "text": "object",
    }


def test_order_is_that_of_tfds(path, tiny_dir):
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(tiny_dir / "tiny" / "1.2.0")
    theirs = [int(sample["number"]) for sample in builder.as_data_source("train")]
    mine = prepared(path, features=("number",)).open("train")(np.arange(23))["number"]
    assert mine.tolist() == theirs
    assert theirs != sorted(theirs)


def test_later_loads_do_not_touch_the_records(path, monkeypatch):
    first = prepared(path, features=PLAIN).open("train")(np.arange(23))
    monkeypatch.setattr(MODULE, "_record_reader", None)
    monkeypatch.setattr(MODULE, "_read_contents", None)
    again = prepared(path, features=PLAIN)
    chex.assert_trees_all_equal(again.open("train")(np.arange(23)), first)
    assert tuple(again.classes) == ("ape", "bee", "cat")


def test_a_set_that_is_prepared_again_is_decoded_again(path, tiny):
    """The old files must not answer for new records."""
    prepared(path, features=("number",)).open("train")
    for test in path.glob("*test*record*"):
        train = path / test.name.replace("test", "train")
        train.write_bytes(test.read_bytes())
    info = json.loads((path / "dataset_info.json").read_text())
    for split in info["splits"]:
        split["shardLengths"] = ["7"]
    (path / "dataset_info.json").write_text(json.dumps(info))
    batch = prepared(path, features=("number", "vector")).open("train")(np.arange(7))
    expected = [tiny.samples["test"][i]["vector"] for i in batch["number"]]
    chex.assert_trees_all_close(batch["vector"], np.array(expected), rtol=1e-6)


def test_pictures_of_many_sizes_need_one(path, tiny):
    with pytest.raises(ValueError, match="image_size must be given"):
        prepared(path)
    features = ("photo", "number")
    batch = prepared(path, image_size=(3, 3), features=features).open("train")(
        np.arange(23)
    )
    chex.assert_shape(batch["photo"], (23, 3, 3, 3))
    means = [tiny.samples["train"][i]["photo"].mean() for i in batch["number"]]
    assert np.corrcoef(batch["photo"].mean(axis=(1, 2, 3)), means)[0, 1] > 0.8


def test_another_size_is_another_cache(path):
    small = prepared(path, image_size=2, features=("image",)).open("test")
    large = prepared(path, image_size=4, features=("image",)).open("test")
    whole = prepared(path, features=("image",)).open("test")
    shapes = [read(np.arange(1))["image"].shape for read in (small, large, whole)]
    assert shapes == [(1, 2, 2, 3), (1, 4, 4, 3), (1, 5, 4, 3)]


def test_integers_that_do_not_fit(path):
    read = prepared(path, features=("huge",)).open("test")
    with pytest.raises(ValueError, match=r"fit into 32 bits, got 10995\d+ in huge"):
        read(np.arange(7))


@pytest.mark.parametrize("name", ["nonsense", "boxes"])
def test_features_that_cannot_be_read(path, name):
    with pytest.raises(
        ValueError, match=f"must be among flag, huge, image, .*, got '{name}'"
    ):
        prepared(path, features=("image", name))


def test_other_record_formats(path):
    info = json.loads((path / "dataset_info.json").read_text())
    info["fileFormat"] = "riegeli"
    (path / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(
        ValueError, match="must hold array_record or tfrecord, got rieg"
    ):
        prepared(path, features=("label",)).open("test")


def test_missing_records(path):
    as_tfrecord(path)
    for file in path.glob("*train*"):
        file.write_bytes(b"")
    with pytest.raises(ValueError, match="lacks records of train, got 0"):
        prepared(path, features=("label",)).open("train")


def test_a_broken_image_is_named(path):
    """Bytes of one PNG are changed within its record."""
    as_tfrecord(path)
    (file,) = path.glob("*test*")
    data = bytearray(file.read_bytes())
    at = data.index(b"IDAT") + 6
    data[at] ^= 0xFF
    file.write_bytes(data)
    message = r"cannot decode (image|photo) of record \d in .*tiny/1\.2\.0, test: "
    with pytest.raises(ValueError, match=message):
        prepared(path, features=("image", "photo"), image_size=3).open("test")


def test_a_folder_that_cannot_be_written(path, tiny, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.mkdtemp", lambda **_: 1 / 0)
    monkeypatch.setattr("pathlib.Path.mkdir", raise_permission_error)
    check(prepared(path, features=PLAIN), tiny, PLAIN)
    assert not list(path.glob("jaxml-*"))
    assert "into memory" in capsys.readouterr().err


def raise_permission_error(*args, **kwargs):
    raise PermissionError


def test_find_and_list(tmp_path):
    for name in ("a/1.0.0", "a/1.10.0", "a/1.9.0", "b/small/2.0.0", "a/1.11.0-tmp"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "dataset_info.json").touch()
    (tmp_path / "a/9.9.9").mkdir()  # not finished
    assert find_prepared("a", tmp_path) == tmp_path / "a/1.10.0"
    assert find_prepared("a:1.9.0", tmp_path) == tmp_path / "a/1.9.0"
    assert find_prepared("b/small", tmp_path) == tmp_path / "b/small/2.0.0"
    for absent in ("a:1", "a:3.0.0", "b", "c"):
        assert find_prepared(absent, tmp_path) is None
    assert list_prepared(tmp_path) == ["a", "b/small"]
    assert list_prepared(tmp_path / "nowhere") == []


def test_tfds_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tfds_folder() == tmp_path / "tensorflow_datasets"
    monkeypatch.setenv("TFDS_DATA_DIR", "/env")
    assert str(tfds_folder()) == "/env"
    assert tfds_folder("~/x") == tmp_path / "x"
