"""LARS: every layer steps in proportion to the length of its weights.

With the decayed gradient u = g + w p of a layer with parameters p,

    v <- m v - lr * 0.001 (|p| / |u|) u,    p <- p + v,

for weights; biases and the parameters of normalisation take plain momentum steps, without
decay and without the ratio. It is what large batches of self-supervised training use
(SimCLR, SwAV, BYOL, Barlow Twins): lr = 0.3 batch / 256 or 0.075 sqrt(batch) in SimCLR.

The trap is to adapt biases and scales: their lengths are near zero or one, for reasons of
their own, and the ratio stops or overdrives them.

Reference: You, Gitman and Ginsburg, "Large Batch Training of Convolutional Networks", 2017,
https://arxiv.org/abs/1708.03888 (algorithm 1); Chen et al.,
https://arxiv.org/abs/2002.05709 (section 2.2, what is left out). The arithmetic is optax's;
as in the authors' code of SimCLR the rate stands inside the momentum, and the ratio divides
by the length of the decayed gradient, |g + w p|, where You et al. have |g| + w |p|: the same
without decay, and nearly so with the small one of the papers.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxml.export import export
from jaxml.method import Params


@export("ssl.lars", since="0.1")
def lars(
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: optax.ScalarOrSchedule = 1e-6,
    momentum: float = 0.9,
    trust_coefficient: float = 0.001,
) -> optax.GradientTransformationExtraArgs:
    """LARS as the papers use it.

    Args:
        learning_rate: a number or a schedule.
        weight_decay: of weights, a number or a schedule.
        momentum: m.
        trust_coefficient: what the ratio is multiplied by.
    """
    return optax.lars(
        learning_rate,
        weight_decay=weight_decay,
        weight_decay_mask=is_weight,
        trust_coefficient=trust_coefficient,
        trust_ratio_mask=is_weight,
        momentum=momentum,
    )


@export("ssl.is_weight", since="0.1")
def is_weight(params: Params) -> Any:
    """True for arrays of two axes or more, False for biases, scales and the like.

    >>> is_weight({"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)})
    {'bias': False, 'kernel': True}
    """
    return jax.tree.map(lambda p: jnp.ndim(p) > 1, params)
