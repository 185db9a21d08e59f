"""The neighbours' vote against float64 loops, and what it must not depend on."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.metrics import knn_predict, knn_probe


def predict_numpy(train, labels, test, k, temperature, distance="cosine"):
    """Section 3.4 of the paper in loops; ties go to the first sample and class."""
    train, test = train.astype(np.float64), test.astype(np.float64)
    predictions = []
    for x in test:
        if distance == "cosine":
            norms = np.linalg.norm(train, axis=1) * np.linalg.norm(x)
            near = train @ x / norms
        else:
            near = -np.square(train - x).sum(axis=1) / 2
        votes = np.zeros(labels.max() + 1)
        for i in np.argsort(-near, kind="stable")[:k]:
            weight = 1.0 if temperature is None else np.exp(near[i] / temperature)
            votes[labels[i]] += weight
        predictions.append(votes.argmax())
    return np.array(predictions)


def blobs(rng, n, dim=6, classes=4, noise=1.0):
    """Classes that overlap, so that neighbours disagree."""
    centres = np.random.default_rng(1).normal(size=(classes, dim))
    labels = rng.integers(0, classes, n)
    labels[:classes] = np.arange(classes)
    features = centres[labels] + noise * rng.normal(size=(n, dim))
    return features.astype(np.float32), labels


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("temperature", [0.07, 1.0, None])
@pytest.mark.parametrize("k, chunk", [(1, 64), (7, 5), (200, 3)])
def test_predictions_match_loops(rng, k, temperature, distance, chunk):
    train, labels = blobs(rng, 53)
    test, _ = blobs(rng, 17)
    options = {"k": k, "temperature": temperature, "distance": distance}
    actual = knn_predict(train, labels, test, chunk=chunk, **options)
    expected = predict_numpy(train, labels, test, **options)
    chex.assert_trees_all_equal(np.asarray(actual), expected)
    assert k == 200 or len(set(expected)) > 1


def test_the_probe_is_the_share_of_right_predictions(rng):
    train, labels = blobs(rng, 53)
    test, truth = blobs(rng, 17)
    expected = np.mean(predict_numpy(train, labels, test, 9, 0.07) == truth)
    actual = knn_probe(train, labels, test, truth, k=9)
    assert 0.2 < expected < 1
    assert float(actual) == pytest.approx(expected)


def test_near_neighbours_outvote_many_far_ones():
    """One neighbour at cosine 1 against two at 0.8: who wins is the temperature's."""
    train = np.float32([[1, 0], [0.8, 0.6], [0.8, -0.6]])
    labels, test = np.array([1, 0, 0]), np.float32([[2, 0]])
    predict = functools.partial(knn_predict, train, labels, test, k=3)
    # exp(0.2 / t) > 2 where t < 0.2 / ln 2 = 0.2885
    assert predict(temperature=0.28)[0] == 1
    assert predict(temperature=0.30)[0] == 0
    assert predict(temperature=None)[0] == 0


def test_ties_go_to_the_first_sample_and_the_lowest_class():
    same = np.ones((4, 3), np.float32)
    labels = np.array([2, 1, 0, 0])
    predict = functools.partial(knn_predict, same, labels, same[:1])
    assert predict(k=1)[0] == 2
    assert predict(k=2)[0] == 1
    assert predict(k=4)[0] == 0


def test_low_temperatures_do_not_overflow(rng):
    train, labels = blobs(rng, 40)
    test, _ = blobs(rng, 10)
    nearest = knn_predict(train, labels, test, k=1)
    actual = knn_predict(train, labels, test, k=20, temperature=1e-4)
    chex.assert_trees_all_equal(actual, nearest)


def test_euclidean_votes_on_unit_rows_are_the_cosine_votes(rng):
    train, labels = blobs(rng, 60)
    test, _ = blobs(rng, 30)
    train /= np.linalg.norm(train, axis=1, keepdims=True)
    test /= np.linalg.norm(test, axis=1, keepdims=True)
    chex.assert_trees_all_equal(
        knn_predict(train, labels, test, k=20, distance="euclidean"),
        knn_predict(train, labels, test, k=20),
    )


def test_what_features_may_do_without_a_change(rng):
    train, labels = blobs(rng, 60)
    test, _ = blobs(rng, 30)
    rotation, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    rotation = rotation.astype(np.float32)
    order = rng.permutation(60)
    scales = rng.uniform(0.1, 10, size=(60, 1)).astype(np.float32)
    for distance in ("cosine", "euclidean"):
        predict = functools.partial(knn_predict, k=20, distance=distance)
        expected = predict(train, labels, test)
        rotated = predict(train @ rotation, labels, test @ rotation)
        shuffled = predict(train[order], labels[order], test)
        chex.assert_trees_all_equal(rotated, expected)
        chex.assert_trees_all_equal(shuffled, expected)
        chex.assert_trees_all_equal(predict(train, labels, test[::-1])[::-1], expected)
    chex.assert_trees_all_equal(  # euclidean: a move, cosine: each row's length
        predict(train + 1000, labels, test + 1000), expected
    )
    chex.assert_trees_all_equal(
        knn_predict(train * scales, labels, 1e-6 * test, k=20),
        knn_predict(train, labels, test, k=20),
    )


def test_bfloat16_features_are_compared_in_float32(rng):
    train, labels = blobs(rng, 60)
    test, _ = blobs(rng, 30)
    train, test = jnp.bfloat16(train), jnp.bfloat16(test)
    chex.assert_trees_all_equal(
        knn_predict(train, labels, test, k=9),
        knn_predict(train.astype(jnp.float32), labels, test.astype(jnp.float32), k=9),
    )


def test_it_runs_under_jit_and_vmap(rng):
    train, labels = blobs(rng, 40)
    test, truth = blobs(rng, 10)
    stack = lambda x: jnp.stack([x, x[..., ::-1] + 0.1 * jnp.sin(9 * x)])
    probe = lambda a, b: knn_probe(a, labels, b, truth, k=5, num_classes=4)
    actual = jax.jit(jax.vmap(probe))(stack(train), stack(test))
    expected = [probe(a, b) for a, b in zip(stack(train), stack(test), strict=True)]
    chex.assert_trees_all_close(actual, jnp.stack(expected))


def test_it_is_compiled_once_for_all_temperatures(rng):
    train, labels = blobs(rng, 40)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def predict(temperature):
        return knn_predict(train, labels, train, temperature=temperature, num_classes=4)

    few, many = predict(0.01), predict(10.0)
    chex.assert_trees_all_equal(few, labels)  # each sample finds itself
    assert np.any(many != few)


def test_memory_holds_one_chunk_of_similarities():
    """And no sorted copy: on CPU, slicing what top_k returns would sort whole rows."""
    n, rows, chunk = 4096, 512, 64
    shape = jax.ShapeDtypeStruct
    args = (shape((n, 8), jnp.float32), shape((n,), jnp.int32))
    predict = functools.partial(knn_predict, num_classes=10, chunk=chunk)
    lowered = jax.jit(predict).lower(*args, shape((rows, 8), jnp.float32))
    compiled = lowered.compile()
    memory = compiled.memory_analysis()
    assert memory.temp_size_in_bytes < 3 * 4 * chunk * n < 4 * rows * n
    if jax.default_backend() == "cpu":
        assert "sort(" not in compiled.as_text()


X, Y = np.ones((4, 3), np.float32), np.array([0, 1, 1, 0])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"k": 0}, "k and chunk must be at least 1, got 0 and 256"),
        ({"chunk": 0}, "k and chunk must be at least 1, got 200 and 0"),
        ({"temperature": 0.0}, "temperature must be above 0 or None, got 0.0"),
        ({"temperature": float("nan")}, "temperature must be above 0"),
        ({"num_classes": 1}, r"labels must be in \[0, 1\), got 0 to 1"),
    ],
)
def test_bad_options_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        knn_predict(X, Y, X, **options)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((X[:0], Y[:0], X), r"train_features must have shape \[samples, dim\], got"),
        ((X, Y - 1, X), r"labels must be in \[0, 1\), got -1 to 0"),
        ((X, Y, X[:, :2]), "dim"),
        ((X, Y[:3], X), "samples|train"),
        ((X * np.nan, Y, X), "train_features must be finite, .* in 4 of 4 rows"),
        (
            (X, Y, X + np.float32([[0], [np.inf], [0], [0]])),
            "test_features .* 1 of 4 rows",
        ),
    ],
)
def test_bad_features_are_errors(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        knn_predict(*arguments)


def test_an_unknown_distance_is_an_error():
    with pytest.raises((ValueError, TypeError), match=r"distance|manhattan"):
        knn_predict(X, Y, X, distance="manhattan")


def test_the_number_of_classes_is_needed_under_jit():
    with pytest.raises(ValueError, match="num_classes must be given under jit"):
        jax.jit(knn_predict)(X, Y, X)
