"""From names to sources, and the errors of names that lead nowhere."""

import numpy as np
import pytest
from PIL import Image

from jaxml.data import catalog
from jaxml.data.catalog import data_folder, open_source


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch, tmp_path):
    """No variable of the caller's, and TFDS's default in an empty home."""
    for name in ("JAXML_DATA_DIR", "JAXML_DOWNLOAD", "TFDS_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def data(tmp_path):
    """A data folder with pictures in it."""
    for split in ("train", "test"):
        folder = tmp_path / "data" / "mine" / split / "a"
        folder.mkdir(parents=True)
        Image.fromarray(np.full((4, 4, 3), 9, np.uint8)).save(folder / "0.png")
    return tmp_path / "data"


@pytest.mark.parametrize(
    "name, size",
    [("digits", 1797), ("iris", 150), ("shapes", 60_000), ("gaussian_blobs", 60_000)],
)
def test_names_that_need_no_file(name, size):
    assert sum(open_source(name).sizes.values()) == size


def test_prepared_sets_by_either_folder(tiny_dir, monkeypatch):
    sizes = {"train": 23, "test": 7}
    options = {"features": ("label",)}
    assert open_source("tiny", tfds_dir=tiny_dir, **options).sizes == sizes
    assert open_source("tiny:1.2.0", data_dir=tiny_dir, **options).sizes == sizes
    monkeypatch.setenv("TFDS_DATA_DIR", str(tiny_dir))
    assert open_source("tiny", **options).sizes == sizes


def test_pictures(data, monkeypatch):
    assert open_source(f"images:{data / 'mine'}").sizes == {"train": 1, "test": 1}
    assert open_source("mine", data_dir=data, channels=1).classes == ("a",)
    monkeypatch.setenv("JAXML_DATA_DIR", str(data))
    assert open_source("mine").classes == ("a",)


def test_the_argument_wins_over_the_variable(data, monkeypatch):
    monkeypatch.setenv("JAXML_DATA_DIR", "/nowhere")
    assert data_folder(data) == data
    assert str(data_folder()) == "/nowhere"


def test_the_only_archive_of_a_folder(data_dir):
    source = open_source("cifar10_jpg", data_dir=data_dir)
    assert source.sizes == {"test": 2000, "train": 10_000}


def test_binarized_mnist(data_dir):
    assert open_source("binarized_mnist", data_dir=data_dir).sizes["valid"] == 10_000


def test_unknown_names_are_told_what_there_is(data, tiny_dir):
    with pytest.raises(ValueError, match="got 'minst'") as error:
        open_source("minst", data_dir=data, tfds_dir=tiny_dir)
    for known in ("digits", "shapes", "cifar10", "tiny", "mine", "images:<folder"):
        assert known in str(error.value)
    assert "tfds build minst" in str(error.value)
    with pytest.raises(ValueError, match="JAXML_DATA_DIR, which is not set"):
        open_source("minst")


def test_files_are_asked_for_where_they_belong(data, tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"{data}/mnist lacks train-images"):
        open_source("mnist", data_dir=data)
    assert not (tmp_path / "tensorflow_datasets").exists()


@pytest.mark.parametrize(
    "argument, variable, expected",
    [(None, None, False), (None, "1", True), (False, "1", False), (True, "0", True)],
)
def test_downloads_must_be_allowed(monkeypatch, tmp_path, argument, variable, expected):
    asked = []

    def prepare(name, folders, directory, *, download):
        asked.append((name, folders, directory, download))
        raise FileNotFoundError

    monkeypatch.setattr(catalog, "prepare", prepare)
    if variable is not None:
        monkeypatch.setenv("JAXML_DOWNLOAD", variable)
    with pytest.raises(FileNotFoundError):
        open_source("mnist", data_dir="/files", tfds_dir=tmp_path, download=argument)
    ((name, folders, directory, download),) = asked
    assert (name, directory, download) == ("mnist", tmp_path, expected)
    assert [str(f) for f in folders] == [
        "/files/mnist",
        str(tmp_path / "downloads/manual/mnist"),
    ]


@pytest.mark.parametrize(
    "name, option, message",
    [
        ("digits", "size", r"options of bundled must be among \(none\), got 'size'"),
        ("shapes", "sise", "must be among size, num_classes, got 'sise'"),
        ("images:/nowhere", "size", "must be among image_size, channels, got 'size'"),
    ],
)
def test_unknown_options(name, option, message):
    with pytest.raises(TypeError, match=message):
        open_source(name, **{option: 3})
