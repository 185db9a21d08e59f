"""Deep InfoMax: an encoder whose code keeps what it can about its input, part by part.

With C^(l) the features of an encoder's middle layer at place l, y its code, I^ an estimate
of mutual information by a critic (see `jaxml.ssl.mutual_information`), and D a network that
tells codes from a prior, the encoder maximises

    alpha I^(C; y) + beta mean_l I^(C^(l); y) - gamma KL-like(codes, prior)

DIM(G) has alpha = 1, beta = 0, gamma = 1; DIM(L) alpha = 0, beta = 1, gamma = 0.1. For the
critics the pairs of the product are a code with the maps of the *other* images of the
global batch. The prior, uniform on [0, 1]^dim, is matched as in a GAN: D descends on

    -E log D(prior) - E log(1 - D(y)),      the encoder on  -E log D(y).

The traps: D must not learn from the encoder's term, nor the encoder from D's (each gets a
stop-gradient here, and `prior_optimizer` gives D an optimizer of its own); and pixels that
are shuffled are no negatives.

Reference: Hjelm et al., "Learning deep representations by mutual information estimation
and maximization", ICLR 2019, https://arxiv.org/abs/1808.06670 (equations 4 to 8, appendix
A.2: the networks). Deviations: the encoder minimises the non-saturating form of its prior
term, as the authors' code; layer norm in the critic's towers is over channels.
"""

from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxml.export import export
from jaxml.method import Batch, Method, Metrics, ModelState, Params
from jaxml.metrics.collapse import feature_std
from jaxml.nn.conv import Conv
from jaxml.nn.dense import Dense
from jaxml.nn.functional import apply_module, init_module
from jaxml.nn.norm import BatchNorm
from jaxml.parallel.collectives import all_gather, sample_keys
from jaxml.ssl.mutual_information import (
    donsker_varadhan,
    info_nce_bound,
    jensen_shannon,
    split_scores,
)
from jaxml.typing import Array, Float, PRNGKeyArray

Estimator = Literal["jsd", "dv", "info_nce"]


@export("ssl.InfoMaxEncoder", since="0.1")
class InfoMaxEncoder(nn.Module):
    """The paper's encoder of CIFAR-10: convolutions, a hidden layer, a code in [0, 1].

    Attributes:
        widths: channels of the 4x4 convolutions of stride 2.
        local_layer: after which of them the local features are taken.
        hidden: width of the hidden layer.
        dim: size of the code.
        axis_name: mesh axis over which batch statistics are shared.
    """

    widths: Sequence[int] = (64, 128, 256)
    local_layer: int = 2
    hidden: int = 1024
    dim: int = 64
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], *, train: bool
    ) -> tuple[Float[Array, "batch rows columns features"], Float[Array, "batch dim"]]:
        """Returns local features and the code."""
        x = images
        local = x
        for i, width in enumerate(self.widths, 1):
            x = Conv(width, 4, 2, padding=1)(x)
            x = nn.relu(BatchNorm(axis_name=self.axis_name)(x, train=train))
            if i == self.local_layer:
                local = x
        x = Dense(self.hidden, use_bias=False)(x.reshape(len(x), -1))
        x = nn.relu(BatchNorm(axis_name=self.axis_name)(x, train=train))
        return local, nn.sigmoid(Dense(self.dim)(x))


@export("ssl.GlobalCritic", since="0.1")
class GlobalCritic(nn.Module):
    """Scores a code with a whole map, by an MLP of both.

    Attributes:
        hidden: width of its two layers.
        axis_name: mesh axis the batch is split over.
    """

    hidden: int = 512
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, local: Float[Array, "batch rows columns features"], y: Array
    ) -> Float[Array, "batch everyone"]:
        """Returns T(map_j, y_i) of the local codes i with the maps j of all devices."""
        # The first layer of a concatenation is a sum: no pair is ever concatenated.
        of_maps = Dense(self.hidden, use_bias=False)(local.reshape(len(local), -1))
        of_maps = all_gather(of_maps, self.axis_name)
        x = nn.relu(of_maps[None] + Dense(self.hidden)(y)[:, None])
        x = nn.relu(Dense(self.hidden)(x))
        return Dense(1)(x)[..., 0]


@export("ssl.LocalCritic", since="0.1")
class LocalCritic(nn.Module):
    """Scores a code with the features at each place.

    Attributes:
        kind: "dot" maps both into one space ("encode and dot"); "concat" is an MLP of
            both at every place ("concat and convolve").
        width: of that space, or of the MLP's two layers; 2048 and 512 in the paper.
        axis_name: mesh axis the batch is split over.
    """

    kind: Literal["dot", "concat"] = "dot"
    width: int = 2048
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, local: Float[Array, "batch rows columns features"], y: Array
    ) -> Float[Array, "batch everyone places"]:
        """Returns T(C_j^(l), y_i) of the local codes i with the maps j of all devices."""
        flat = local.reshape(len(local), -1, local.shape[-1])
        if self.kind == "dot":
            maps = nn.LayerNorm()(Dense(self.width)(flat) + self._tower(flat))
            codes = Dense(self.width)(y) + self._tower(y)
            maps = all_gather(maps, self.axis_name)
            return jnp.einsum("id,jld->ijl", codes, maps, precision="highest")
        of_maps = all_gather(Dense(self.width, use_bias=False)(flat), self.axis_name)
        x = nn.relu(of_maps[None] + Dense(self.width)(y)[:, None, None])
        x = nn.relu(Dense(self.width)(x))
        return Dense(1)(x)[..., 0]

    def _tower(self, x: Array) -> Array:
        return Dense(self.width)(nn.relu(Dense(self.width)(x)))


@export("ssl.PriorCritic", since="0.1")
class PriorCritic(nn.Module):
    """Tells codes from samples of the prior; returns logits.

    Attributes:
        widths: of the hidden layers.
    """

    widths: Sequence[int] = (1000, 200)

    @nn.compact
    def __call__(self, y: Float[Array, "batch dim"]) -> Float[Array, "batch"]:
        x = y
        for width in self.widths:
            x = nn.relu(Dense(width)(x))
        return Dense(1)(x)[:, 0]


@export("ssl.estimate_information", since="0.1")
def estimate_information(
    scores: Float[Array, "batch everyone places"],
    estimator: Estimator = "jsd",
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Information of a code about each place, from a critic on all pairs.

    Args:
        scores: of the local codes with all maps; a global critic has one place.
        estimator: "jsd", "dv" or "info_nce", whose negatives are all places of all
            other images.
        axis_name: mesh axis the batch is split over, or None.

    Raises:
        ValueError: if the estimator is unknown, or there is no other image.
    """
    if scores.shape[1] < 2:
        raise ValueError("there must be another image in the batch, got none")
    places = [split_scores(scores[..., i], axis_name) for i in range(scores.shape[2])]
    joint = jnp.stack([own for own, _ in places], axis=1)
    product = jnp.concatenate([others for _, others in places], axis=1)
    if estimator == "jsd":
        return jensen_shannon(joint, product)
    if estimator == "dv":
        return donsker_varadhan(joint, product, axis_name)
    if estimator == "info_nce":
        shape = (*joint.shape, product.shape[1])
        return info_nce_bound(joint, jnp.broadcast_to(product[:, None], shape))
    raise ValueError(f"estimator must be 'jsd', 'dv' or 'info_nce', got {estimator!r}")


@export("ssl.deep_infomax", since="0.1")
def deep_infomax(
    encoder: nn.Module,
    *,
    alpha: float = 0.0,
    beta: float = 1.0,
    gamma: float = 0.1,
    estimator: Estimator = "jsd",
    global_critic: GlobalCritic | None = None,
    local_critic: LocalCritic | None = None,
    prior_critic: PriorCritic | None = None,
    axis_name: str | None = None,
) -> Method:
    """The Deep InfoMax method; a batch holds `image`, without any augmentation.

    `predict` returns the code [batch, dim] of `image`. The parameters are `encoder` and,
    for each term whose weight is not zero, `global_critic`, `local_critic` and
    `prior_critic`. Metrics: the loss; the estimates `global_information` and
    `local_information`, in nats for DV and InfoNCE; `prior_accuracy`, near one half where
    codes and prior cannot be told apart; and `feature_std` of the code (near 1 healthy,
    0 collapsed).

    Args:
        encoder: module taking (images, train) to (local features, code in [0, 1]).
        alpha: weight of the global term.
        beta: weight of the local term.
        gamma: weight of the prior term.
        estimator: of the information.
        global_critic, local_critic, prior_critic: by default those of the paper.
        axis_name: mesh axis the batch is split over, or None; give the encoder the same.

    Raises:
        ValueError: if a weight is negative, or neither alpha nor beta is positive.
    """
    if min(alpha, beta, gamma) < 0 or alpha + beta == 0:
        raise ValueError(
            "weights must not be negative, and alpha or beta positive, got "
            f"{alpha}, {beta} and {gamma}"
        )
    critics: dict[str, nn.Module] = {}
    if alpha:
        critics["global_critic"] = global_critic or GlobalCritic()
    if beta:
        critics["local_critic"] = local_critic or LocalCritic()
    critics = {k: m.clone(axis_name=axis_name) for k, m in critics.items()}
    alone = {k: m.clone(axis_name=None) for k, m in critics.items()}
    discriminator = prior_critic or PriorCritic()

    def init(key: PRNGKeyArray, batch: Batch) -> tuple[Params, ModelState]:
        keys = iter(jax.random.split(key, 4))
        params = {}
        params["encoder"], stats = init_module(
            encoder, next(keys), batch["image"], train=True
        )
        local, y = encoder.apply(
            {"params": params["encoder"], **stats}, batch["image"], train=False
        )
        for name, critic in alone.items():
            params[name] = critic.init(next(keys), local, y)["params"]
        if gamma:
            params["prior_critic"] = discriminator.init(next(keys), y)["params"]
        return params, stats

    def prior_terms(params: Params, y: Array, key: PRNGKeyArray) -> tuple[Array, Array]:
        """Both losses of the game, and the share that is told right."""
        keys = sample_keys(key, len(y), axis_name)
        real = jax.vmap(lambda key: jax.random.uniform(key, y.shape[1:]))(keys)

        def judge(params: Params, y: Array) -> Any:
            return discriminator.apply({"params": params}, y)

        judges = params["prior_critic"]
        of_real, of_codes = judge(judges, real), judge(judges, lax.stop_gradient(y))
        fooled = judge(lax.stop_gradient(judges), y)
        told = jax.nn.softplus(-of_real) + jax.nn.softplus(of_codes)
        value = jnp.mean(told) + gamma * jnp.mean(jax.nn.softplus(-fooled))
        right = jnp.mean(of_real > 0, dtype=jnp.float32) + jnp.mean(
            of_codes < 0, dtype=jnp.float32
        )
        return value, right / 2

    def loss(
        params: Params, model_state: ModelState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[ModelState, Metrics]]:
        (local, y), model_state = apply_module(
            encoder, params["encoder"], model_state, batch["image"], train=True
        )
        metrics = {"feature_std": feature_std(y, axis_name=axis_name)}
        value = jnp.zeros(())
        for name, weight in (("global", alpha), ("local", beta)):
            if weight:
                critic = critics[f"{name}_critic"]
                scores: Any = critic.apply(
                    {"params": params[f"{name}_critic"]}, local, y
                )
                scores = scores.reshape(*scores.shape[:2], -1)
                information = estimate_information(scores, estimator, axis_name)
                metrics[f"{name}_information"] = information
                value -= weight * information
        if gamma:
            prior, metrics["prior_accuracy"] = prior_terms(params, y, key)
            value += prior
        return value, (model_state, {"loss": value, **metrics})

    def predict(
        params: Params, model_state: ModelState, batch: Batch
    ) -> Float[Array, "batch dim"]:
        (_, y), _ = apply_module(
            encoder, params["encoder"], model_state, batch["image"], train=False
        )
        return y

    return Method(init, loss, predict)


@export("ssl.prior_optimizer", since="0.1")
def prior_optimizer(
    encoder: optax.GradientTransformation, prior: optax.GradientTransformation
) -> optax.GradientTransformation:
    """One optimizer for the discriminator of the prior, another for everything else."""

    def labels(params: Params) -> dict[str, str]:
        return {k: "prior" if k == "prior_critic" else "encoder" for k in params}

    return optax.partition({"encoder": encoder, "prior": prior}, labels)
