"""SwAV: predict from one view of an image the cluster that another view was put into.

K unit prototypes c_k stand for clusters. A view's scores are s_k = z.c_k; the codes q of a
batch are the assignment that agrees most with the scores and uses all prototypes equally,
found by a few steps of Sinkhorn and Knopp on exp(s / epsilon); and every other view of the
image must predict them:

    L = mean over codes i and views v != i of  -sum_k q_k^i log softmax(s^v / t)_k.

Only the large crops make codes, small crops only predict. A queue of earlier embeddings
helps to share out the prototypes where the batch is small beside their number.

The traps. Equal use is a property of the global batch: with sums over one device alone,
every device shares out its own few images. Codes carry no gradient. And the scores must be
kept in range: exp(1 / 0.05) is no number for float16, so all of it happens in logarithms.

Reference: Caron, Misra, Mairal, Goyal, Bojanowski and Joulin, "Unsupervised Learning of
Visual Features by Contrasting Cluster Assignments", NeurIPS 2020,
https://arxiv.org/abs/2006.09882 (equations 1 to 5, appendix A.1); Cuturi, "Sinkhorn
Distances", NeurIPS 2013, https://arxiv.org/abs/1306.0895. Deviation: a queue that is not
full yet already helps, with what it holds.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from jaxml.export import export
from jaxml.method import Batch, Method, Metrics, ModelState, Params
from jaxml.metrics.collapse import feature_std, output_entropies, pair_metrics
from jaxml.nn.functional import apply_module, init_module
from jaxml.ops.similarity import unit
from jaxml.parallel.collectives import all_gather, psum
from jaxml.ssl.crops import apply_to_crops
from jaxml.ssl.projected import Projected
from jaxml.ssl.queue import enqueue
from jaxml.typing import Array, Bool, Float, Int, PRNGKeyArray


@export("ssl.sinkhorn", since="0.1")
def sinkhorn(
    scores: Float[Array, "batch prototypes"],
    epsilon: float = 0.05,
    num_iterations: int = 3,
    *,
    extra: Float[Array, "extra prototypes"] | None = None,
    extra_mask: Bool[Array, "extra"] | None = None,
    axis_name: str | None = None,
) -> Float[Array, "batch prototypes"]:
    """Codes: each row sums to one, and all columns together nearly to the same.

    Args:
        scores: s, of this device.
        epsilon: smoothness; near zero, codes are one-hot.
        num_iterations: normalisations of columns and rows; 0 is a softmax of the rows.
        extra: scores of more rows, the same on all devices, that take their share of the
            prototypes: those of a queue.
        extra_mask: True = count it.
        axis_name: mesh axis the batch is split over, or None.

    Raises:
        ValueError: if epsilon is not positive or the number of iterations negative.

    >>> sinkhorn(jnp.zeros((2, 4))).tolist()
    [[0.25, 0.25, 0.25, 0.25], [0.25, 0.25, 0.25, 0.25]]
    """
    if not epsilon > 0:
        raise ValueError(f"epsilon must be positive, got {epsilon}")
    if num_iterations < 0:
        raise ValueError(f"num_iterations must not be negative, got {num_iterations}")
    return _sinkhorn(scores, epsilon, num_iterations, extra, extra_mask, axis_name)[0]


def _sinkhorn(
    scores: Array,
    epsilon: float,
    num_iterations: int,
    extra: Array | None,
    extra_mask: Array | None,
    axis_name: str | None,
) -> tuple[Array, Array]:
    """The codes, and the share of each prototype in them and those of the extra rows."""
    logs = lax.stop_gradient(scores.astype(jnp.float32)) / epsilon
    more = None
    if extra is not None:
        more = lax.stop_gradient(extra.astype(jnp.float32)) / epsilon
        if extra_mask is not None:
            more = jnp.where(extra_mask[:, None], more, -jnp.inf)

    def rows_normalised(logs: Array) -> Array:
        total = jax.nn.logsumexp(logs, axis=1, keepdims=True)
        return logs - jnp.where(jnp.isneginf(total), 0, total)

    for _ in range(num_iterations):
        total = jax.nn.logsumexp(logs, axis=0, keepdims=True)
        total = jax.nn.logsumexp(all_gather(total, axis_name), axis=0, keepdims=True)
        if more is not None:
            of_more = jax.nn.logsumexp(more, axis=0, keepdims=True)
            total = jnp.logaddexp(total, of_more)
            more = rows_normalised(more - total)
        logs = rows_normalised(logs - total)
    codes = jnp.exp(rows_normalised(logs))
    used = psum(jnp.sum(codes, axis=0), axis_name)
    if more is not None:
        used += jnp.sum(jnp.exp(rows_normalised(more)), axis=0)
    return codes, used / jnp.sum(used)


@export("ssl.swav_loss", since="0.1")
def swav_loss(
    scores: Float[Array, "views batch prototypes"],
    codes: Float[Array, "codes batch prototypes"],
    temperature: float = 0.1,
) -> Float[Array, ""]:
    """Cross-entropy of every code with the predictions of all other views, in nats.

    Args:
        scores: of all views, first those that have codes, in their order.
        codes: of the first views; they get no gradient.
        temperature: t > 0.

    Raises:
        ValueError: if there are fewer than two views, more codes than views, or the
            temperature is not positive.
    """
    if len(scores) < 2 or not 1 <= len(codes) <= len(scores):
        raise ValueError(
            "there must be at least two views, and codes of the first of them, got "
            f"{len(scores)} views and {len(codes)} codes"
        )
    if not temperature > 0:
        raise ValueError(f"the temperature must be positive, got {temperature}")
    predicted = jax.nn.log_softmax(scores.astype(jnp.float32) / temperature)
    codes = lax.stop_gradient(codes)
    each = -jnp.einsum("ibk,vbk->iv", codes, predicted, precision="highest")
    is_other = 1 - jnp.eye(len(codes), len(scores))
    return jnp.sum(is_other * each) / (jnp.sum(is_other) * scores.shape[1])


@export("ssl.swav", since="0.1")
def swav(
    model: Projected,
    *,
    num_prototypes: int = 3000,
    temperature: float = 0.1,
    epsilon: float = 0.05,
    num_iterations: int = 3,
    queue_size: int = 0,
    queue_start: int = 0,
    freeze_steps: int = 0,
) -> Method:
    """The SwAV method; a batch holds crops, as `jaxml.ops.multi_crop` makes them.

    These are `global` [batch, 2 or more, ...], which make codes, and `local`
    [batch, any number, ...], which may be absent. `predict` returns h [batch, features]
    of `image`. The parameters are `model` and `prototypes` [num_prototypes, dim], unit
    rows after every update. Model state: `encoder`, the batch statistics; `step`; and
    with a queue `queue` [queue_size, globals, dim], newest first. Metrics: the loss, and
    what `jaxml.metrics.diagnose` reads: `loss_at_chance`, which is ln(num_prototypes);
    `feature_std` of h and z; `pair_metrics` of the first two crops' z; how the
    predictions use the prototypes (`output_entropies`); and `marginal_error`, the part of
    the codes, those of the queue included, that lies on prototypes beyond their equal
    share.

    Args:
        model: backbone and head; the paper's is `widths=(2048, 128), normalize=True`.
        num_prototypes: K.
        temperature: of the predictions.
        epsilon: of the codes.
        num_iterations: of the codes.
        queue_size: embeddings of each large crop; 3840 for batches of 256 in the paper.
        queue_start: step from which the queue is filled and used; 15 epochs there.
        freeze_steps: steps in which the prototypes stay; one epoch there.

    Raises:
        ValueError: if a number is out of range.
    """
    if num_prototypes < 2:
        raise ValueError(f"num_prototypes must be at least 2, got {num_prototypes}")
    for name, number in (
        ("queue_size", queue_size),
        ("queue_start", queue_start),
        ("freeze_steps", freeze_steps),
    ):
        if number < 0:
            raise ValueError(f"{name} must not be negative, got {number}")
    axis_name = model.axis_name

    def init(key: PRNGKeyArray, batch: Batch) -> tuple[Params, ModelState]:
        model_key, key = jax.random.split(key)
        crops = batch["global"]
        params, stats = init_module(model, model_key, crops[:, 0], train=True)
        dim = model.widths[-1]
        prototypes = unit(jax.random.normal(key, (num_prototypes, dim)))
        model_state = {"encoder": stats, "step": jnp.zeros((), jnp.int32)}
        if queue_size:
            model_state["queue"] = jnp.zeros((queue_size, crops.shape[1], dim))
        return {"model": params, "prototypes": prototypes}, model_state

    def make_codes(
        scores: Array, prototypes: Array, model_state: ModelState
    ) -> tuple[Array, Array]:
        """Codes [crops, batch, prototypes], and the shares of the prototypes in them."""
        queue = model_state.get("queue")
        made = []
        for i, own in enumerate(scores):
            extra = extra_mask = None
            if queue is not None:
                extra = _scores(queue[:, i], prototypes)
                extra_mask = jnp.any(queue[:, i] != 0, axis=1)
            made.append(
                _sinkhorn(own, epsilon, num_iterations, extra, extra_mask, axis_name)
            )
        codes, shares = zip(*made, strict=True)
        return jnp.stack(codes), jnp.stack(shares)

    def loss(
        params: Params, model_state: ModelState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[ModelState, Metrics]]:
        del key  # the crops are drawn before
        step, prototypes = model_state["step"], params["prototypes"]
        is_frozen = step < freeze_steps
        prototypes = jnp.where(is_frozen, lax.stop_gradient(prototypes), prototypes)
        (h, z), stats = apply_to_crops(
            model, params["model"], model_state["encoder"], batch["global"]
        )
        embedded = [z]
        if "local" in batch:
            (_, small), stats = apply_to_crops(
                model, params["model"], stats, batch["local"]
            )
            embedded.append(small)
        scores = _scores(jnp.concatenate(embedded), prototypes)
        codes, shares = make_codes(scores[: len(z)], prototypes, model_state)
        value = swav_loss(scores, codes, temperature)
        changed = {**model_state, "encoder": stats}
        if queue_size:
            queue = enqueue(model_state["queue"], jnp.moveaxis(z, 0, 1), axis_name)
            is_used = step >= queue_start
            changed["queue"] = jnp.where(is_used, queue, model_state["queue"])
        return value, (
            changed,
            {
                "loss": value,
                "loss_at_chance": jnp.float32(math.log(num_prototypes)),
                "feature_std_h": feature_std(h[0], axis_name=axis_name),
                "feature_std_z": feature_std(z[0], axis_name=axis_name),
                **pair_metrics(z[0], z[1], axis_name=axis_name),
                "marginal_error": jnp.mean(
                    jnp.sum(jnp.abs(shares - 1 / num_prototypes), axis=1) / 2
                ),
                **output_entropies(
                    jax.nn.softmax(scores[0] / temperature), axis_name=axis_name
                ),
            },
        )

    def predict(
        params: Params, model_state: ModelState, batch: Batch
    ) -> Float[Array, "batch features"]:
        (h, _), _ = apply_module(
            model, params["model"], model_state["encoder"], batch["image"], train=False
        )
        return h

    def after_update(
        params: Params, model_state: ModelState, step: Int[Array, ""]
    ) -> tuple[Params, ModelState]:
        params = {**params, "prototypes": unit(params["prototypes"])}
        return params, {**model_state, "step": jnp.asarray(step + 1, jnp.int32)}

    return Method(init, loss, predict, after_update)


def _scores(z: Float[Array, "*rows dim"], prototypes: Array) -> Array:
    return jnp.matmul(z, prototypes.T, precision="highest")
