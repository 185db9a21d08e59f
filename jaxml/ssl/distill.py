"""Distillation: a small network learns from a big one what it says of unlabelled images.

With P_T and P_S the softmax of teacher's and student's logits over t, and alpha the weight
of the teacher against that of labels, where there are any:

    L = -(1 - alpha) log P_S(label; 1) - alpha sum_y P_T(y; t) log P_S(y; t).

The third step of SimCLR v2: pretrain a big network without labels, fine-tune it on few,
distil it on all images without labels (alpha = 1). The traps: the teacher sees the very
view the student sees, in evaluation mode; and the gradient falls as 1 / t^2, which is not
made up for here, as in the paper.

Reference: Chen, Kornblith, Swersky, Norouzi and Hinton, "Big Self-Supervised Models are
Strong Semi-Supervised Learners", NeurIPS 2020, https://arxiv.org/abs/2006.10029 (equations
2 and 3); Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015,
https://arxiv.org/abs/1503.02531 (section 2, with the factor t^2).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxml.export import export
from jaxml.method import Batch, Method, Metrics, ModelState, Params
from jaxml.nn.functional import apply_module, init_module
from jaxml.parallel.collectives import pmean
from jaxml.typing import Array, Float, Int, PRNGKeyArray


@export("ssl.distillation_loss", since="0.1")
def distillation_loss(
    student: Float[Array, "batch classes"],
    teacher: Float[Array, "batch classes"],
    temperature: float = 1.0,
) -> Float[Array, ""]:
    """Cross-entropy of the student with the teacher, in nats; lowest at its entropy.

    Args:
        student: logits.
        teacher: logits; they get no gradient.
        temperature: t > 0, of both.

    Raises:
        ValueError: if the shapes differ or the temperature is not positive.

    >>> round(float(distillation_loss(jnp.zeros((1, 4)), jnp.zeros((1, 4)))), 4)
    1.3863
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"student and teacher must have one shape, got {student.shape} and "
            f"{teacher.shape}"
        )
    if not temperature > 0:
        raise ValueError(f"the temperature must be positive, got {temperature}")
    told = jax.nn.softmax(lax.stop_gradient(teacher.astype(jnp.float32)) / temperature)
    said = jax.nn.log_softmax(student.astype(jnp.float32) / temperature)
    return -jnp.mean(jnp.sum(told * said, axis=-1))


@export("ssl.distill", since="0.1")
def distill(
    student: nn.Module,
    teacher: nn.Module,
    pretrained: tuple[Params, ModelState],
    *,
    temperature: float = 1.0,
    alpha: float = 1.0,
    axis_name: str | None = None,
) -> Method:
    """The student learns from the teacher; a batch holds augmented images, `view`.

    `predict` returns the student's logits [batch, classes] of `image`. Model state:
    `student`, its statistics, and `teacher`, all of the teacher's arrays. Metrics: the
    loss, and the share of images on which both agree (`agreement`).

    Args:
        student: module taking (images, train) to logits.
        teacher: likewise, for instance the `FineTuned` network itself.
        pretrained: the teacher's parameters and model state.
        temperature: t > 0, of both.
        alpha: weight of the teacher; below 1 the batch also holds `label`, negative where
            there is none. The rest is the weight of the labels, averaged over the
            images that have one.
        axis_name: mesh axis the batch is split over, or None.

    Raises:
        ValueError: if alpha is not in [0, 1] or the temperature not positive.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1], got {alpha}")
    if not temperature > 0:
        raise ValueError(f"the temperature must be positive, got {temperature}")

    def init(key: PRNGKeyArray, batch: Batch) -> tuple[Params, ModelState]:
        params, stats = init_module(student, key, batch["view"], train=True)
        copied = jax.tree.map(lambda x: jnp.array(x, copy=True), pretrained)
        return params, {
            "student": stats,
            "teacher": {"params": copied[0], "stats": copied[1]},
        }

    def loss(
        params: Params, model_state: ModelState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[ModelState, Metrics]]:
        del key  # the view is drawn before
        view, known = batch["view"], model_state["teacher"]
        logits, stats = apply_module(
            student, params, model_state["student"], view, train=True
        )
        told, _ = apply_module(
            teacher, known["params"], known["stats"], view, train=False
        )
        value = distillation_loss(logits, told, temperature)
        if alpha < 1:
            labelled = _labelled_loss(logits, batch["label"], axis_name)
            value = alpha * value + (1 - alpha) * labelled
        agree = jnp.argmax(logits, axis=-1) == jnp.argmax(told, axis=-1)
        metrics = {"loss": value, "agreement": jnp.mean(agree, dtype=jnp.float32)}
        return value, ({**model_state, "student": stats}, metrics)

    def predict(
        params: Params, model_state: ModelState, batch: Batch
    ) -> Float[Array, "batch classes"]:
        logits, _ = apply_module(
            student, params, model_state["student"], batch["image"], train=False
        )
        return logits

    return Method(init, loss, predict)


def _labelled_loss(
    logits: Float[Array, "batch classes"],
    labels: Int[Array, "batch"],
    axis_name: str | None,
) -> Float[Array, ""]:
    """Mean over the labelled images of all devices, once it is averaged over these."""
    has_label = labels >= 0
    losses = optax.softmax_cross_entropy_with_integer_labels(
        logits.astype(jnp.float32), jnp.where(has_label, labels, 0)
    )
    count = pmean(jnp.sum(has_label, dtype=jnp.float32), axis_name)
    return jnp.sum(has_label * losses) / jnp.maximum(count, 1e-6)
