"""Batches: the right samples, once each, resumable anywhere, on any number of hosts."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import chex
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import jaxml.data as data
from jaxml.data.sampler import Sampler

ROOT = Path(__file__).parents[2]


def take(batches, count):
    return list(itertools.islice(batches, count))


def join(parts):
    """The global batch of several processes' parts."""
    return {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}


@pytest.mark.parametrize("num_threads", [0, 1, 3])
@pytest.mark.parametrize("drop_remainder", [None, True, False])
@pytest.mark.parametrize("name", ["digits", "shapes", "wine"])
def test_batches_hold_what_the_sampler_says(name, drop_remainder, num_threads):
    split = "train[:50]"
    arrays = data.load_arrays(name, split)
    batches = data.load(
        name, split, 16, seed=3, drop_remainder=drop_remainder, num_threads=num_threads
    )
    sampler = Sampler(50, 16, seed=3, drop_remainder=drop_remainder)
    for step, batch in enumerate(take(batches, 9)):
        indices, mask = sampler(step)
        expected = {key: values[indices] for key, values in arrays.items()}
        if drop_remainder is False:
            expected["mask"] = mask
        chex.assert_trees_all_equal(batch, expected)


def test_an_epoch_counts_every_sample_once():
    batches = list(data.load("digits", "test", 100, repeat=False, with_index=True))
    assert [len(batch["mask"]) for batch in batches] == [100] * 4
    epoch = join(batches)
    index = epoch["index"][epoch["mask"]]
    assert index.dtype == np.int32
    assert sorted(index.tolist()) == list(range(355))
    arrays = data.load_arrays("digits", "test")
    chex.assert_trees_all_equal(epoch["label"], arrays["label"][epoch["index"]])


def test_no_mask_where_nothing_is_padded():
    for arguments in (
        {},
        {"drop_remainder": True},
        {"repeat": False, "drop_remainder": True},
    ):
        batch = next(iter(data.load("digits", "train", 100, **arguments)))
        assert set(batch) == {"image", "label"}


@hypothesis.settings(deadline=None, max_examples=12)
@hypothesis.given(
    start=st.integers(0, 12),
    skip=st.integers(0, 3),
    before=st.sampled_from([1, 2, 4]),
    after=st.sampled_from([1, 2, 4]),
    drop_remainder=st.sampled_from([None, True, False]),
)
def test_resumes_anywhere_on_any_number_of_processes(
    start, skip, before, after, drop_remainder
):
    """The state goes through JSON, and into an iterator that stands elsewhere."""

    def load(process, count):
        return iter(
            data.load(
                "digits",
                "train[:30]",
                8,
                seed=1,
                drop_remainder=drop_remainder,
                process_index=process,
                process_count=count,
            )
        )

    def global_batches(iterators, count):
        return [join([next(it) for it in iterators]) for _ in range(count)]

    whole = global_batches([load(0, 1)], start + 4)
    first = [load(p, before) for p in range(before)]
    chex.assert_trees_all_equal(global_batches(first, start), whole[:start])
    states = {json.dumps(iterator.get_state()) for iterator in first}
    assert len(states) == 1  # all processes stand at one place
    assert len(max(states)) < 100

    second = [load(p, after) for p in range(after)]
    global_batches(second, skip)
    for iterator in second:
        iterator.set_state(json.loads(max(states)))
    chex.assert_trees_all_equal(global_batches(second, 4), whole[start:])


def test_runs_are_alike_and_seeds_differ():
    first, again, other = (
        join(take(data.load("digits", "train", 64, seed=seed), 5)) for seed in (0, 0, 1)
    )
    chex.assert_trees_all_equal(first, again)
    assert (first["image"] != other["image"]).any()


def test_fixed_order_without_shuffling():
    batches = data.load("digits", "test[:40]", 16, shuffle=False, repeat=False)
    epoch = join(list(batches))
    arrays = data.load_arrays("digits", "test[:40]")
    chex.assert_trees_all_equal(epoch["image"][epoch["mask"]], arrays["image"])


def test_slices_and_sums_of_splits():
    train, test = (data.load_arrays("wine", split) for split in ("train", "test"))
    both = data.load_arrays("wine", "test[-3:]+train[10:20]")
    expected = {k: np.concatenate([test[k][-3:], train[k][10:20]]) for k in train}
    chex.assert_trees_all_equal(both, expected)
    assert len(data.load_arrays("shapes", "train[100000:100002]")["image"]) == 2


def test_own_arrays():
    source = data.from_arrays({"train": {"x": np.arange(7)}})
    batch = next(iter(data.load(source, "train[2:]", 5, shuffle=False)))
    assert batch["x"].tolist() == [2, 3, 4, 5, 6]
    with pytest.raises(TypeError, match="takes no more arguments, got image_size"):
        data.load(source, "train", 5, image_size=3)


def test_users_may_change_what_they_get():
    batches = iter(data.load("digits", "train[:8]", 8, shuffle=False))
    before = next(batches)
    before["image"][:] = -1
    assert next(batches)["image"].min() == 0
    data.load_arrays("digits", "train")["image"][:] = -1
    assert data.load_arrays("digits", "train")["image"].min() == 0


def test_describe():
    assert data.describe("digits") == data.Description(
        sizes={"train": 1442, "test": 355},
        classes=tuple("0123456789"),
        features={
            "image": ((8, 8, 1), np.dtype(np.float32)),
            "label": ((), np.dtype(np.int32)),
        },
    )
    assert data.describe("shapes", size=48).features["image"][0] == (48, 48, 3)


def test_prepared_sets(tiny, tiny_dir):
    """Through the door, from a set of TFDS: pixels belong to their numbers."""
    features = ("image", "number")
    batches = data.load(
        "tiny", "train", 8, tfds_dir=tiny_dir, features=features, repeat=False
    )
    epoch = join(list(batches))
    seen = epoch["number"][epoch["mask"]]
    assert sorted(seen.tolist()) == list(range(23))
    expected = np.stack([tiny.samples["train"][i]["image"] for i in epoch["number"]])
    chex.assert_trees_all_equal(epoch["image"], expected)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"batch_size": 10, "process_count": 4}, "divide .* got 10 and 4"),
        ({"split": "valid"}, "must be one of train, test, got 'valid'"),
        ({"split": "train[:9999]"}, "train has 1442 samples"),
        (
            {"split": "train[:5]", "drop_remainder": True},
            "got 5 samples and batch_size 8",
        ),
        ({"name": "no such set"}, "got 'no such set'"),
    ],
)
def test_bad_arguments(arguments, message):
    arguments = {
        "name": "digits",
        "split": "train",
        "batch_size": 8,
        "process_index": 0,
        "process_count": 1,
        **arguments,
    }
    with pytest.raises(ValueError, match=message):
        data.load(**arguments)


def run_python(code, tmp_path):
    """Runs code where an `import tensorflow` would succeed, and be seen."""
    (tmp_path / "tensorflow").mkdir(exist_ok=True)
    (tmp_path / "tensorflow" / "__init__.py").write_text("__version__ = '2.99.0'")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    env = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=env,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_is_light(tmp_path):
    heavy = ("tensorflow", "tensorflow_datasets", "grain", "sklearn", "PIL", "scipy.io")
    code = f"""
import sys, jaxml.data
print([name for name in {heavy} if name in sys.modules])
"""
    assert run_python(code, tmp_path).strip() == "[]"


def test_tensorflow_is_never_imported(tiny_dir, tmp_path):
    code = f"""
import sys, jaxml.data as data
for name in ("digits", "shapes", "tiny"):
    options = dict(tfds_dir={str(tiny_dir)!r}) if name == "tiny" else {{}}
    if name == "tiny":
        options["features"] = ("image", "label", "text")
    batches = iter(data.load(name, "train", 4, **options))
    print(sorted(next(batches)), "tensorflow" in sys.modules)

import pathlib, pytest, numpy as np
sys.path.insert(0, {str(ROOT / "tests" / "data")!r})
import test_prepare as helper
for name in ("mnist", "cifar10"):  # prepared from original files, small ones
    files, _ = helper.make(name, np.random.default_rng(0))
    folder = pathlib.Path({str(tmp_path)!r}, name)
    helper.write(files, folder / name)
    with pytest.MonkeyPatch.context() as patch:
        helper.know(patch, name, files)
        batches = data.load(name, "test", 4, data_dir=folder, tfds_dir=folder / "tfds")
    print(sorted(next(iter(batches))), "tensorflow" in sys.modules)
"""
    assert run_python(code, tmp_path).splitlines() == [
        "['image', 'label'] False",
        "['image', 'label'] False",
        "['image', 'label', 'text'] False",
        *["['image', 'label'] False"] * 2,
    ]


def test_two_real_processes_share_a_batch(tmp_path):
    """Each process of `jax.distributed` reads its own part, without being told which."""
    code = """
import sys, jax, numpy as np
port, index = sys.argv[1:]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=int(index))
import jaxml.data as data
batches = iter(data.load("digits", "train", 8, with_index=True))
print("drawn", *next(batches)["index"], *next(batches)["index"], flush=True)
"""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(port), str(index)],
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )
        for index in range(2)
    ]
    lines = [process.communicate(timeout=1200)[0] for process in processes]
    drawn = np.array(
        [line.split("drawn", 1)[1].split() for line in lines], int
    )  # [process, 2 batches * 4]
    expected = take(data.load("digits", "train", 8, with_index=True), 2)
    assert drawn.reshape(2, 2, 4).swapaxes(0, 1).reshape(2, 8).tolist() == [
        batch["index"].tolist() for batch in expected
    ]
