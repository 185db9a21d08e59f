"""Checkpoints: what is saved comes back, and what does not fit is refused.

What happens to them when something breaks is tried in test_checkpoint_faults.py.
"""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxml.parallel import data_mesh, replicate
from jaxml.train import (
    CheckpointError,
    Checkpoints,
    Run,
    TrainState,
    fit,
    gradient_step,
    init_state,
    latest_step,
    restore,
    save,
)


@pytest.fixture
def state(method, batches):
    state = init_state(method, optax.adam(0.1), jax.random.key(0), next(iter(batches)))
    return jax.tree.map(lambda x: x + jnp.asarray(3, x.dtype), state)


def with_params(state, params):
    return TrainState(state.step, params, state.model_state, state.opt_state)


def test_a_state_comes_back_exactly(state, tmp_path):
    save(tmp_path, state)
    assert latest_step(tmp_path) == 3
    restored = restore(tmp_path, jax.tree.map(jnp.zeros_like, state))
    chex.assert_trees_all_equal(restored, state)
    chex.assert_trees_all_equal_dtypes(restored, state)
    chex.assert_trees_all_equal_structs(restored, state)


def test_every_dtype_comes_back(tmp_path):
    values = np.arange(5)
    names = "float32 bfloat16 float16 float8_e4m3fn int4 int8 uint32 bool complex64"
    state = {name: jnp.asarray(values, name) for name in names.split()}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        restored, _ = checkpoints.restore(state)
    chex.assert_trees_all_equal_dtypes(restored, state)
    for name in state:
        assert np.asarray(restored[name]).tobytes() == np.asarray(state[name]).tobytes()


def test_every_value_comes_back(tmp_path, rng):
    """All bit patterns of float32 that a run may meet: NaN, infinity, denormals, -0."""
    special = np.float32([np.nan, np.inf, -np.inf, -0.0, 1e-45, 3.4e38])
    state = {"x": np.concatenate([special, rng.normal(size=999).astype(np.float32)])}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, jax.device_put(state))
        restored, _ = checkpoints.restore(state)
    assert np.asarray(restored["x"]).tobytes() == state["x"].tobytes()


def test_every_structure_comes_back(tmp_path):
    """Lists, tuples, empty nodes, scalars, arrays without elements, odd names."""
    state = {
        "list": [jnp.arange(i) for i in range(12)],
        "tuple": (jnp.float32(1), (), None, {}, (jnp.ones(2),)),
        "empty": jnp.zeros((0, 3)),
        "a/b": {"c.d": jnp.ones(1), "0": jnp.zeros(1), "ü": jnp.ones(1)},
        "optimizer": optax.chain(optax.clip(1.0), optax.adam(0.1)).init({"w": 1.0 * 1}),
    }
    state["optimizer"] = jax.tree.map(jnp.asarray, state["optimizer"])
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, state)
        restored, _ = checkpoints.restore(jax.tree.map(jnp.zeros_like, state))
    chex.assert_trees_all_equal(restored, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(restored, state)


@pytest.mark.parametrize("where", ["params", "elsewhere"])
def test_shapes_alone_are_enough_to_restore_onto(where, tmp_path):
    state = {where: {"w": jnp.arange(6.0), "none": jnp.zeros((0, 2))}}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, state)
        device = jax.devices()[3]
        sharding = jax.sharding.SingleDeviceSharding(device)
        placed = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state
        )
        for like in (jax.eval_shape(lambda: state), placed):
            restored, _ = checkpoints.restore(like)
            chex.assert_trees_all_equal(jax.device_get(restored), jax.device_get(state))
    assert {d for x in jax.tree.leaves(restored) for d in x.devices()} == {device}


def test_record_and_versions_come_back(state, tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {"batches": {"position": 12}})
        _, record = checkpoints.restore(state)
    assert record["step"] == 1
    assert record["batches"] == {"position": 12}
    assert record["versions"]["jax"] == jax.__version__


def test_any_folder_of_a_run_leads_to_its_checkpoints(state, tmp_path):
    for step in (0, 7):
        with Checkpoints(tmp_path / "checkpoints") as checkpoints:
            checkpoints.save(step, jax.tree.map(lambda x, s=step: x * 0 + s, state))
    single = tmp_path / "checkpoints"
    for folder, step in [(tmp_path, 7), (single, 7), (single / "0", 0)]:
        assert int(restore(folder, state).step) == step
    assert latest_step(tmp_path) == 7
    assert int(restore(tmp_path, state, 0).step) == 0


# What is kept


def saved_steps(directory, metrics, **options):
    """The steps that are left after saving one for each of the metrics, from 1."""
    with Checkpoints(directory, **options) as checkpoints:
        for step, value in enumerate(metrics, start=1):
            record = {} if value is None else {"metrics": {"score": value}}
            checkpoints.save(step, {"x": jnp.full(3, step)}, record)
            checkpoints.steps()
        return checkpoints.steps(), checkpoints.best_step()


def test_the_newest_stay(state, tmp_path):
    assert saved_steps(tmp_path, [None] * 4, keep_last=2) == ([3, 4], None)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [3, 4]
        with pytest.raises(CheckpointError, match=r"step 1 .*only steps \[3, 4\]"):
            checkpoints.restore(state, 1)


@pytest.mark.parametrize(
    ("scores", "mode", "best"),
    [
        ([1, 5, 2, 3, 4], "max", 2),
        ([1, 5, 2, 3, 4], "min", 1),
        ([1, 2, 3, 4, 5], "max", 5),
        ([1, 5, 5, 3, 4], "max", 3),  # of equals the newest
        ([1, 5, math.nan, math.inf, 4], "max", 2),
        ([-1, -5, None, -math.inf, -4], "min", 2),
        ([None, None, None, math.nan, None], "max", None),
    ],
)
def test_the_best_stays_besides_the_newest(scores, mode, best, tmp_path):
    steps, found = saved_steps(tmp_path, scores, keep_last=1, keep_best=("score", mode))
    assert found == best
    assert steps == sorted({5} | ({best} if best else set()))


def test_the_best_is_remembered_by_the_folder(tmp_path):
    """Another session, which has not seen the earlier values, keeps it too."""
    saved_steps(tmp_path, [1, 9, 2], keep_last=2)  # nobody asked for the best yet
    for step, score in [(4, 3), (5, 1), (6, 2)]:
        with Checkpoints(tmp_path, keep_last=1, keep_best=("score", "max")) as opened:
            opened.save(step, {"x": jnp.ones(3)}, {"metrics": {"score": score}})
    assert opened.steps() == [2, 6]


def test_a_best_that_is_damaged_ends_no_run(tmp_path):
    options = {"keep_last": 1, "keep_best": ("score", "max")}
    assert saved_steps(tmp_path, [1, 9, 2], **options)[0] == [2, 3]
    (tmp_path / "2" / "record" / "metadata").write_text("{}}")
    with Checkpoints(tmp_path, **options) as checkpoints:
        checkpoints.save(4, {"x": jnp.ones(3)}, {"metrics": {"score": 1}})
        assert checkpoints.steps() == [3, 4]  # the best of those that can be read


def test_reading_deletes_nothing(state, tmp_path):
    saved_steps(tmp_path, [None] * 4, keep_last=None)
    (tmp_path / "9.orbax-checkpoint-tmp").mkdir()  # another process is writing it
    with Checkpoints(tmp_path, keep_last=1) as checkpoints:
        assert checkpoints.steps() == [1, 2, 3, 4]
        checkpoints.restore({"x": jnp.zeros(3, jnp.int32)})
    assert len(list(tmp_path.iterdir())) == 5


def test_bad_options_are_refused(tmp_path):
    with pytest.raises(ValueError, match="keep_last must be at least 1 or None, got 0"):
        Checkpoints(tmp_path, keep_last=0)
    with pytest.raises(Exception, match=r"keep_best.*'best'"):  # here beartype's
        Checkpoints(tmp_path, keep_best=("score", "best"))


def test_an_address_is_no_folder():
    with pytest.raises(ValueError, match="on a file system, got gs://bucket"):
        Checkpoints("gs://bucket/run")


# In the background


def test_saves_in_quick_succession_are_all_kept(state, tmp_path):
    with Checkpoints(tmp_path, keep_last=None) as checkpoints:
        for step in range(5):
            checkpoints.save(step, state)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [0, 1, 2, 3, 4]


def test_what_is_saved_is_the_state_of_the_moment(tmp_path):
    """The buffers are donated and overwritten while the save is under way."""
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    with Checkpoints(tmp_path, keep_last=None) as checkpoints:
        x = add(jnp.zeros((256, 1024)))
        for step in range(1, 41):
            if step % 10 == 0:
                checkpoints.save(step, {"x": x})
            x = add(x)
        for step in (10, 20, 30, 40):
            restored, _ = checkpoints.restore({"x": jnp.zeros((256, 1024))}, step)
            chex.assert_trees_all_equal(
                restored["x"], jnp.full((256, 1024), 1.0 * step)
            )


def test_a_step_is_saved_once(state, tmp_path):
    save(tmp_path, state)
    with pytest.raises(CheckpointError, match="/3 exists already"):
        save(tmp_path, state)


# On other devices


@pytest.mark.parametrize("spec", [PartitionSpec(), PartitionSpec("data")])
def test_it_moves_from_eight_devices_to_two_to_one(spec, tmp_path, rng):
    values = {"w": rng.normal(size=(16, 5)).astype(np.float32)}
    before = 8
    with Checkpoints(tmp_path, keep_last=None) as checkpoints:
        for count in (8, 2, 1):
            mesh = data_mesh(jax.devices()[:count])
            like = jax.device_put(
                jax.tree.map(np.zeros_like, values), NamedSharding(mesh, spec)
            )
            if count < 8:
                restored, _ = checkpoints.restore(like, before)
                assert restored["w"].sharding == like["w"].sharding
                chex.assert_trees_all_equal(jax.device_get(restored), values)
            checkpoints.save(count, jax.device_put(values, NamedSharding(mesh, spec)))
            before = count


def test_it_moves_between_meshes_of_two_axes(tmp_path, rng):
    values = rng.normal(size=(12, 8)).astype(np.float32)

    def placed(x, shape, spec):
        auto = (jax.sharding.AxisType.Auto,) * 2
        mesh = jax.make_mesh(shape, ("data", "model"), axis_types=auto)
        return {"x": jax.device_put(x, NamedSharding(mesh, spec))}

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, placed(values, (4, 2), PartitionSpec("data", "model")))
        for shape, spec in [
            ((2, 4), PartitionSpec("data", "model")),
            ((2, 4), PartitionSpec("model", "data")),
            ((1, 8), PartitionSpec(None, "model")),
            ((8, 1), PartitionSpec(None, ("model", "data"))),
        ]:
            like = placed(np.zeros_like(values), shape, spec)
            restored, _ = checkpoints.restore(like)
            assert restored["x"].sharding == like["x"].sharding
            np.testing.assert_array_equal(restored["x"], values)


def test_a_replicated_state_lands_on_the_devices_of_the_template(state, tmp_path):
    save(tmp_path, replicate(state, data_mesh(jax.devices()[:4])))
    template = replicate(state, data_mesh(jax.devices()[:2]))
    restored = restore(tmp_path, template)
    chex.assert_trees_all_equal(jax.device_get(restored), jax.device_get(state))
    for leaf, like in zip(
        jax.tree.leaves(restored), jax.tree.leaves(template), strict=True
    ):
        assert leaf.sharding == like.sharding


# What does not fit


def test_nothing_saved_is_an_error(state, tmp_path):
    assert latest_step(tmp_path / "absent") is None
    assert not (tmp_path / "absent").exists()
    with pytest.raises(CheckpointError, match=r"no checkpoint .*found none"):
        restore(tmp_path / "absent", state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda p: {**p, "w": jnp.zeros(4)},
            r"params/w is float32\[3\], not float32\[4\]",
        ),
        (
            lambda p: {**p, "w": p["w"].astype(jnp.bfloat16)},
            r"params/w is float32\[3\], not bfloat16\[3\]",
        ),
        (lambda p: {**p, "extra": jnp.zeros(2)}, r"params/extra is missing"),
        (lambda p: {"w": p["w"]}, r"params/b is left over"),
    ],
)
def test_another_model_is_refused_by_name(state, tmp_path, change, message):
    save(tmp_path, state)
    other = with_params(state, change(state.params))
    with pytest.raises(CheckpointError, match=f"step 3 .*another model: {message}"):
        restore(tmp_path, other)


def test_another_optimizer_is_refused_by_name(state, tmp_path, method, batches):
    save(tmp_path, state)
    other = init_state(
        method, optax.sgd(0.1, momentum=0.9), jax.random.key(0), next(iter(batches))
    )
    message = r"another optimizer: opt_state/0/count is left over; .* and 2 more"
    with pytest.raises(CheckpointError, match=message):
        restore(tmp_path, other)


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (3, "arrays, got int at a/b"),
        (jax.random.key(0), r"numbers, got key<fry> at a/b"),
        ("name", "arrays, got str at a/b"),
    ],
)
def test_only_arrays_of_numbers_are_saved(leaf, message, tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(TypeError, match=message):
            checkpoints.save(0, {"a": {"b": leaf}})
        with pytest.raises(TypeError, match="not JSON serializable"):
            checkpoints.save(0, {"a": jnp.ones(3)}, {"config": object()})
    assert not list(tmp_path.iterdir())


# In a run


def test_a_run_keeps_its_best_and_says_what_it_was(method, batches, tmp_path):
    optimizer = optax.adam(0.01)
    state = init_state(method, optimizer, jax.random.key(0), next(iter(batches)))
    step = jax.jit(gradient_step(method, optimizer, jax.random.key(1)))
    scores = {10: 0.5, 20: 0.9, 30: 0.7, 40: 0.6}
    options = {
        "evaluate": lambda state: {"knn": scores[int(state.step)]},
        "evaluate_every": 10,
        "save_every": 10,
        "keep_last": 1,
    }
    run = Run(tmp_path, {"rate": 1})
    fit(step, state, batches, 40, run=run, keep_best=("knn", "max"), **options)
    with Checkpoints(run.checkpoints, keep_best=("knn", "max")) as checkpoints:
        assert checkpoints.steps() == [20, 40]
        assert checkpoints.best_step() == 20
        restored, record = checkpoints.restore(state, 20)
    assert int(restored.step) == 20
    assert record["metrics"]["knn"] == 0.9
    assert {"loss", "grad_norm"} <= record["metrics"].keys()
    assert record["config"] == {"rate": 1}
    assert record["batches"] == {"position": 20}


def test_a_best_that_is_never_measured_is_an_error(method, batches, tmp_path):
    """Half the checkpoints have no evaluation: the first of them says so."""
    optimizer = optax.adam(0.01)
    state = init_state(method, optimizer, jax.random.key(0), next(iter(batches)))
    step = jax.jit(gradient_step(method, optimizer, jax.random.key(1)))
    message = r"needs 'knn' at every step that is saved, got loss, .* at step 10"
    with pytest.raises(ValueError, match=message):
        fit(
            step,
            state,
            batches,
            40,
            run=Run(tmp_path),
            evaluate=lambda state: {"knn": 0.5},
            evaluate_every=20,
            save_every=10,
            keep_best=("knn", "max"),
        )
    assert latest_step(tmp_path) == 10  # nothing is lost
