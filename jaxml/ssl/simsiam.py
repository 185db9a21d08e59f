"""SimSiam: self-supervised learning from two views, without negatives or a teacher.

One encoder maps each view of an image to a projection z, and a small predictor maps z
to p. Each p is pulled towards the other view's z, which gets no gradient:

    L = D(p1, sg(z2)) / 2 + D(p2, sg(z1)) / 2,    D(p, z) = -cos(p, z).

Drop the stop-gradient sg and the representation collapses to a constant (section 4.1).
The predictor's learning rate stays constant while the encoder's decays (section 4.2):
`constant_predictor_rate` arranges that, `simsiam_optimizer` with the paper's numbers.

Reference: Chen and He, "Exploring Simple Siamese Representation Learning", CVPR 2021,
https://arxiv.org/abs/2011.10566 (equations 1 to 4, heads from section 3).
"""

import flax.linen as nn
import jax.numpy as jnp
import optax
from jax import lax

from jaxml.export import export
from jaxml.method import Batch, Method, Metrics, ModelState, Params
from jaxml.metrics.collapse import feature_std, pair_metrics
from jaxml.nn.functional import apply_module, init_module
from jaxml.nn.mlp import Mlp
from jaxml.ops.similarity import unit
from jaxml.typing import Array, Float, PRNGKeyArray


@export("ssl.negative_cosine", since="0.1")
def negative_cosine(
    p: Float[Array, "batch dim"], z: Float[Array, "batch dim"]
) -> Float[Array, ""]:
    """Mean of -cos(p, sg(z)) over the batch, in [-1, 1]; no gradient flows into `z`.

    Args:
        p: predictions, any scale.
        z: targets, any scale.

    Raises:
        ValueError: if the shapes differ (broadcasting would hide the mistake).

    >>> x = jnp.array([[3.0, 4.0]])
    >>> round(float(negative_cosine(x, 2 * x)), 4)
    -1.0
    """
    if p.shape != z.shape:
        raise ValueError(f"p and z must have one shape, got {p.shape} and {z.shape}")
    p, z = p.astype(jnp.float32), z.astype(jnp.float32)
    return -jnp.mean(jnp.sum(unit(p) * lax.stop_gradient(unit(z)), axis=-1))


@export("ssl.SimSiam", since="0.1")
class SimSiam(nn.Module):
    """Backbone, projector and predictor.

    Attributes:
        backbone: module taking (images, train) to features [batch, features].
        dim: width of the projector and of its output z.
        bottleneck: hidden width of the predictor.
        num_projector_layers: 3 in the paper, 2 for CIFAR-10 (appendix D).
        axis_name: mesh axis over which the heads share batch statistics; give the
            backbone the same.
    """

    backbone: nn.Module
    dim: int = 2048
    bottleneck: int = 512
    num_projector_layers: int = 3
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], *, train: bool
    ) -> tuple[
        Float[Array, "batch features"],
        Float[Array, "batch dim"],
        Float[Array, "batch dim"],
    ]:
        """Returns (h, z, p)."""
        h = self.backbone(images, train=train)
        z = Mlp(
            [self.dim] * self.num_projector_layers,
            normalize_last=True,
            last_scale=False,
            last_bias=False,
            axis_name=self.axis_name,
            name="projector",
        )(h, train=train)
        predictor = Mlp(
            [self.bottleneck, self.dim], axis_name=self.axis_name, name="predictor"
        )
        return h, z, predictor(z, train=train)


@export("ssl.simsiam", since="0.1")
def simsiam(model: SimSiam) -> Method:
    """The SimSiam method; a batch holds two augmented images, `view1` and `view2`.

    `predict` returns the backbone's h [batch, features] of `image`. Metrics: the loss,
    and of z `feature_std` (near 1 healthy, 0 collapsed) and `pair_metrics`, for
    `jaxml.metrics.diagnose`.
    """

    def init(key: PRNGKeyArray, batch: Batch) -> tuple[Params, ModelState]:
        return init_module(model, key, batch["view1"], train=True)

    def loss(
        params: Params, model_state: ModelState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[ModelState, Metrics]]:
        del key  # the views are drawn before
        # One pass for each view: batch statistics are not shared between them.
        (_, z1, p1), model_state = apply_module(
            model, params, model_state, batch["view1"], train=True
        )
        (_, z2, p2), model_state = apply_module(
            model, params, model_state, batch["view2"], train=True
        )
        value = (negative_cosine(p1, z2) + negative_cosine(p2, z1)) / 2
        metrics = {
            "loss": value,
            "feature_std": feature_std(z1, axis_name=model.axis_name),
            **pair_metrics(z1, z2, axis_name=model.axis_name),
        }
        return value, (model_state, metrics)

    def predict(
        params: Params, model_state: ModelState, batch: Batch
    ) -> Float[Array, "batch features"]:
        (h, _, _), _ = apply_module(
            model, params, model_state, batch["image"], train=False
        )
        return h

    return Method(init, loss, predict)


@export("ssl.constant_predictor_rate", since="0.1")
def constant_predictor_rate(
    encoder: optax.GradientTransformation, predictor: optax.GradientTransformation
) -> optax.GradientTransformation:
    """One optimizer for the predictor, another for everything else (section 4.2)."""

    def labels(params: Params) -> dict[str, str]:
        return {k: "predictor" if k == "predictor" else "encoder" for k in params}

    return optax.partition({"encoder": encoder, "predictor": predictor}, labels)


@export("ssl.simsiam_optimizer", since="0.1")
def simsiam_optimizer(
    batch_size: int,
    num_steps: int,
    *,
    learning_rate: float = 0.05,
    weight_decay: float = 1e-4,
    momentum: float = 0.9,
) -> optax.GradientTransformation:
    """SGD as in the paper: a cosine for the encoder, a constant for the predictor.

    Args:
        batch_size: over all devices; the rate is scaled with it.
        num_steps: at which the encoder's rate has fallen to zero.
        learning_rate: for a batch of 256; 0.05 on ImageNet, 0.03 on CIFAR-10.
        weight_decay: of all parameters; 1e-4 on ImageNet, 5e-4 on CIFAR-10.
        momentum: of either.

    Raises:
        ValueError: if the batch is empty or there are no steps.
    """
    if batch_size < 1 or num_steps < 1:
        raise ValueError(
            f"batch_size and num_steps must be at least 1, got {batch_size} and "
            f"{num_steps}"
        )
    rate = learning_rate * batch_size / 256

    def sgd(rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
        decay = optax.add_decayed_weights(weight_decay)
        return optax.chain(decay, optax.sgd(rate, momentum=momentum))

    encoder = sgd(optax.cosine_decay_schedule(rate, num_steps))
    return constant_predictor_rate(encoder, sgd(rate))
