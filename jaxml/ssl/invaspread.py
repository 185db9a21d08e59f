"""InvaSpread: invariant to augmentation, spread out over instances, within the batch.

With f_i the unit embedding of image i and f'_i that of its augmented copy, every image of
the batch is a class, the copies belong to their classes, and the images not to others':

    P(i | x'_i) = exp(f_i.f'_i / t) / sum_k exp(f_k.f'_i / t)
    P(i | x_j)  = exp(f_i.f_j / t) / sum_k exp(f_k.f_j / t),    j != i
    J = mean_i [-log P(i | x'_i) - sum_{j != i} log(1 - P(i | x_j))]

The paper's second denominator contains k = j; the authors' code takes all 2B views alike
as images and as copies, leaves the view itself out of its denominator, and its partner out
of the spread. Both are here, as `variant`. The trap is log(1 - P) for P near 1, where the
difference has no digits left: it is taken from log P.

Reference: Ye, Zhang, Yuen and Chang, "Unsupervised Embedding Learning via Invariant and
Spreading Instance Feature", CVPR 2019, https://arxiv.org/abs/1904.03436 (equations 4 to 8).
Deviation: the mean over the batch where the paper has the sum, as in the authors' code.
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp

from jaxml.export import export
from jaxml.method import Batch, Method, Metrics, ModelState, Params
from jaxml.metrics.collapse import feature_std, pair_metrics
from jaxml.nn.functional import apply_module, init_module
from jaxml.ops.similarity import unit
from jaxml.parallel.collectives import all_gather, axis_size, sample_positions
from jaxml.ssl.projected import Projected
from jaxml.typing import Array, Float, PRNGKeyArray

Variant = Literal["paper", "code"]


@export("ssl.invaspread_loss", since="0.1")
def invaspread_loss(
    f: Float[Array, "batch dim"],
    f_augmented: Float[Array, "batch dim"],
    temperature: float = 0.1,
    *,
    variant: Variant = "paper",
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """J, in nats per instance.

    Args:
        f: embeddings of the images, any scale.
        f_augmented: of their augmented copies, row for row.
        temperature: t > 0.
        variant: "paper" or "code".
        axis_name: mesh axis the batch is split over, or None. The result is this device's
            mean; the mean over the devices is the loss of the global batch.

    Raises:
        ValueError: if the shapes differ, the batch of all devices has a single image, the
            temperature is not positive, or the variant unknown.
    """
    if f.shape != f_augmented.shape:
        raise ValueError(
            f"f and f_augmented must have one shape, got {f.shape} and "
            f"{f_augmented.shape}"
        )
    if not temperature > 0:
        raise ValueError(f"the temperature must be positive, got {temperature}")
    if variant not in ("paper", "code"):
        raise ValueError(f"variant must be 'paper' or 'code', got {variant!r}")
    f, f_augmented = (unit(x.astype(jnp.float32)) for x in (f, f_augmented))
    own = sample_positions(len(f), axis_name)
    everyone = all_gather(f, axis_name)
    if len(everyone) < 2:
        raise ValueError(f"the batch must hold two images, got {len(everyone)}")
    if variant == "paper":
        invariant = -_pick(_log_softmax(f_augmented, everyone, temperature), own)
        spread = -_log_not(_log_softmax(f, everyone, temperature))
        is_own = own[:, None] == jnp.arange(len(everyone))[None]
        return jnp.mean(invariant + jnp.sum(jnp.where(is_own, 0, spread), axis=1))
    views = jnp.concatenate([f, f_augmented])
    copies = all_gather(f_augmented, axis_name)
    everyone = jnp.concatenate([everyone, copies])
    other = own + len(copies)
    own, partner = jnp.concatenate([own, other]), jnp.concatenate([other, own])
    columns = jnp.arange(len(everyone))[None]
    is_own, is_partner = own[:, None] == columns, partner[:, None] == columns
    log_p = _log_softmax(views, everyone, temperature, is_own)
    spread = jnp.where(is_own | is_partner, 0, -_log_not(log_p))
    return jnp.mean(-_pick(log_p, partner) + jnp.sum(spread, axis=1))


def _log_softmax(
    x: Array, y: Array, temperature: float, without: Array | None = None
) -> Array:
    """Log P(column | row)."""
    s = jnp.matmul(x, y.T, precision="highest") / temperature
    if without is not None:  # far below all others, and finite
        s = jnp.where(without, -1e9, s)
    return jax.nn.log_softmax(s, axis=1)


def _log_not(log_p: Array) -> Array:
    """log(1 - p) of log p < 0, to full precision (p = 1 counts as nearly 1)."""
    log_p = jnp.minimum(log_p, -1e-7)
    near_one = log_p > -0.7
    large = jnp.log(-jnp.expm1(jnp.where(near_one, log_p, -1.0)))
    return jnp.where(near_one, large, jnp.log1p(-jnp.exp(log_p)))


def _pick(rows: Array, columns: Array) -> Array:
    return jnp.take_along_axis(rows, columns[:, None], axis=1)[:, 0]


@export("ssl.invaspread", since="0.1")
def invaspread(
    model: Projected, *, temperature: float = 0.1, variant: Variant = "paper"
) -> Method:
    """The InvaSpread method; a batch holds `view1`, hardly changed, and `view2`.

    In the paper the first is the image itself, resized and cropped, the second its
    augmented copy; in the authors' code both are augmented. `predict` returns h
    [batch, features] of `image`. Metrics: the loss, and what `jaxml.metrics.diagnose`
    reads: `feature_std` of h and z (near 1 healthy, 0 collapsed), `pair_metrics` of z and
    `loss_at_chance`.

    Args:
        model: backbone and linear head.
        temperature: t > 0.
        variant: "paper" or "code", of the loss.
    """

    def init(key: PRNGKeyArray, batch: Batch) -> tuple[Params, ModelState]:
        return init_module(model, key, batch["view1"], train=True)

    def at_chance(num_local: int) -> float:
        """The loss where all embeddings are one."""
        n = num_local * axis_size(model.axis_name)
        count, others = (n, n - 1) if variant == "paper" else (2 * n - 1, 2 * n - 2)
        return math.log(count) - others * math.log1p(-1 / count)

    def loss(
        params: Params, model_state: ModelState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[ModelState, Metrics]]:
        del key  # the views are drawn before
        views = jnp.concatenate([batch["view1"], batch["view2"]])
        (h, z), model_state = apply_module(
            model, params, model_state, views, train=True
        )
        f, f_augmented = jnp.split(z, 2)
        value = invaspread_loss(
            f, f_augmented, temperature, variant=variant, axis_name=model.axis_name
        )
        return value, (
            model_state,
            {
                "loss": value,
                "loss_at_chance": jnp.float32(at_chance(len(f))),
                "feature_std_h": feature_std(h, axis_name=model.axis_name),
                "feature_std_z": feature_std(z, axis_name=model.axis_name),
                **pair_metrics(f, f_augmented, axis_name=model.axis_name),
            },
        )

    def predict(
        params: Params, model_state: ModelState, batch: Batch
    ) -> Float[Array, "batch features"]:
        (h, _), _ = apply_module(
            model, params, model_state, batch["image"], train=False
        )
        return h

    return Method(init, loss, predict)
