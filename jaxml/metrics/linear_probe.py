"""Linear probe: the accuracy of a linear classifier on frozen features.

Multinomial logistic regression on standardised features, fitted on the whole training
set at once:

    minimise  mean_i CE(W x_i + b, y_i) + l2 / 2 ||W||^2,

a convex problem with one solution, so no learning rate, schedule or epoch count stands
between the features and the number. L-BFGS runs in float32 until no component of the
gradient exceeds `tolerance`.

Protocol: where `l2` is left open, a stratified part of the TRAINING set is held out, the
candidates are fitted on the rest, and the one with the best held-out accuracy (then the
lowest held-out cross-entropy) is fitted again on all of it. The test set is only ever
predicted.

The trap is the scale of l2: scikit-learn's C multiplies the sum of the losses, so
l2 = 1 / (C * samples). For two classes it fits one weight vector, half of whose penalty
is paid here by two: l2 = 2 / (C * samples).

Reference: Alain and Bengio, "Understanding intermediate layers using linear classifier
probes", 2016, https://arxiv.org/abs/1610.01644; the full-batch L-BFGS protocol with l2
chosen on held-out training data is that of Kornblith et al., "Do Better ImageNet Models
Transfer Better?", CVPR 2019, https://arxiv.org/abs/1805.08974.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxml.export import export
from jaxml.metrics.labelled import check_labelled, count_classes, is_known
from jaxml.typing import Array, Bool, Float, Int, PRNGKeyArray

L2_GRID = tuple(10.0**power for power in range(-6, 2))
"""The candidates where `l2` is left open, in units of the mean loss."""


@export("metrics.LinearProbe", since="0.1")
class LinearProbe(NamedTuple):
    """A fitted classifier: logits = ((x - mean) / scale) @ weight + bias.

    Attributes:
        weight: one column per class.
        bias: one number per class.
        mean: of the training features; 0 if they were not standardised.
        scale: their standard deviation, 1 where they are constant.
        l2: the strength it was fitted with.
        gradient_norm: largest component of the gradient at the end; above the
            tolerance if `max_steps` came first.
        num_steps: L-BFGS steps of the last fit.
    """

    weight: Float[Array, "dim classes"]
    bias: Float[Array, "classes"]
    mean: Float[Array, "dim"]
    scale: Float[Array, "dim"]
    l2: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    num_steps: Int[Array, ""]


@export("metrics.linear_probe", since="0.1")
def linear_probe(
    train_features: Float[Array, "train dim"],
    train_labels: Int[Array, "train"],
    test_features: Float[Array, "test dim"],
    test_labels: Int[Array, "test"],
    *,
    l2: float | Sequence[float] | Float[Array, "*candidates"] | None = None,
    labels_per_class: int | None = None,
    key: PRNGKeyArray | None = None,
    num_classes: int | None = None,
    **options: Any,
) -> Float[Array, ""]:
    """Share of test samples, in [0, 1], that a linear classifier on `train` gets right.

    Args:
        labels_per_class: fit on so few labelled samples of each class, drawn by `key`
            with `few_labels`; by default on all.
        key: draws the labels and the held-out part; `jax.random.key(0)` by default.
        l2, num_classes, **options: as `fit_linear_probe`.

    Several draws of few labels are one call:

        probe = functools.partial(linear_probe, *data, l2=1e-2, labels_per_class=10)
        accuracies = jax.vmap(lambda key: probe(key=key))(jax.random.split(key, 5))

    Raises:
        ValueError: as `fit_linear_probe` and `few_labels`.
    """
    check_labelled("train", train_features, train_labels)
    check_labelled("test", test_features, test_labels)
    num_classes = count_classes(num_classes, train_labels, test_labels)
    draw_key, key = jax.random.split(jax.random.key(0) if key is None else key)
    if labels_per_class is not None:
        chosen = few_labels(
            train_labels, labels_per_class, draw_key, num_classes=num_classes
        )
        train_features = jnp.asarray(train_features)[chosen]
        train_labels = jnp.asarray(train_labels)[chosen]
    probe = fit_linear_probe(
        train_features, train_labels, l2=l2, key=key, num_classes=num_classes, **options
    )
    predictions = jnp.argmax(linear_probe_logits(probe, test_features), axis=-1)
    return jnp.mean(predictions == test_labels, dtype=jnp.float32)


@export("metrics.fit_linear_probe", since="0.1")
def fit_linear_probe(
    features: Float[Array, "samples dim"],
    labels: Int[Array, "samples"],
    *,
    l2: float | Sequence[float] | Float[Array, "*candidates"] | None = None,
    standardize: bool = True,
    holdout: float = 0.2,
    key: PRNGKeyArray | None = None,
    num_classes: int | None = None,
    tolerance: float = 1e-6,
    max_steps: int = 1000,
) -> LinearProbe:
    """Multinomial logistic regression, as the module's docstring states it.

    Args:
        features: fitted in float32.
        labels: in [0, num_classes).
        l2: strength of the penalty on the weights, not on the bias; several candidates,
            or None for `L2_GRID`, are chosen among on held-out training data.
        standardize: scale every feature to mean 0 and deviation 1 first.
        holdout: share of each class that is held out for the choice, at least one
            sample and never all of them.
        key: draws the held-out part; `jax.random.key(0)` by default.
        num_classes: by default one more than the largest label; needed under `jit`.
        tolerance: largest component of the gradient at which a fit stops.
        max_steps: L-BFGS steps after which a fit stops anyway.

    Raises:
        ValueError: if shapes disagree, features are not finite, a label is out of
            range, l2 is negative, or nothing can be held out to choose it.
    """
    check_labelled("train", features, labels)
    num_classes = count_classes(num_classes, labels)
    l2 = L2_GRID if l2 is None else l2
    if is_known(l2) and not (np.size(l2) and np.min(l2) >= 0):
        raise ValueError(f"l2 must be at least 0, got {l2}")
    candidates = jnp.atleast_1d(jnp.asarray(l2, jnp.float32))
    if not 0 < holdout < 1:
        raise ValueError(f"holdout must be in (0, 1), got {holdout}")
    several = len(candidates) > 1 and is_known(labels)
    if several and np.bincount(np.asarray(labels)).max() < 2:
        raise ValueError(
            "choosing l2 needs a class with two samples, to hold one out, "
            f"got {len(labels)} samples of as many classes; give l2 a number"
        )
    return _fit(
        features,
        labels,
        jnp.sort(candidates, descending=True),
        jax.random.key(0) if key is None else key,
        holdout,
        tolerance,
        num_classes=num_classes,
        standardize=standardize,
        max_steps=max_steps,
    )


@export("metrics.linear_probe_logits", since="0.1")
def linear_probe_logits(
    probe: LinearProbe, features: Float[Array, "samples dim"]
) -> Float[Array, "samples classes"]:
    """The classifier's logits; `argmax` over the last axis predicts.

    Raises:
        ValueError: if the features have another dim than those it was fitted on.
    """
    if features.shape[-1] != len(probe.weight):
        raise ValueError(
            f"features must have dim {len(probe.weight)}, got {features.shape[-1]}"
        )
    x = (jnp.asarray(features, jnp.float32) - probe.mean[None]) / probe.scale[None]
    return _logits(jnp.concatenate([probe.weight, probe.bias[None]]), x)


@export("metrics.few_labels", since="0.1")
def few_labels(
    labels: Int[Array, "samples"],
    per_class: int,
    key: PRNGKeyArray,
    *,
    num_classes: int | None = None,
) -> Int[Array, "chosen"]:
    """Indices of `per_class` samples of every class, class by class, drawn by `key`.

    The draw depends on the labels and the key alone, and fewer labels are the first of
    more: the 5 per class of a key are among its 10 per class.

    Raises:
        ValueError: if a class has fewer samples than that.

    >>> few_labels(jnp.array([1, 0, 1, 0]), 2, jax.random.key(0)).tolist()
    [1, 3, 0, 2]
    """
    num_classes = count_classes(num_classes, labels)
    if per_class < 1:
        raise ValueError(f"per_class must be at least 1, got {per_class}")
    if is_known(labels):
        counts = np.bincount(np.asarray(labels), minlength=num_classes)
        if counts.min() < per_class:
            raise ValueError(
                f"every class must have {per_class} samples, "
                f"got {counts.min()} of class {counts.argmin()}"
            )
    order, start = _shuffled_by_class(jnp.asarray(labels), key, num_classes)
    return order[start[:, None] + jnp.arange(per_class)[None]].reshape(-1)


@functools.partial(jax.jit, static_argnames="num_classes")
def _shuffled_by_class(
    labels: Int[Array, "samples"], key: PRNGKeyArray, num_classes: int
) -> tuple[Int[Array, "samples"], Int[Array, "classes"]]:
    """Indices sorted by class, in random order within it, and where each begins."""
    chance = jax.random.permutation(key, len(labels))
    order = jnp.lexsort((chance, labels))
    return order, jnp.searchsorted(labels[order], jnp.arange(num_classes))


def _held_out(
    labels: Int[Array, "samples"], key: PRNGKeyArray, num_classes: int, share: Any
) -> Bool[Array, "samples"]:
    order, start = _shuffled_by_class(labels, key, num_classes)
    counts = jnp.bincount(labels, length=num_classes)
    wanted = jnp.maximum(1, jnp.round(share * counts)).astype(jnp.int32)
    wanted = jnp.minimum(wanted, counts - 1)
    own = labels[order]
    rank = jnp.arange(len(labels)) - start[own]
    return jnp.zeros(len(labels), bool).at[order].set(rank < wanted[own])


@functools.partial(jax.jit, static_argnames=("num_classes", "standardize", "max_steps"))
def _fit(
    features: Float[Array, "samples dim"],
    labels: Int[Array, "samples"],
    candidates: Float[Array, "candidates"],
    key: PRNGKeyArray,
    holdout: float | Float[Array, ""],
    tolerance: float | Float[Array, ""],
    *,
    num_classes: int,
    standardize: bool,
    max_steps: int,
) -> LinearProbe:
    features = features.astype(jnp.float32)
    dim = features.shape[1]
    zero = jnp.zeros((dim + 1, num_classes))

    def standardized(weight: Float[Array, "samples"]) -> tuple[Array, Array, Array]:
        if not standardize:
            return features, jnp.zeros(dim), jnp.ones(dim)
        mean, scale = _moments(features, weight)
        return (features - mean[None]) / scale[None], mean, scale

    def chosen() -> Float[Array, ""]:
        held_out = _held_out(labels, key, num_classes, holdout)
        rest = (~held_out).astype(jnp.float32)
        x, _, _ = standardized(rest)

        def judge(theta: Any, l2: Any) -> tuple[Any, Any]:
            # Strong penalties first: each solution is the next one's start.
            theta, _, _ = _solve(theta, x, labels, rest, l2, tolerance, max_steps)
            logits = _logits(theta, x)
            right = jnp.sum(held_out & (jnp.argmax(logits, axis=-1) == labels))
            return theta, (-right, _cross_entropy(logits, labels, 1 - rest))

        _, (wrong, loss) = jax.lax.scan(judge, zero, candidates)
        return candidates[jnp.lexsort((loss, wrong))[0]]

    l2 = chosen() if len(candidates) > 1 else candidates[0]
    everything = jnp.ones(len(labels))
    x, mean, scale = standardized(everything)
    theta, norm, steps = _solve(zero, x, labels, everything, l2, tolerance, max_steps)
    return LinearProbe(theta[:-1], theta[-1], mean, scale, l2, norm, steps)


def _moments(
    features: Float[Array, "samples dim"], weight: Float[Array, "samples"]
) -> tuple[Float[Array, "dim"], Float[Array, "dim"]]:
    """Weighted mean, and the deviation with 1 for what is constant in float32."""
    weight = (weight / jnp.sum(weight))[:, None]
    mean = jnp.sum(weight * features, axis=0)
    mean += jnp.sum(weight * (features - mean[None]), axis=0)  # what rounding lost
    scale = jnp.sqrt(jnp.sum(weight * jnp.square(features - mean[None]), axis=0))
    return mean, jnp.where(scale > 1e-6 * jnp.abs(mean), scale, 1.0)


def _solve(
    theta: Float[Array, "inputs classes"],
    x: Float[Array, "samples dim"],
    labels: Int[Array, "samples"],
    weight: Float[Array, "samples"],
    l2: Float[Array, ""],
    tolerance: float | Float[Array, ""],
    max_steps: int,
) -> tuple[Float[Array, "inputs classes"], Float[Array, ""], Int[Array, ""]]:
    """L-BFGS from `theta`, the weights over the bias.

    Returns theta, the largest component of its gradient, and the steps it took.
    """

    def objective(theta: Float[Array, "inputs classes"]) -> Float[Array, ""]:
        loss = _cross_entropy(_logits(theta, x), labels, weight)
        return loss + l2 / 2 * jnp.sum(jnp.square(theta[:-1]))

    # The objective is convex, so every step has positive curvature and backtracking
    # from the full step is enough; rtol forgives what float32 rounds off.
    search = optax.scale_by_backtracking_linesearch(
        max_backtracking_steps=20,
        decrease_factor=0.5,
        increase_factor=jnp.inf,
        rtol=1e-6,
        store_grad=True,
    )
    solver = optax.lbfgs(linesearch=search)
    value_and_grad = optax.value_and_grad_from_state(objective)

    def body(carry: Any) -> Any:
        theta, state, step, _ = carry
        value, grad = value_and_grad(theta, state=state)
        update, state = solver.update(
            grad, state, theta, value=value, grad=grad, value_fn=objective
        )
        norm = jnp.max(jnp.abs(optax.tree.get(state, "grad")))
        return theta + update, state, step + 1, norm

    def unfinished(carry: Any) -> Bool[Array, ""]:
        _, _, step, norm = carry
        return (step < max_steps) & (norm > tolerance)

    start = (theta, solver.init(theta), jnp.int32(0), jnp.float32(jnp.inf))
    theta, _, steps, norm = jax.lax.while_loop(unfinished, body, start)
    return theta, norm, steps


def _logits(
    theta: Float[Array, "inputs classes"], x: Float[Array, "samples dim"]
) -> Float[Array, "samples classes"]:
    # Without HIGHEST a TPU multiplies in bfloat16, and no line search converges.
    return jnp.matmul(x, theta[:-1], precision=jax.lax.Precision.HIGHEST) + theta[-1:]


def _cross_entropy(
    logits: Float[Array, "samples classes"],
    labels: Int[Array, "samples"],
    weight: Float[Array, "samples"],
) -> Float[Array, ""]:
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.sum(weight * losses) / jnp.sum(weight)
