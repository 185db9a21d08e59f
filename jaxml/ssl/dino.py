"""DINO: a student learns what its own slow copy says about other crops of the image.

Student and teacher are one network that gives K scores. The teacher sees the large crops
alone, the student all of them, and from every crop it has to foretell the teacher's
distribution over the K outputs for every other, large one (c = centre):

    P_t = softmax((teacher - c) / t_t),    P_s = softmax(student / t_s),
    L = mean over large crops g and crops v != g of  -sum_k P_t(g)_k log P_s(v)_k,
    c <- m c + (1 - m) mean of the teacher's scores, over crops, batch and all devices.

Centring keeps one output from winning everywhere, and alone drives all to the uniform
distribution; sharpening (t_t < t_s) does the reverse. Together they keep off both.

The traps. The centre moves after the loss. A crop is no lesson about itself: the pair with
v = g is left out, by its number. And small crops need positions resampled to their grid
(`VisionTransformer(any_size=True)`).

Reference: Caron, Touvron, Misra, Jegou, Mairal, Bojanowski and Joulin, "Emerging Properties
in Self-Supervised Vision Transformers", ICCV 2021, https://arxiv.org/abs/2104.14294
(equations 1 to 4, algorithm 1, section 5.3; schedules, freezing and clipping of the authors'
code). Deviations: schedules go by steps, not by epochs; while the last layer is frozen its
gradient is zero, and an optimizer's weight decay still shortens it, to which a layer of
fixed length is blind.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxml.export import export
from jaxml.method import Batch, Method, Metrics, ModelState, Params
from jaxml.metrics.collapse import feature_std, output_entropies, pair_metrics
from jaxml.nn.activations import gelu
from jaxml.nn.functional import apply_module, init_module
from jaxml.nn.mlp import Mlp
from jaxml.nn.vit import VisionTransformer, attention_maps
from jaxml.ops.similarity import unit
from jaxml.parallel.collectives import pmean
from jaxml.ssl.clip_each import clip_each
from jaxml.ssl.crops import apply_to_crops
from jaxml.ssl.lars import is_weight
from jaxml.ssl.swav import swav_loss
from jaxml.ssl.teacher import Momentum, init_teacher, move_teacher
from jaxml.typing import Array, Float, Int, PRNGKeyArray


@export("ssl.dino_loss", since="0.1")
def dino_loss(
    student: Float[Array, "views batch outputs"],
    teacher: Float[Array, "globals batch outputs"],
    centre: Float[Array, "outputs"],
    *,
    student_temperature: float = 0.1,
    teacher_temperature: float | Float[Array, ""] = 0.04,
) -> Float[Array, ""]:
    """Cross-entropy of the teacher's distributions with those of other views, in nats.

    Args:
        student: scores of all views, first those that the teacher sees, in their order.
        teacher: scores of the first views; they get no gradient.
        centre: what is taken off the teacher's scores.
        student_temperature: t_s > 0.
        teacher_temperature: t_t > 0.

    Raises:
        ValueError: if there are fewer than two views, more of the teacher than of the
            student, or a temperature is not positive.

    >>> scores = jnp.zeros((3, 2, 4))
    >>> round(float(dino_loss(scores, scores[:2], jnp.zeros(4))), 4)  # log 4
    1.3863
    """
    _check_temperatures(student_temperature, teacher_temperature)
    targets = _targets(teacher, centre, teacher_temperature)
    return _loss(student, targets, student_temperature)


def _targets(
    teacher: Array, centre: Array, temperature: float | Array
) -> Float[Array, "globals batch outputs"]:
    scores = lax.stop_gradient(teacher).astype(jnp.float32) - centre[None, None]
    return jax.nn.softmax(scores / temperature)


def _loss(student: Array, targets: Array, temperature: float) -> Float[Array, ""]:
    if len(student) < 2 or not 1 <= len(targets) <= len(student):
        raise ValueError(
            "the student must see at least two views, and the teacher the first of "
            f"them, got {len(student)} and {len(targets)}"
        )
    # Views that predict the distributions of others: as in SwAV, with other targets.
    return swav_loss(student, targets, temperature)


class UnitColumns(nn.Module):
    """A linear layer without bias whose columns have a length of their own, or one."""

    features: int
    fixed_length: bool = True
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch dim"]) -> Float[Array, "batch features"]:
        # Uniform within 1 / sqrt(dim): the length matters for the rate of learning.
        start = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        shape = (x.shape[-1], self.features)
        kernel = unit(self.param("kernel", start, shape, self.param_dtype).T)
        scores = jnp.matmul(
            x, kernel.T, precision="highest", preferred_element_type=jnp.float32
        )
        if self.fixed_length:
            return scores
        ones = nn.initializers.ones
        return scores * self.param("length", ones, shape[1:], self.param_dtype)[None]


@export("ssl.DINO", since="0.1")
class DINO(nn.Module):
    """Backbone and head: a perceptron, unit vectors, and their products with K columns.

    Attributes:
        backbone: module taking (images, train) to features [batch, features].
        num_outputs: K.
        widths: of the perceptron's layers; the last is the bottleneck.
        normalize: batch-normalise its hidden layers.
        fixed_length: the last layer's columns are unit vectors; False lets them learn
            their length, which is better and less stable for small transformers.
        axis_name: mesh axis the batch is split over; give the backbone the same.
    """

    backbone: nn.Module
    num_outputs: int = 65536
    widths: Sequence[int] = (2048, 2048, 256)
    normalize: bool = False
    fixed_length: bool = True
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch *image"], *, train: bool
    ) -> tuple[Float[Array, "batch features"], Float[Array, "batch outputs"]]:
        """Returns (h, scores)."""
        h = self.backbone(images, train=train)
        head = Mlp(
            self.widths,
            normalize=self.normalize,
            kernel_init=nn.initializers.truncated_normal(0.02),
            activation=gelu,
            axis_name=self.axis_name,
            name="head",
        )
        last = UnitColumns(self.num_outputs, self.fixed_length, name="last")
        return h, last(unit(head(h, train=train)))


@export("ssl.dino", since="0.1")
def dino(
    model: DINO,
    *,
    momentum: Momentum = 0.996,
    student_temperature: float = 0.1,
    teacher_temperature: optax.ScalarOrSchedule = 0.04,
    centre_momentum: float = 0.9,
    freeze_steps: int = 0,
) -> Method:
    """The DINO method; a batch holds crops, as `jaxml.ops.dino_views` makes them.

    These are `global` [batch, 2 or more, ...], for teacher and student, and `local`
    [batch, any number, ...], for the student, which may be absent. `predict` returns the
    **teacher's** h [batch, features] of `image`, as the paper does. Dropout and drop path
    are the student's alone. Model state: `encoder`, the student's batch statistics;
    `teacher`, parameters and statistics; `centre` [K]; `step`. Metrics: the loss, which
    is the sum of `teacher_entropy` and `teacher_kl` (to the student; it falls to 0 where
    all inputs get one output), and what `jaxml.metrics.diagnose` reads: `loss_at_chance`,
    which is log(K); how the teacher uses the outputs (`output_entropies`); `feature_std`
    of the student's h and the `pair_metrics` of its first two crops.

    Args:
        model: the network.
        momentum: of the teacher, a number or a schedule; the paper's is
            `cosine_momentum(0.996, num_steps)`.
        student_temperature: t_s.
        teacher_temperature: t_t, a number or a schedule over steps; the paper's is
            `optax.linear_schedule(0.04, 0.07, steps)`, 30 epochs long.
        centre_momentum: m of the centre.
        freeze_steps: steps in which the last layer gets no gradient; one epoch there.

    Raises:
        ValueError: if a number is out of range.
    """
    _check(model, centre_momentum, freeze_steps)
    _check_temperatures(student_temperature, teacher_temperature)
    axis_name, silent = model.axis_name, model.clone(backbone=_silent(model.backbone))

    def init(key: PRNGKeyArray, batch: Batch) -> tuple[Params, ModelState]:
        params, stats = init_module(model, key, batch["global"][:, 0], train=True)
        return params, {
            "encoder": stats,
            "teacher": init_teacher({"params": params, "stats": stats}),
            "centre": jnp.zeros(model.num_outputs),
            "step": jnp.zeros((), jnp.int32),
        }

    def learn(
        params: Params, stats: ModelState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Array, Array, ModelState]:
        """The student's h of the large crops, its scores of all, its statistics."""
        features, scores = [], []
        sizes = [name for name in ("global", "local") if name in batch]
        for name, noise in zip(sizes, jax.random.split(key), strict=False):
            rngs = {"dropout": noise}
            (h, s), stats = apply_to_crops(model, params, stats, batch[name], rngs=rngs)
            features.append(h)
            scores.append(s)
        return features[0], jnp.concatenate(scores), stats

    def loss(
        params: Params, model_state: ModelState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[ModelState, Metrics]]:
        step, centre = model_state["step"], model_state["centre"]
        last = jax.tree.map(
            lambda p: jnp.where(step < freeze_steps, lax.stop_gradient(p), p),
            params["last"],
        )
        h, student, stats = learn(
            {**params, "last": last}, model_state["encoder"], batch, key
        )
        weights, kept = (model_state["teacher"][name] for name in ("params", "stats"))
        (_, teacher), kept = apply_to_crops(silent, weights, kept, batch["global"])
        targets = _targets(teacher, centre, _at(teacher_temperature, step))
        value = _loss(student, targets, student_temperature)
        changed = {
            "encoder": stats,
            "teacher": {"params": weights, "stats": kept},
            "centre": _moved_centre(centre, teacher, centre_momentum, axis_name),
        }
        return value, (
            {**model_state, **changed},
            {
                **_entropies(value, targets, axis_name),
                "feature_std_h": feature_std(h[0], axis_name=axis_name),
                **pair_metrics(h[0], h[1], axis_name=axis_name),
            },
        )

    def predict(
        params: Params, model_state: ModelState, batch: Batch
    ) -> Float[Array, "batch features"]:
        teacher = model_state["teacher"]
        (h, _), _ = apply_module(
            model, teacher["params"], teacher["stats"], batch["image"], train=False
        )
        return h

    def after_update(
        params: Params, model_state: ModelState, step: Int[Array, ""]
    ) -> tuple[Params, ModelState]:
        teacher = model_state["teacher"]
        moved = move_teacher(teacher["params"], params, momentum, step)
        changed = {
            "teacher": {**teacher, "params": moved},
            "step": jnp.asarray(step + 1, jnp.int32),
        }
        return params, {**model_state, **changed}

    return Method(init, loss, predict, after_update)


def _check_temperatures(*temperatures: Any) -> None:
    for t in temperatures:
        if isinstance(t, float | int) and not t > 0:
            raise ValueError(f"the temperature must be positive, got {t}")


def _check(model: DINO, centre_momentum: float, freeze_steps: int) -> None:
    if model.num_outputs < 2:
        raise ValueError(f"num_outputs must be at least 2, got {model.num_outputs}")
    if not 0 <= centre_momentum <= 1:
        raise ValueError(f"centre_momentum must be in [0, 1], got {centre_momentum}")
    if freeze_steps < 0:
        raise ValueError(f"freeze_steps must not be negative, got {freeze_steps}")


def _silent(backbone: nn.Module) -> nn.Module:
    """The backbone without dropout and drop path, which are no part of the teacher."""
    fields = {field.name for field in dataclasses.fields(backbone)}
    rates: dict[str, Any] = dict.fromkeys(fields & {"dropout", "drop_path"}, 0.0)
    return backbone.clone(**rates)


def _at(value: optax.ScalarOrSchedule, step: Int[Array, ""]) -> Any:
    return value(step) if callable(value) else value


def _moved_centre(
    centre: Array, teacher: Array, momentum: float, axis_name: str | None
) -> Array:
    mean = jnp.mean(teacher, axis=(0, 1), dtype=jnp.float32)
    mean = pmean(lax.stop_gradient(mean), axis_name)
    return momentum * centre + (1 - momentum) * mean


def _entropies(value: Array, targets: Array, axis_name: str | None) -> Metrics:
    """The loss, its parts, and how the teacher uses its outputs."""
    outputs = targets.shape[-1]
    used = output_entropies(targets.reshape(-1, outputs), axis_name=axis_name)
    entropy = used["row_entropy"] * math.log(outputs)
    return {
        "loss": value,
        "loss_at_chance": jnp.float32(math.log(outputs)),
        "teacher_entropy": entropy,
        "teacher_kl": lax.stop_gradient(value) - entropy,
        **used,
    }


@export("ssl.dino_optimizer", since="0.1")
def dino_optimizer(
    learning_rate: optax.ScalarOrSchedule,
    num_steps: int,
    *,
    weight_decay: tuple[float, float] = (0.04, 0.4),
    max_norm: float = 3.0,
) -> optax.GradientTransformation:
    """AdamW with a weight decay that rises on a cosine, and `clip_each` before it.

    Biases, the parameters of normalisation and other vectors are not decayed.

    Args:
        learning_rate: the paper's rises for 10 epochs to 5e-4 batch / 256 and falls to
            1e-6 on a cosine.
        num_steps: at which the weight decay has arrived.
        weight_decay: at the first step and at the last.
        max_norm: of every array's gradient.
    """
    first, last = weight_decay
    fall = optax.cosine_decay_schedule(1.0, num_steps)
    return optax.chain(
        clip_each(max_norm),
        optax.adamw(
            learning_rate,
            weight_decay=lambda step: last + (first - last) * fall(step),
            mask=is_weight,
        ),
    )


@export("ssl.class_attention", since="0.1")
def class_attention(
    model: VisionTransformer,
    params: Params,
    images: Float[Array, "batch height width channels"],
    *,
    mass: float = 1.0,
) -> Float[Array, "batch heads rows columns"]:
    """Where the class token looks in the last block, patch by patch: DINO's pictures.

    Args:
        model: with a class token.
        params: its own, such as those of the teacher's `backbone`.
        images: of a size it takes.
        mass: the part of the attention to patches that is kept, the greatest weights
            first; the others become 0. 0.6 in the paper's pictures.

    Returns:
        Weights that add up to 1, or with a smaller `mass` to hardly more than that.

    Raises:
        ValueError: if there is no class token, or `mass` is not in (0, 1].
    """
    if not model.class_token:
        raise ValueError("the model must have a class token, got none")
    if not 0 < mass <= 1:
        raise ValueError(f"mass must be in (0, 1], got {mass}")
    weights = attention_maps(model, params, images)[-1][:, :, 0, 1 + model.registers :]
    weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
    order = jnp.argsort(-weights, axis=-1)
    ranked = jnp.take_along_axis(weights, order, axis=-1)
    before = jnp.cumsum(ranked, axis=-1) - ranked  # what is kept without this one
    kept = jnp.take_along_axis(before, jnp.argsort(order, axis=-1), axis=-1) < mass
    rows = images.shape[1] // model.patch_size
    return jnp.where(kept, weights, 0).reshape(*weights.shape[:2], rows, -1)
