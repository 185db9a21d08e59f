"""Folders and archives of pictures: layouts, order, sizes, and broken files."""

import importlib
import io
import shutil
import tarfile

import chex
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from jaxml.data.images import decode_image, images

MODULE = importlib.import_module("jaxml.data.images")  # the function has its name too
CLASSES = ("ant", "bee", "cow")
COUNTS = {"train": (4, 2, 3), "test": (1, 0, 2)}


def picture(rng, height=6, width=5):
    return rng.integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def pictures(rng):
    """(split, class, number) -> pixels."""
    return {
        (split, name, k): picture(rng)
        for split, counts in COUNTS.items()
        for name, count in zip(CLASSES, counts, strict=True)
        for k in range(count)
    }


@pytest.fixture
def folder(tmp_path, pictures):
    root = tmp_path / "pictures"
    for (split, name, k), pixels in pictures.items():
        path = root / split / name / f"{k:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    (root / "README.txt").write_text("not a picture")
    (root / "train" / "ant" / "._0000.png").write_bytes(b"not one either")
    return root


def pack(folder, path, prefix=""):
    with tarfile.open(path, "w:" + path.suffix[1:].replace("tar", "")) as archive:
        archive.add(folder, arcname=prefix or ".")
    return path


def in_turn(pictures, split):
    """First the first picture of every class, then the second."""
    return sorted(
        (key for key in pictures if key[0] == split), key=lambda key: (key[2], key[1])
    )


def check(source, pictures):
    assert source.classes == CLASSES
    assert source.sizes == {split: sum(counts) for split, counts in COUNTS.items()}
    for split in COUNTS:
        batch = source.open(split)(np.arange(source.sizes[split]))
        order = in_turn(pictures, split)
        expected = np.stack([pictures[key] for key in order])
        chex.assert_trees_all_equal(batch["image"], expected)
        assert [CLASSES[i] for i in batch["label"]] == [key[1] for key in order]
        assert batch["label"].dtype == np.int32


def test_folder(folder, pictures):
    check(images(folder), pictures)
    check(images(str(folder.parent)), pictures)  # folders above do not matter


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tar.bz2", "tar.xz"])
@pytest.mark.parametrize("prefix", ["", "a/b"])
def test_archive(folder, pictures, tmp_path, ending, prefix):
    check(images(pack(folder, tmp_path / f"some.{ending}", prefix)), pictures)


def test_folders_above_the_split_come_in_the_order_of_their_names(tmp_path):
    """And a class that only a later folder has still comes in the order of classes."""
    files = ["one/train/b/7.png", "one/train/c/1.png", "two/train/a/5.png"]
    files += ["two/train/b/0.png"]
    for value, name in enumerate(files):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((2, 2), value, np.uint8)).save(tmp_path / name)
    batch = images(tmp_path, channels=1).open("train")(np.arange(4))
    assert batch["image"][:, 0, 0, 0].tolist() == [2, 0, 1, 3]
    assert batch["label"].tolist() == [0, 1, 2, 1]


def test_more_than_memory_is_decoded_when_read(folder, pictures, monkeypatch):
    monkeypatch.setattr(MODULE, "_MEMORY", 0)
    source = images(folder)
    check(source, pictures)
    read = source.open("train")
    Image.fromarray(np.zeros((6, 5, 3), np.uint8)).save(folder / "train/ant/0000.png")
    assert not read(np.array([0]))["image"].any()


def test_read_gathers_any_indices(folder, pictures):
    read = images(folder).open("train")
    order = in_turn(pictures, "train")
    batch = read(np.array([7, 0, 7]))
    expected = np.stack([pictures[order[i]] for i in (7, 0, 7)])
    chex.assert_trees_all_equal(batch["image"], expected)


def test_classes_without_split_are_train(folder, pictures):
    source = images(folder / "train")
    assert source.sizes == {"train": 9}
    assert source.classes == CLASSES


def test_pictures_without_class_have_no_label(folder):
    source = images(folder / "train" / "ant")
    assert (source.sizes, source.classes) == ({"train": 4}, ())
    assert set(source.open("train")(np.arange(4))) == {"image"}


def test_mixed_layouts(folder):
    shutil.copy(folder / "train/ant/0000.png", folder / "stray.png")
    with pytest.raises(ValueError, match=r"must all lie in .* got a mixture"):
        images(folder)


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere must be a folder or end in"):
        images(tmp_path / "nowhere")
    with pytest.raises(
        FileNotFoundError, match=r"no pictures in .*<split>/<class>/<file>"
    ):
        images(tmp_path)


@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_a_broken_picture_is_named(folder, monkeypatch, memory):
    monkeypatch.setattr(MODULE, "_MEMORY", memory)
    path = folder / "train" / "cow" / "0001.png"
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(ValueError, match=r"cannot decode .*train/cow/0001\.png: "):
        images(folder).open("train")(np.arange(9))
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"cannot decode .*train/cow/0001\.png: "):
        images(folder).open("train")(np.arange(9))
    assert len(images(folder).open("test")(np.arange(3))["image"]) == 3


def test_a_broken_picture_in_an_archive_is_named(folder, tmp_path):
    (folder / "test" / "ant" / "0000.png").write_bytes(b"\x89PNG and no more")
    source = images(pack(folder, tmp_path / "some.tar.gz"))
    with pytest.raises(
        ValueError, match=r"cannot decode .*some\.tar\.gz:.*ant/0000\.png"
    ):
        source.open("test")


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tar.xz"])
def test_an_archive_cut_short_anywhere_is_an_error(folder, tmp_path, ending):
    whole = pack(folder, tmp_path / f"whole.{ending}").read_bytes()
    path = tmp_path / f"cut.{ending}"
    end = len(whole) if ending != "tar" else len(whole.rstrip(b"\0"))
    for size in [*range(0, end - 1, end // 97), end - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=rf"cannot read .*cut\.{ending}: "):
            images(path)


def test_a_changed_archive_is_an_error(folder, tmp_path):
    path = pack(folder, tmp_path / "some.tar.gz")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"cannot (read|decode) "):
        images(path).open("train")


def test_sizes_must_agree(folder, rng):
    Image.fromarray(picture(rng, 9, 4)).save(folder / "train" / "bee" / "0001.png")
    source = images(folder)
    message = r"5 x 6 \(.*train/ant/0000\.png\) and 4 x 9 \(.*train/bee/0001\.png\)"
    with pytest.raises(ValueError, match=message):
        source.open("train")
    assert images(folder, image_size=4).open("train")(np.arange(9))["image"].shape == (
        9,
        4,
        4,
        3,
    )


def as_png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(*[st.tuples(st.integers(1, 40), st.integers(1, 40))] * 2)
def test_resizing_gives_the_size_and_keeps_a_colour(size, target):
    colour = np.array([200, 3, 77], np.uint8)
    file = as_png(np.tile(colour, (*size, 1)))
    out = decode_image(file, "x", image_size=target)
    chex.assert_trees_all_equal(out, np.tile(colour, (*target, 1)))


@pytest.mark.parametrize("scale", [1, 4, 9])
@pytest.mark.parametrize("axis", [0, 1])
def test_resizing_keeps_the_centre_of_a_long_picture(axis, scale):
    """Of three squares in a row, red, green and blue, the green one is kept."""
    squares = np.eye(3, dtype=np.uint8)[:, None, None, :].repeat(12, 1).repeat(12, 2)
    file = as_png(np.concatenate(255 * squares, axis=axis))
    out = decode_image(file, "x", image_size=3 * scale)
    assert out.shape == (3 * scale, 3 * scale, 3)
    inner = out if scale == 4 else out[1:-1, 1:-1]  # the filter looks past the edge
    assert (inner == [0, 255, 0]).all()


def test_resizing_averages_what_is_too_fine():
    board = np.indices((64, 64)).sum(axis=0) % 2 * np.uint8(255)
    out = decode_image(as_png(board.astype(np.uint8)), "x", image_size=8)
    assert abs(out.astype(int) - 127).max() <= 2


def test_resizing_a_square_to_its_own_size_changes_nothing(folder, pictures):
    source = images(folder, image_size=(6, 5))
    check(source, pictures)


def test_grey(folder, pictures):
    image = images(folder, channels=1).open("test")(np.arange(3))["image"]
    first = pictures[in_turn(pictures, "test")[0]]
    luma = first @ np.array([0.299, 0.587, 0.114])
    chex.assert_shape(image, (3, 6, 5, 1))
    chex.assert_trees_all_close(image[0, ..., 0].astype(float), luma, atol=1.0)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_other_kinds_become_rgb(mode, rng):
    file = io.BytesIO()
    image = Image.fromarray(picture(rng)).convert(mode)
    image.save(file, "TIFF" if mode == "CMYK" else "PNG")
    out = decode_image(file.getvalue(), "x")
    chex.assert_trees_all_equal(out, np.asarray(image.convert("RGB")))


def test_sixteen_bits_are_refused(rng):
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 2**16, (4, 4), np.uint16)).save(file, "PNG")
    with pytest.raises(
        ValueError, match=r"cannot decode deep\.png: it has more than 8"
    ):
        decode_image(file.getvalue(), "deep.png")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"channels": 2}, "channels must be 1 .* got 2"),
        ({"image_size": 0}, "image_size must be positive, got 0"),
        ({"image_size": (3, -1)}, "image_size must be positive"),
    ],
)
def test_bad_options(folder, options, message):
    with pytest.raises(ValueError, match=message):
        images(folder, **options)


def test_real_pictures(data_dir):
    source = images(data_dir / "cifar10_jpg" / "cifar10_jpg_subset.tar.gz")
    assert source.sizes == {"test": 2000, "train": 10_000}
    assert source.classes[:3] == ("airplane", "automobile", "bird")
    batch = source.open("test")(np.arange(2000))
    chex.assert_shape(batch["image"], (2000, 32, 32, 3))
    assert np.bincount(batch["label"]).tolist() == [200] * 10
    assert batch["label"][:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert 100 < batch["image"].mean() < 140
