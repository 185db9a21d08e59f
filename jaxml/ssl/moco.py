"""MoCo: find the key of one's own image among a long queue of earlier keys.

A query encoder sees one view, a key encoder the other. The key encoder is a slow copy of
the query encoder, so that keys made many steps apart stay comparable, and the last K keys
of earlier batches are the negatives (u = unit vectors, k+ = the own key):

    L = -log exp(q.k+ / t) / (exp(q.k+ / t) + sum_{j=1..K} exp(q.k_j / t)).

Version 1 has a linear head and t = 0.07; version 2 an MLP, t = 0.2,
blur among its views (`jaxml.ops.moco_v2_view`) and a cosine schedule.

The trap is batch norm: query and key of an image share their batch with the same others,
whose statistics then mark the pair, and the network learns to read the mark ("cheats",
section 3.3). Give the encoder batch norm in groups, as on several devices that do not
share statistics (`functools.partial(BatchNorm, num_groups=8)`), and let `shuffle` send the
keys through in another order: then the groups of query and key have nothing in common.
`shuffle` with one group does nothing, and groups without `shuffle` leak more, not less.

Reference: He, Fan, Wu, Xie and Girshick, "Momentum Contrast for Unsupervised Visual
Representation Learning", CVPR 2020, https://arxiv.org/abs/1911.05722 (equations 1 and 2,
algorithm 1, section 3.3); Chen, Fan, Girshick and He, "Improved Baselines with Momentum
Contrastive Learning", 2020, https://arxiv.org/abs/2003.04297 (version 2). Deviation: the
queue takes batches of any size.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from jaxml.export import export
from jaxml.losses.noise_contrastive import info_nce_rows
from jaxml.method import Batch, Method, Metrics, ModelState, Params
from jaxml.metrics.collapse import feature_std, pair_metrics
from jaxml.nn.functional import apply_module, init_module
from jaxml.parallel.collectives import all_gather, axis_size, sample_positions
from jaxml.ssl.projected import Projected
from jaxml.ssl.queue import enqueue, init_queue
from jaxml.ssl.teacher import Momentum, init_teacher, move_teacher
from jaxml.typing import Array, Float, Int, PRNGKeyArray


@export("ssl.moco", since="0.1")
def moco(
    model: Projected,
    *,
    queue_size: int = 65536,
    momentum: Momentum = 0.999,
    temperature: float = 0.2,
    shuffle: bool = False,
) -> Method:
    """The MoCo method; a batch holds two augmented images, `view1` and `view2`.

    `predict` returns the query encoder's h [batch, features] of `image`. Model state:
    `encoder` and `teacher`, the statistics of the two encoders and the parameters of the
    latter, and `queue` [queue_size, dim], newest first. Metrics: the loss, the share of
    queries nearer to their key than to the whole queue (`accuracy`), and what
    `jaxml.metrics.diagnose` reads: the share nearer to it than to the batch's other keys
    (`batch_accuracy`, below `accuracy` where batch norm leaks), `feature_std` of h and z
    (near 1 healthy, 0 collapsed), `pair_metrics` of query and key, `loss_at_chance` and
    `hardest_share`.

    Args:
        model: backbone and head, `widths=(128,)` in version 1, (2048, 128) in version 2,
            where 2048 is the number of ResNet-50's features.
        queue_size: K, of any size.
        momentum: of the key encoder, a number or a schedule.
        temperature: 0.07 in version 1, 0.2 in version 2.
        shuffle: encode the keys in another order than the queries, over all devices.

    Raises:
        ValueError: if the temperature or the size of the queue is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"the temperature must be positive, got {temperature}")
    axis_name = model.axis_name

    def init(key: PRNGKeyArray, batch: Batch) -> tuple[Params, ModelState]:
        model_key, queue_key = jax.random.split(key)
        params, stats = init_module(model, model_key, batch["view1"], train=True)
        teacher = {"params": params, "stats": stats}
        return params, {
            "encoder": stats,
            "teacher": init_teacher(teacher),
            "queue": init_queue(queue_key, queue_size, model.widths[-1]),
        }

    def encode_keys(
        teacher: ModelState, images: Array, key: PRNGKeyArray
    ) -> tuple[Array, ModelState]:
        """The keys of this device's images."""
        params, stats = teacher["params"], teacher["stats"]
        positions = sample_positions(len(images), axis_name)
        if shuffle:  # every device gets other images than its own
            everyone = all_gather(images, axis_name)
            order = jax.random.permutation(key, len(everyone))
            images = everyone[order[positions]]
        (_, k), stats = apply_module(model, params, stats, images, train=True)
        if shuffle:
            k = all_gather(k, axis_name)[jnp.argsort(order)[positions]]
        return lax.stop_gradient(k), {"params": params, "stats": stats}

    def batch_accuracy(q: Array, k: Array) -> Metrics:
        """What to hold `accuracy` against: both rise if images are told apart.

        A queue shorter than the batch is the easier task, and says nothing.
        """
        if queue_size < len(q) * axis_size(axis_name) - 1:
            return {}
        rows = info_nce_rows(lax.stop_gradient(q), k, axis_name=axis_name)
        return {"batch_accuracy": jnp.mean(rows.found, dtype=jnp.float32)}

    def loss(
        params: Params, model_state: ModelState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[ModelState, Metrics]]:
        (h, q), stats = apply_module(
            model, params, model_state["encoder"], batch["view1"], train=True
        )
        k, teacher = encode_keys(model_state["teacher"], batch["view2"], key)
        queue = model_state["queue"]
        rows = info_nce_rows(q, k, queue, temperature=temperature)
        value = jnp.mean(rows.loss)
        model_state = {
            "encoder": stats,
            "teacher": teacher,
            "queue": enqueue(queue, k, axis_name),
        }
        return value, (
            model_state,
            {
                "loss": value,
                "loss_at_chance": jnp.float32(math.log(queue_size + 1)),
                "accuracy": jnp.mean(rows.found, dtype=jnp.float32),
                "hardest_share": jnp.mean(rows.hardest),
                **batch_accuracy(q, k),
                "feature_std_h": feature_std(h, axis_name=axis_name),
                "feature_std_z": feature_std(q, axis_name=axis_name),
                **pair_metrics(q, k, axis_name=axis_name),
            },
        )

    def predict(
        params: Params, model_state: ModelState, batch: Batch
    ) -> Float[Array, "batch features"]:
        (h, _), _ = apply_module(
            model, params, model_state["encoder"], batch["image"], train=False
        )
        return h

    def after_update(
        params: Params, model_state: ModelState, step: Int[Array, ""]
    ) -> tuple[Params, ModelState]:
        teacher = model_state["teacher"]
        moved = move_teacher(teacher["params"], params, momentum, step)
        return params, {**model_state, "teacher": {**teacher, "params": moved}}

    return Method(init, loss, predict, after_update)
