"""TFDS sets from their original files, without TensorFlow and without a network."""

import contextlib
import gzip
import hashlib
import http.server
import io
import os
import socket
import struct
import tarfile
import threading

import chex
import numpy as np
import pytest

from jaxml.data import prepare as module
from jaxml.data.prepare import FILES, prepare
from jaxml.data.tfds import find_prepared, prepared

COUNTS = {"train": 30, "test": 8}


def idx(values):
    header = struct.pack(">I" + "I" * values.ndim, 0x800 + values.ndim, *values.shape)
    return gzip.compress(header + values.tobytes())


def mnist_files(rng):
    """Files of a small set of MNIST's kind, and its samples."""
    files, samples = {}, {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        image = rng.integers(0, 256, (COUNTS[split], 28, 28), np.uint8)
        label = rng.integers(0, 10, COUNTS[split]).astype(np.uint8)
        files[f"{prefix}-images-idx3-ubyte.gz"] = idx(image)
        files[f"{prefix}-labels-idx1-ubyte.gz"] = idx(label)
        samples[split] = {"image": image[..., None], "label": label}
    return files, samples


def cifar_files(rng, name):
    """The archive of a small set of CIFAR's kind, and its samples."""
    ten = name == "cifar10"
    keys = ["label"] if ten else ["coarse_label", "label"]
    folder = "cifar-10-batches-bin" if ten else "cifar-100-binary"
    train = [f"data_batch_{i}.bin" for i in range(1, 6)] if ten else ["train.bin"]
    members, samples = {}, {}
    for split, names in (
        ("train", train),
        ("test", ["test_batch.bin" if ten else "test.bin"]),
    ):
        image = rng.integers(0, 256, (COUNTS[split], 32, 32, 3), np.uint8)
        labels = rng.integers(0, 10, (COUNTS[split], len(keys))).astype(np.uint8)
        planes = image.transpose(0, 3, 1, 2).reshape(len(image), -1)
        rows = np.concatenate([labels, planes], axis=1)
        for part, file in zip(np.split(rows, len(names)), names, strict=True):
            members[file] = part.tobytes()
        samples[split] = {"image": image} | dict(zip(keys, labels.T, strict=True))
    if ten:
        members["batches.meta.txt"] = "".join(f"kind {i}\n" for i in range(10)) + "\n"
    else:
        members["coarse_label_names.txt"] = "".join(f"group {i}\n" for i in range(20))
        members["fine_label_names.txt"] = "".join(f"kind {i}\n" for i in range(100))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for file, data in members.items():
            data = data.encode() if isinstance(data, str) else data
            info = tarfile.TarInfo(f"{folder}/{file}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return {FILES[name][0]: buffer.getvalue()}, samples


def make(name, rng):
    return cifar_files(rng, name) if "cifar" in name else mnist_files(rng)


def write(files, folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def know(monkeypatch, name, files):
    """Has TFDS take these files for the original ones."""
    from tensorflow_datasets.core.download import checksums

    builder = module._builder(name)
    infos = {
        url: checksums.UrlInfo(
            size=len(data), checksum=hashlib.sha256(data).hexdigest(), filename=file
        )
        for url in module._urls(builder(data_dir="/nowhere"))
        for file, data in files.items()
        if url.endswith(file)
    }
    assert len(infos) == len(files)
    builder.url_infos = infos
    monkeypatch.setattr(module, "_builder", lambda _: builder)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Any connection beyond this machine fails the test."""
    connect = socket.socket.connect

    def local(self, address):
        assert address[0] in ("127.0.0.1", "localhost"), address
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local)


def check(directory, name, samples):
    source = prepared(find_prepared(name, directory))
    for split, expected in samples.items():
        batch = source.open(split)(np.arange(COUNTS[split]))
        assert set(batch) == set(expected)
        assert batch["label"].dtype == np.int32
        order = [
            int(np.flatnonzero((expected["image"] == image).all(axis=(1, 2, 3)))[0])
            for image in batch["image"]
        ]
        assert sorted(order) == list(range(COUNTS[split]))
        for key in expected:
            chex.assert_trees_all_equal(
                batch[key], expected[key][order].astype(batch[key].dtype)
            )
    return source


@pytest.mark.parametrize("name", FILES)
def test_prepares_what_tfds_would(name, rng, tmp_path, monkeypatch, capsys):
    import tensorflow_datasets as tfds

    files, samples = make(name, rng)
    know(monkeypatch, name, files)
    folder = write(files, tmp_path / "original")
    empty = tmp_path / "empty"
    prepare(name, [empty, folder], tmp_path / "tfds")
    assert f"preparing {name} from {folder}" in capsys.readouterr().err
    source = check(tmp_path / "tfds", name, samples)
    assert len(source.classes) == (100 if name == "cifar100" else 10)
    if name == "cifar10":
        assert source.classes[:2] == ("kind 0", "kind 1")

    # TFDS itself finds and reads it under its name, and in the same order.
    theirs = tfds.data_source(
        name, split="train", data_dir=tmp_path / "tfds", download=False
    )
    mine = source.open("train")(np.arange(COUNTS["train"]))
    assert len(theirs) == COUNTS["train"]
    for i in (0, 17):
        chex.assert_trees_all_equal(theirs[i]["image"], mine["image"][i])
        assert theirs[i]["label"] == mine["label"][i]
    if "cifar" in name:
        ids = {sample["id"].decode() for sample in theirs}
        assert ids == {f"train_{i:05d}" for i in range(COUNTS["train"])}
    prepare(name, [empty], tmp_path / "tfds", download=True)  # there is nothing to do


def test_missing_files_are_named_at_once(rng, tmp_path):
    files, _ = mnist_files(rng)
    part = dict(list(files.items())[:3])
    folder = write(part, tmp_path / "mnist")
    message = (
        rf"mnist is not prepared in .*: {folder} lacks t10k-labels-idx1-ubyte.gz\. "
    )
    with pytest.raises(FileNotFoundError, match=message):
        prepare("mnist", [tmp_path / "empty", folder], tmp_path / "tfds")
    with pytest.raises(FileNotFoundError, match="download=True or JAXML_DOWNLOAD=1"):
        prepare("cifar10", [folder], tmp_path / "tfds")
    assert not (tmp_path / "tfds").exists()


def test_other_files_are_refused(rng, tmp_path):
    """These are not the original ones: TFDS knows their SHA-256."""
    folder = write(mnist_files(rng)[0], tmp_path / "mnist")
    with pytest.raises(ValueError, match=r"is not the original one: .* wrong checksum"):
        prepare("mnist", [folder], tmp_path / "tfds")
    assert find_prepared("mnist", tmp_path / "tfds") is None


def test_two_at_the_same_time_prepare_once(rng, tmp_path, monkeypatch, capsys):
    files, samples = mnist_files(rng)
    know(monkeypatch, "mnist", files)
    folder = write(files, tmp_path / "mnist")
    arguments = ("mnist", [folder], tmp_path / "tfds")
    threads = [threading.Thread(target=prepare, args=arguments) for _ in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    check(tmp_path / "tfds", "mnist", samples)
    assert capsys.readouterr().err.count("preparing mnist") == 1


@contextlib.contextmanager
def serve(files, *, broken=False):
    """A web server on this machine."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            data = files.get(os.path.basename(self.path))
            self.send_response(200 if data is not None else 404)
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            self.wfile.write((data or b"")[: -5 if broken else None])

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def at(monkeypatch, rng):
    """Has a small MNIST downloaded from an address."""
    files, samples = mnist_files(rng)

    def use(url, known=files):
        monkeypatch.setattr(
            module, "_urls", lambda _: [url + f for f in FILES["mnist"]]
        )
        know(monkeypatch, "mnist", known)

    return files, samples, use


def test_download(at, tmp_path):
    files, samples, use = at
    folder = tmp_path / "downloads"
    with serve(files) as url:
        use(url)
        prepare("mnist", [tmp_path / "empty", folder], tmp_path / "tfds", download=True)
    check(tmp_path / "tfds", "mnist", samples)
    assert sorted(os.listdir(folder)) == sorted(files)


def test_download_of_something_else(at, rng, tmp_path):
    files, _, use = at
    with serve({name: data + b"!" for name, data in files.items()}) as url:
        use(url)
        with pytest.raises(ValueError, match=r"must have SHA-256 \w+, got \w+"):
            prepare("mnist", [tmp_path / "d"], tmp_path / "tfds", download=True)
    assert os.listdir(tmp_path / "d") == []


def test_download_that_breaks_off(at, tmp_path):
    files, _, use = at
    with serve(files, broken=True) as url:
        use(url)
        with pytest.raises(
            (ConnectionError, ValueError), match=r"SHA-256|cannot download"
        ):
            prepare("mnist", [tmp_path / "d"], tmp_path / "tfds", download=True)
    assert os.listdir(tmp_path / "d") == []


def test_download_of_nothing(at, tmp_path):
    _, _, use = at
    with serve({}) as url:
        use(url)
        with pytest.raises(
            ConnectionError, match=r"cannot download .*404.* put it into"
        ):
            prepare("mnist", [tmp_path / "d"], tmp_path / "tfds", download=True)


def test_a_server_that_does_not_answer(at, tmp_path, monkeypatch):
    _, _, use = at
    monkeypatch.setattr(module, "_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        use(url := f"http://127.0.0.1:{server.getsockname()[1]}/")
        with pytest.raises(ConnectionError, match=r"cannot download .*timed out"):
            prepare("mnist", [tmp_path / "d"], tmp_path / "tfds", download=True)
    use(url)  # nobody is there now
    with pytest.raises(ConnectionError, match=r"cannot download .*refused"):
        prepare("mnist", [tmp_path / "d"], tmp_path / "tfds", download=True)


@pytest.mark.slow
def test_real_mnist(data_dir, tmp_path_factory):
    """All 70,000 digits, byte for byte, in TFDS's order."""
    directory = tmp_path_factory.mktemp("tfds")
    prepare("mnist", [data_dir / "mnist"], directory)
    source = prepared(find_prepared("mnist", directory))
    assert source.sizes == {"train": 60_000, "test": 10_000}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        batch = source.open(split)(np.arange(source.sizes[split]))
        pixels, labels = (
            gzip.decompress((data_dir / "mnist" / f"{prefix}-{kind}.gz").read_bytes())
            for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
        )
        image = np.frombuffer(pixels, np.uint8, offset=16).reshape(-1, 784)
        label = np.frombuffer(labels, np.uint8, offset=8)[:, None]
        mine = np.concatenate(
            [batch["image"].reshape(-1, 784), batch["label"][:, None].astype(np.uint8)],
            1,
        )
        theirs = np.concatenate([image, label], axis=1)
        assert sorted(map(bytes, mine)) == sorted(map(bytes, theirs))
    first = source.open("train")(np.arange(8))["label"]
    assert first.tolist() == [4, 1, 0, 7, 8, 1, 2, 7]  # as `tfds.load` gives them
