"""InstDisc: every image is a class of its own, told from all others without a classifier.

With v the embedding of an image's view, f_j what a memory bank holds of image j, both unit
vectors, and n images,

    P(i | v) = exp(v.f_i / t) / Z,    Z = sum_j exp(v.f_j / t).

For large n the sum is avoided: NCE tells the image from m images drawn uniformly
(P_n = 1/n), and Z is a constant, estimated once, from the first batch:

    h(i, v) = P / (P + m P_n),    L = -log h(i, v) - sum over noise j of log(1 - h(j, v)),

optionally with the proximal term lambda ||v - f_i||^2, which steadies an image's embedding
from one epoch to the next. The traps: Z estimated anew in every step makes the gradient
blind to it; noise that contains the image itself calls its own class wrong; and the bank
is read before it is written.

Reference: Wu, Xiong, Yu and Lin, "Unsupervised Feature Learning via Non-Parametric
Instance Discrimination", CVPR 2018, https://arxiv.org/abs/1805.01978 (equations 2 to 10).
The average in the bank (m = 0.5) is that of the authors' code, which has no proximal term;
the paper's lambda is 30. Deviation: noise never contains the image itself.
"""

import math

import jax
import jax.numpy as jnp

from jaxml.export import export
from jaxml.losses.blockwise_similarity import blockwise_similarity
from jaxml.losses.noise_contrastive import nce
from jaxml.method import Batch, Method, Metrics, ModelState, Params
from jaxml.metrics.collapse import feature_std
from jaxml.nn.functional import apply_module, init_module
from jaxml.parallel.collectives import all_gather, sample_keys
from jaxml.ssl.memory_bank import init_bank, update_bank
from jaxml.ssl.projected import Projected
from jaxml.typing import Array, Float, Int, PRNGKeyArray


@export("ssl.instance_softmax", since="0.1")
def instance_softmax(
    v: Float[Array, "batch dim"],
    indices: Int[Array, "batch"],
    bank: Float[Array, "num dim"],
    temperature: float = 0.07,
) -> Float[Array, ""]:
    """-log P(i | v) over all images, the mean over the batch, in nats.

    Args:
        v: unit embeddings.
        indices: which image each is of.
        bank: unit embeddings of all images; it gets no gradient.
        temperature: t > 0.
    """
    bank = jax.lax.stop_gradient(bank)
    total = blockwise_similarity(v, bank, x_scale=1 / temperature).rows
    return jnp.mean(total - jnp.sum(v * bank[indices], axis=-1) / temperature)


@export("ssl.noise_scores", since="0.1")
def noise_scores(
    v: Float[Array, "batch dim"],
    indices: Int[Array, "batch"],
    bank: Float[Array, "num dim"],
    keys: Array,
    num_noise: int,
    temperature: float = 0.07,
) -> Float[Array, "batch num_noise"]:
    """v.f_j / t for images j drawn uniformly from all but the own one.

    Args:
        v: unit embeddings.
        indices: which image each is of: never drawn for it.
        bank: unit embeddings of all images; it gets no gradient.
        keys: one for each row of v.
        num_noise: how many are drawn for each, with replacement.
        temperature: t > 0.
    """
    bank = jax.lax.stop_gradient(bank)

    @jax.checkpoint  # what is read from the bank is read again, not kept
    def one(row: tuple[Array, Array, Array]) -> Array:
        v, own, key = row
        drawn = jax.random.randint(key, (num_noise,), 0, len(bank) - 1)
        drawn += drawn >= own
        return jnp.matmul(bank[drawn], v, precision="highest") / temperature

    return jax.lax.map(one, (v, indices, keys), batch_size=min(len(v), 32))


@export("ssl.instance_nce", since="0.1")
def instance_nce(
    v: Float[Array, "batch dim"],
    indices: Int[Array, "batch"],
    bank: Float[Array, "num dim"],
    key: PRNGKeyArray,
    log_z: Float[Array, ""],
    has_z: Float[Array, ""],
    *,
    num_noise: int = 4096,
    temperature: float = 0.07,
    axis_name: str | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """NCE of each embedding with its image against drawn ones, and log Z.

    Args:
        v: unit embeddings, of this device.
        indices: which image each is of.
        bank: unit embeddings of all images; it gets no gradient.
        key: of the step, the same on all devices.
        log_z: the constant.
        has_z: 0 while there is none: then it is estimated from this batch.
        num_noise: how many images are drawn against each.
        temperature: t > 0.
        axis_name: mesh axis the batch is split over, or None.
    """
    bank = jax.lax.stop_gradient(bank)
    keys = sample_keys(key, len(v), axis_name)
    noise = noise_scores(v, indices, bank, keys, num_noise, temperature)
    data = jnp.sum(v * bank[indices], axis=-1) / temperature
    scores = jnp.concatenate([data[:, None], noise], axis=1)
    everyone = all_gather(jax.nn.logsumexp(scores, axis=1), axis_name)
    count = len(everyone) * scores.shape[1]
    estimate = jax.nn.logsumexp(everyone) + math.log(len(bank) / count)
    log_z = jax.lax.stop_gradient(jnp.where(has_z > 0, log_z, estimate))
    uniform = -math.log(len(bank))
    return nce(data, noise, uniform, uniform, log_z), log_z


def nce_at_chance(num_noise: int) -> float:
    """The loss where all scores are one, and Z is that of those."""
    return math.log1p(num_noise) + num_noise * math.log1p(1 / num_noise)


@export("ssl.instdisc", since="0.1")
def instdisc(
    model: Projected,
    num_images: int,
    *,
    temperature: float = 0.07,
    num_noise: int | None = 4096,
    momentum: float = 0.5,
    proximal: float = 0.0,
) -> Method:
    """The InstDisc method; a batch holds one augmented image, `view`, and its `index`.

    `predict` returns h [batch, features] of `image`. Model state: `encoder`, the batch
    statistics; `bank` [num_images, dim]; `log_z`, log Z, and `has_z`, 1 once it is
    estimated. Under `jaxml.compose.accumulated` their rules are `changed_rows`, `average`
    and `average`. Metrics: the loss, `log_z`, and what `jaxml.metrics.diagnose` reads:
    `feature_std` of h and z (near 1 healthy, 0 collapsed) and, without the proximal
    term, `loss_at_chance`.

    Args:
        model: backbone and linear head.
        num_images: n, the size of the data set: every index is below it.
        temperature: t > 0.
        num_noise: m of NCE; None takes the softmax over all images.
        momentum: weight of what the bank holds when it is written.
        proximal: lambda; 30 in the paper.

    Raises:
        ValueError: if there are fewer than two images, no noise, a temperature that is
            not positive, or a negative lambda.
    """
    if num_images < 2:
        raise ValueError(f"num_images must be at least 2, got {num_images}")
    if num_noise is not None and num_noise < 1:
        raise ValueError(f"num_noise must be at least 1 or None, got {num_noise}")
    if not temperature > 0:
        raise ValueError(f"the temperature must be positive, got {temperature}")
    if proximal < 0:
        raise ValueError(f"proximal must not be negative, got {proximal}")
    axis_name = model.axis_name
    at_chance = math.log(num_images) if num_noise is None else nce_at_chance(num_noise)

    def init(key: PRNGKeyArray, batch: Batch) -> tuple[Params, ModelState]:
        model_key, bank_key = jax.random.split(key)
        params, stats = init_module(model, model_key, batch["view"], train=True)
        return params, {
            "encoder": stats,
            "bank": init_bank(bank_key, num_images, model.widths[-1]),
            "log_z": jnp.zeros(()),
            "has_z": jnp.zeros(()),
        }

    def contrast(
        z: Array, index: Array, model_state: ModelState, key: PRNGKeyArray
    ) -> tuple[Array, Array]:
        """The loss, and log Z."""
        bank, log_z = model_state["bank"], model_state["log_z"]
        if num_noise is None:
            return instance_softmax(z, index, bank, temperature), log_z
        return instance_nce(
            z,
            index,
            bank,
            key,
            log_z,
            model_state["has_z"],
            num_noise=num_noise,
            temperature=temperature,
            axis_name=axis_name,
        )

    def loss(
        params: Params, model_state: ModelState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[ModelState, Metrics]]:
        (h, z), stats = apply_module(
            model, params, model_state["encoder"], batch["view"], train=True
        )
        index, bank = batch["index"], model_state["bank"]
        value, log_z = contrast(z, index, model_state, key)
        if proximal:
            moved = jnp.sum(jnp.square(z - bank[index]), axis=-1)
            value += proximal * jnp.mean(moved)
        model_state = {
            "encoder": stats,
            "bank": update_bank(bank, index, z, momentum, axis_name),
            "log_z": log_z,
            "has_z": jnp.ones_like(log_z),
        }
        return value, (
            model_state,
            {
                "loss": value,
                **({} if proximal else {"loss_at_chance": jnp.float32(at_chance)}),
                "log_z": log_z,
                "feature_std_h": feature_std(h, axis_name=axis_name),
                "feature_std_z": feature_std(z, axis_name=axis_name),
            },
        )

    def predict(
        params: Params, model_state: ModelState, batch: Batch
    ) -> Float[Array, "batch features"]:
        (h, _), _ = apply_module(
            model, params, model_state["encoder"], batch["image"], train=False
        )
        return h

    return Method(init, loss, predict)
