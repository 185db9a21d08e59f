"""Checkpoints when something breaks: killed processes, full disks, damaged files.

Each fault is brought about, not imitated. `JAXML_KILLS=100` kills more often.
"""

import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import chex
import jax
import numpy as np
import optax
import pytest

from jaxml.train import (
    CheckpointError,
    Checkpoints,
    Run,
    checksums,
    fit,
    gradient_step,
    init_state,
    latest_step,
    restore,
    storage,
)
from jaxml.train import run as run_module

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("JAXML_KILLS", 12))


def content(step, rows=20):
    """The state that belongs to a step, no two alike; 12 kilobytes per row."""
    rng = np.random.default_rng(step)
    sizes = {"params": (rows, 1000), "opt_state": (2, rows, 1000), "model_state": (7,)}
    return {
        "step": np.int32(step),
        **{k: rng.normal(size=s).astype(np.float32) for k, s in sizes.items()},
    }


def check_content(directory, step, rows=20):
    """The checkpoint of a step holds this step's state and record, to the bit."""
    with Checkpoints(directory) as checkpoints:
        state, record = checkpoints.restore(content(0, rows), step)
    chex.assert_trees_all_equal(state, content(step, rows))
    assert record["step"] == step
    assert record["batches"] == {"position": 10 * step}


def record_of(step):
    return {"batches": {"position": 10 * step}, "metrics": {"score": step % 3}}


@pytest.fixture
def two(tmp_path):
    """A folder with checkpoints of steps 1 and 2."""
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, content(step), record_of(step))
    return tmp_path


# Killed


def start(code, *arguments, **options):
    """A process that has this file's functions at hand."""
    head = f"import sys; sys.path[:0] = {[str(ROOT), str(Path(__file__).parent)]!r}\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + textwrap.dedent(code), *map(str, arguments)],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


# Importing takes longer than many saves, so it is done once: this process starts no
# thread and touches no device, and each line it reads makes it fork a child that saves.
SAVES = """
    import os
    import numpy as np
    import orbax.checkpoint, tensorstore
    from jaxml.train import Checkpoints
    from test_checkpoint_faults import content, record_of

    for line in sys.stdin:
        if child := os.fork():
            os.waitpid(child, 0)
            print("ended", flush=True)
            continue
        with Checkpoints(line.strip(), keep_last=1, keep_best=("score", "max")) as saved:
            step = saved.latest_step() or 0
            print(os.getpid(), flush=True)
            while step < 10_000:
                step += 1
                saved.save(step, content(step, rows=200), record_of(step))
                print(step, flush=True)  # and writes on in the background
"""


def test_a_kill_at_any_moment_leaves_the_newest_whole(tmp_path):
    """kill -9 while checkpoints are written and deleted as fast as the disk allows."""
    generator = random.Random(0)
    newest, while_saving, while_deleting, period = 0, 0, 0, 0.1
    with start(SAVES) as process:
        for _ in range(KILLS):
            print(tmp_path / "run", file=process.stdin, flush=True)
            child = int(process.stdout.readline())
            for _ in range(generator.randrange(1, 4)):
                begun = time.monotonic()
                process.stdout.readline()
            period = max(period, time.monotonic() - begun)
            time.sleep(generator.uniform(0, period))
            os.kill(child, signal.SIGKILL)
            while process.stdout.readline() != "ended\n":
                pass
            left = [p.name for p in (tmp_path / "run").glob("*tmp")]
            while_deleting += any("deleted" in name for name in left)
            while_saving += any("deleted" not in name for name in left)
            with Checkpoints(tmp_path / "run") as checkpoints:
                steps = checkpoints.steps()
            assert max(steps, default=0) >= newest  # nothing goes back
            newest = max(steps, default=0)
            for step in steps:
                check_content(tmp_path / "run", step, rows=200)
        process.stdin.close()
    print(
        f"{KILLS} kills: {while_saving} while saving, {while_deleting} while deleting"
    )
    assert while_saving >= KILLS // 4
    assert newest >= KILLS // 4


def test_a_deletion_cut_short_leaves_no_half_checkpoint(two, monkeypatch):
    class PowerCutError(Exception):
        pass

    def cut(path, ignore_errors=True):
        shutil.os.unlink(next(p for p in path.rglob("*") if p.is_file()))
        raise PowerCutError

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", cut)
        with Checkpoints(two, keep_last=1) as checkpoints:
            checkpoints.save(3, content(3), record_of(3))
            with contextlib.suppress(PowerCutError):
                checkpoints.steps()
    with Checkpoints(two, keep_last=1) as checkpoints:
        for step in checkpoints.steps():
            check_content(two, step)
        checkpoints.save(4, content(4), record_of(4))
        assert checkpoints.steps() == [4]
    assert [path.name for path in two.iterdir()] == ["4"]


# Not written


FULL = """
    import resource
    import numpy as np
    from jaxml.train import CheckpointError, Checkpoints
    from test_checkpoint_faults import check_content, content, limit_file_size, record_of

    directory = sys.argv[1]
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(1, content(1), record_of(1))
        checkpoints.steps()
        with limit_file_size(50_000):
            checkpoints.save(2, content(2), record_of(2))
            try:
                checkpoints.save(3, content(3), record_of(3))
            except CheckpointError as error:
                print(str(error).splitlines()[0], flush=True)
        print(checkpoints.steps(), flush=True)
        check_content(directory, 1)
        checkpoints.save(4, content(4), record_of(4))
        checkpoints.steps()
        check_content(directory, 4)
        with limit_file_size(50_000):
            checkpoints.save(5, content(5), record_of(5))
            try:
                checkpoints.close()
            except CheckpointError as error:
                print(str(error).splitlines()[0], flush=True)
"""


@contextlib.contextmanager
def limit_file_size(size):
    """A full disk that needs no rights: no file of this process grows further."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_told_and_spares_what_is_there(tmp_path):
    process = start(FULL, tmp_path / "run")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    told, steps, told_again = output.splitlines()
    message = f"the checkpoint of step {{}} could not be written to {tmp_path / 'run'}"
    assert told.startswith(message.format(2) + ", the newest is of step 1: ")
    assert "File too large" in told
    assert steps == "[1]"
    assert told_again.startswith(message.format(5) + ", the newest is of step 4: ")
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.steps() == [1, 4]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, one megabyte."""
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    if shutil.which("mount") is None or subprocess.run(command, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def fill(path, leave):
    """A file that takes all the space there is but some."""
    with contextlib.suppress(OSError), open(path, "wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 12))
    os.truncate(path, path.stat().st_size - leave)


def test_a_run_on_a_full_disk_is_told_and_can_go_on(
    small_disk, method, batches, monkeypatch
):
    """At its next report; when there is space, it continues from what it had."""
    # TensorBoard's writer has a thread, which dies of a full disk and then blocks.
    no_tensorboard = SimpleNamespace(find_spec=lambda name: None)
    monkeypatch.setattr(run_module, "importlib", SimpleNamespace(util=no_tensorboard))
    optimizer = optax.adam(0.01)
    step = jax.jit(gradient_step(method, optimizer, jax.random.key(1)))
    run = Run(small_disk / "run")

    def train(num_steps):
        state = init_state(method, optimizer, jax.random.key(0), next(iter(batches)))
        return fit(
            step, state, batches, num_steps, run=run, save_every=100, log_every=9
        )

    train(100)
    fill(small_disk / "ballast", leave=1 << 16)  # for reports, not for a checkpoint
    message = (
        rf"step 200 .* to {run.checkpoints}, the newest is of step 100: .*No space"
    )
    with pytest.raises(CheckpointError, match=message):
        train(1000)
    assert run.rows()[-1]["step"] < 300
    assert latest_step(run.path) == 100
    fill(small_disk / "ballast", leave=0)
    with pytest.raises(OSError, match=f"No space left on device: '{run.path}/metrics"):
        train(1000)
    (small_disk / "ballast").unlink()
    assert int(train(300).step) == latest_step(run.path) == 300


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    with Checkpoints(tmp_path / "file" / "run") as checkpoints:
        assert checkpoints.steps() == []
        message = (
            rf"step 1 .* to {tmp_path}/file/run, there is none: NotADirectoryError"
        )
        with pytest.raises(CheckpointError, match=message):
            checkpoints.save(1, content(1))


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_a_read_only_folder_is_told_and_can_be_read(two):
    two.chmod(0o500)
    try:
        check_content(two, 2)
        with Checkpoints(two) as checkpoints:
            with pytest.raises(
                CheckpointError, match="newest is of step 2: Permission"
            ):
                checkpoints.save(3, content(3))
            assert checkpoints.steps() == [1, 2]
    finally:
        two.chmod(0o700)


@pytest.fixture
def broken(two, monkeypatch):
    """Checkpoints whose saves fail in the background, as long as `broken` is set."""

    class Broken(Checkpoints):
        broken = True

    opened = Broken(two)
    seal = storage.seal

    def fail(folder):
        if opened.broken:
            raise OSError("the disk is gone")
        seal(folder)

    monkeypatch.setattr(storage, "seal", fail)
    return opened


MESSAGE = "step 3 could not be written .*newest is of step 2: OSError: the disk is gone"


@pytest.mark.parametrize("when", ["save", "steps", "check", "close", "exit"])
def test_an_error_in_the_background_comes_up(when, broken):
    def use():
        with broken as checkpoints:
            checkpoints.save(3, content(3))
            if when == "save":
                checkpoints.save(4, content(4))
            elif when == "check":
                while True:
                    checkpoints.check()
                    time.sleep(0.01)
            elif when != "exit":
                getattr(checkpoints, when)()

    with pytest.raises(CheckpointError, match=MESSAGE):
        use()
    assert sorted(path.name for path in broken.directory.iterdir()) == ["1", "2"]


def test_it_comes_up_once_and_the_next_save_succeeds(broken):
    with broken as checkpoints:
        checkpoints.save(3, content(3))
        with pytest.raises(CheckpointError, match=MESSAGE):
            checkpoints.save(4, content(4))
        checkpoints.broken = False
        checkpoints.check()
        checkpoints.save(4, content(4), record_of(4))
        assert checkpoints.steps() == [2, 4]
    check_content(broken.directory, 4)


def test_it_does_not_hide_what_came_before(broken):
    def use():
        with broken as checkpoints:
            checkpoints.save(3, content(3))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as raised:
        use()
    assert "step 3 could not be written" in raised.value.__notes__[0]


# Damaged


def test_checksums_cover_every_file_before_the_checkpoint_exists(tmp_path, monkeypatch):
    listed = []
    write = checksums.write

    def watched(folder, ignore):
        write(folder, ignore)
        listed.append(latest_step(tmp_path))

    monkeypatch.setattr(checksums, "write", watched)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, content(1))
    assert listed == [None]
    text = (tmp_path / "1" / checksums.NAME).read_text()
    files = {str(p.relative_to(tmp_path / "1")) for p in files_of(tmp_path / "1")}
    assert {name for name in files if f'["{name}"' not in text} == {
        checksums.NAME,
        *storage.UNSUMMED,
    }


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip(data, generator):
    bit = generator.randrange(8 * len(data))
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << (bit % 8)
    return bytes(changed)


DAMAGE = {
    "flipped bit": flip,
    "truncated": lambda data, generator: data[: generator.randrange(len(data))],
    "lengthened": lambda data, generator: data + b"\n",
    "missing": lambda data, generator: None,
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_to_any_file_is_named_and_the_whole_one_offered(kind, two):
    """For each file of a checkpoint in turn; what is never read may change."""
    generator = random.Random(0)
    for path in files_of(two / "2"):
        data = path.read_bytes()
        damaged = DAMAGE[kind](data, generator)
        path.unlink() if damaged is None else path.write_bytes(damaged)
        if path.name in storage.UNSUMMED and path.parent == two / "2":
            check_content(two, 2)
        else:
            with pytest.raises(CheckpointError) as raised:
                restore(two, content(0))
            assert str(raised.value).startswith(
                f"the checkpoint of step 2 in {two} is damaged: "
                f"{path.relative_to(two / '2')} "
            )
            assert "Step 1 is whole: step=1 restores it" in str(raised.value)
            assert f"once {two / '2'} is removed" in str(raised.value)
        path.write_bytes(data)
    check_content(two, 2)
    check_content(two, 1)


def test_the_advice_is_good(two):
    data = max(files_of(two / "2"), key=lambda path: path.stat().st_size)
    data.write_bytes(data.read_bytes()[:-1])
    check_content(two, 1)  # restore(..., step=1)
    shutil.rmtree(two / "2")
    assert latest_step(two) == 1
    check_content(two, latest_step(two))


def test_no_advice_where_all_is_lost(two):
    for step in "12":
        (two / step / "record" / "metadata").unlink()
    with pytest.raises(CheckpointError, match="No other checkpoint there is whole"):
        restore(two, content(0))


def test_unverified_damage_goes_unnoticed(two):
    """Why there are checksums: the store itself returns other weights.

    How many differ depends on where the flipped bit lies in the compressed stream,
    which is not the same every time; of ten places most are not noticed.
    """
    path = max(files_of(two / "2" / "params"), key=lambda path: path.stat().st_size)
    data, right = path.read_bytes(), content(2)["params"]
    unnoticed = 0
    for place in range(1, 11):
        damaged = bytearray(data)
        damaged[place * len(data) // 12] ^= 16
        path.write_bytes(damaged)
        with contextlib.suppress(CheckpointError):
            params = restore(two, content(0), verify=False)["params"]
            unnoticed += np.any(params != right) and np.mean(params != right) < 0.5
    assert unnoticed > 0


def test_unverified_nonsense_is_an_error_of_its_own(two):
    (two / "2" / "params" / "_METADATA").write_text("{}")
    with pytest.raises(CheckpointError, match="2/params could not be read: "):
        restore(two, content(0), verify=False)


def test_a_run_never_falls_back_by_itself(two, method, batches, tmp_path):
    optimizer = optax.adam(0.01)
    step = jax.jit(gradient_step(method, optimizer, jax.random.key(1)))

    def run(num_steps):
        state = init_state(method, optimizer, jax.random.key(0), next(iter(batches)))
        return fit(
            step, state, batches, num_steps, run=Run(tmp_path / "a"), save_every=10
        )

    expected = run(30)
    newest = tmp_path / "a" / "checkpoints" / "30"
    (newest / "params" / "_METADATA").unlink()
    with pytest.raises(CheckpointError, match=f"Step 20 is whole.*{newest} is removed"):
        run(40)
    shutil.rmtree(newest)
    chex.assert_trees_all_equal(run(30), expected)


# Several processes


PROCESS = """
    import jax, numpy as np
    rank, port, directory = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=rank)
    from jax.sharding import NamedSharding, PartitionSpec
    from jaxml.parallel import data_mesh
    from jaxml.train import CheckpointError, Checkpoints

    sharding = NamedSharding(data_mesh(), PartitionSpec("data"))

    def placed(scale):
        values = scale * np.arange(4000, dtype=np.float32).reshape(400, 10)
        pick = lambda index: values[index]
        return {"params": jax.make_array_from_callback(values.shape, sharding, pick)}

    def check(step):
        state, record = checkpoints.restore(placed(0), step)
        for mine, true in zip(
            state["params"].addressable_shards,
            placed(step)["params"].addressable_shards,
            strict=True,
        ):
            np.testing.assert_array_equal(mine.data, true.data)

    with Checkpoints(directory, keep_last=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, placed(step))
        print(checkpoints.steps())
        check(3)
        jax.experimental.multihost_utils.sync_global_devices("checked")
        # Of two files each process looks at one; both must refuse.
        if rank == 0:
            files = [path for path in checkpoints.path(3).rglob("*") if path.is_file()]
            victim = max(files, key=lambda path: path.stat().st_size)
            victim.write_bytes(b"\\0" + victim.read_bytes()[1:])
        jax.experimental.multihost_utils.sync_global_devices("damaged")
        try:
            check(3)
        except CheckpointError as error:
            print("Step 2 is whole" in str(error), "is not what was written" in str(error))
        check(2)
    jax.distributed.shutdown()
"""


def test_two_processes_save_and_refuse_together(tmp_path, free_port):
    processes = [start(PROCESS, i, free_port, tmp_path / "run") for i in range(2)]
    try:
        for process in processes:
            output, _ = process.communicate(timeout=300)
            assert process.returncode == 0
            lines = [line for line in output.splitlines() if "Gloo" not in line]
            assert lines == ["[2, 3]", "True True"]
    finally:  # one that fell leaves the other waiting
        for process in processes:
            process.kill()


@pytest.fixture
def free_port():
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
