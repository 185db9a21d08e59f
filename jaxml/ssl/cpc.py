"""CPC: predict the code of what comes next from a summary of what came before.

An encoder makes a code z of every piece of an input, of a patch or of a stretch of signal;
a causal network sums them up to a context c; a linear map W_k of the context predicts the
code k steps ahead, which is to be found among the codes of all other places in the batch:

    L = mean over k of  -log exp(z_{t+k} . W_k c_t) / sum_j exp(z_j . W_k c_t).

In images a step is a row: overlapping patches lie on a grid, and the context of a place
knows its own row and those above. Version 2 predicts in four directions (the grid turned),
normalises layers, and augments every patch on its own. In a signal the encoder is a stack
of strided convolutions and the context a GRU.

The traps: batch norm, or a convolution over the whole image, lets codes of neighbours leak
into each other, and the prediction becomes trivial: patches are encoded apart, without
batch norm. The context must be strictly causal. And negatives from the same image are
needed, or the image is recognised by its colours.

Reference: van den Oord, Li and Vinyals, "Representation Learning with Contrastive
Predictive Coding", 2018, https://arxiv.org/abs/1807.03748 (equations 3 and 4, sections 3.1
and 3.3); Henaff et al., "Data-Efficient Image Recognition with Contrastive Predictive
Coding", ICML 2020, https://arxiv.org/abs/1905.09272 (version 2). Deviations: the encoders
are small ones, any module will do; negatives are all other places of the global batch that
are k steps ahead of some context.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxml.export import export
from jaxml.losses.noise_contrastive import info_nce_rows
from jaxml.method import Batch, Method, Metrics, ModelState, Params
from jaxml.metrics.collapse import feature_std
from jaxml.nn.conv import Conv
from jaxml.nn.dense import Dense
from jaxml.nn.functional import apply_module, init_module
from jaxml.ops.augment import View
from jaxml.parallel.collectives import axis_size
from jaxml.typing import Array, Float, PRNGKeyArray

Pair = tuple[Array, Array]
"""Predictions and what they predict, [batch, places, dim] each."""


@export("ssl.patch_grid", since="0.1")
def patch_grid(
    image: Float[Array, "*batch height width channels"], size: int, stride: int
) -> Float[Array, "*batch rows columns size size channels"]:
    """Overlapping patches; what does not fill one at the right and below is left out.

    Raises:
        ValueError: unless size and stride are positive and a patch fits.

    >>> patch_grid(jnp.zeros((256, 256, 3)), 64, 32).shape  # the paper's
    (7, 7, 64, 64, 3)
    """
    height, width = image.shape[-3:-1]
    if not 1 <= size <= min(height, width) or stride < 1:
        raise ValueError(
            f"patches must fit into {height} x {width} pixels, got size {size} and "
            f"stride {stride}"
        )
    rows = jnp.arange(0, height - size + 1, stride)[:, None] + jnp.arange(size)[None]
    columns = jnp.arange(0, width - size + 1, stride)[:, None] + jnp.arange(size)[None]
    picked = jnp.take(jnp.take(image, rows, axis=-3), columns, axis=-2)
    # [..., rows, size, columns, size, channels]
    return jnp.moveaxis(picked, -4, -3)


@export("ssl.PatchEncoder", since="0.1")
class PatchEncoder(nn.Module):
    """A code for each patch on its own: strided convolutions, no batch norm, the mean.

    Attributes:
        widths: channels of the convolutions; the last is the size of the code.
        normalize: layer norm after every convolution, as in version 2.
    """

    widths: Sequence[int] = (64, 128, 256)
    normalize: bool = False

    @nn.compact
    def __call__(
        self, patches: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch dim"]:
        x = patches
        for i, width in enumerate(self.widths):
            x = Conv(width, 3, stride=1 if i == 0 else 2, use_bias=True)(x)
            if self.normalize:
                x = nn.LayerNorm()(x)
            if i < len(self.widths) - 1:
                x = nn.relu(x)
        return jnp.mean(x, axis=(1, 2))


@export("ssl.RowContext", since="0.1")
class RowContext(nn.Module):
    """Sums up a grid of codes so that a place knows its own row and those above.

    Attributes:
        width: of the context and of the layers.
        num_layers: residual layers; each sees one row and one column more.
        normalize: layer norm before every layer.
    """

    width: int = 256
    num_layers: int = 5
    normalize: bool = False

    @nn.compact
    def __call__(
        self, z: Float[Array, "batch rows columns dim"]
    ) -> Float[Array, "batch rows columns width"]:
        x = Dense(self.width)(z)
        for _ in range(self.num_layers):
            y = nn.LayerNorm()(x) if self.normalize else x
            # Zeros above and none below: row i sees i - 1 and i.
            causal = ((1, 0), (1, 1))
            y = Conv(self.width, (2, 3), padding=causal, use_bias=True)(nn.relu(y))
            x = x + Dense(self.width)(nn.relu(y))
        return nn.relu(x)


@export("ssl.CPC", since="0.1")
class CPC(nn.Module):
    """CPC of images; reads `patches` [batch, rows, columns, size, size, channels].

    Attributes:
        encoder: module taking (patches [n, size, size, channels], train) to codes.
        context_width: of the context network.
        context_layers: of the context network.
        num_steps: rows ahead that are predicted; 5 of 7 in the paper.
        directions: 1 downwards; 4 also from the other sides (version 2).
        normalize: layer norm in the context network (version 2).
        size: of the patches that an image is cut into for `predict`.
        stride: between them.
        axis_name: mesh axis the batch is split over.
    """

    encoder: nn.Module
    context_width: int = 256
    context_layers: int = 5
    num_steps: int = 5
    directions: int = 1
    normalize: bool = False
    size: int = 64
    stride: int = 32
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, patches: Array, *, train: bool
    ) -> tuple[Float[Array, "batch dim"], list[Pair]]:
        """Returns the mean code of each image, and predictions with their targets."""
        z = self.encode(patches, train=train)
        pairs: list[Pair] = []
        for turn in range(self.directions):
            turned = jnp.rot90(z, turn, axes=(1, 2))
            if turned.shape[1] <= self.num_steps:
                raise ValueError(
                    f"the grid must have more than {self.num_steps} rows and columns, "
                    f"got {z.shape[1:3]}"
                )
            context = RowContext(
                self.context_width, self.context_layers, self.normalize
            )(turned)
            for k in range(1, self.num_steps + 1):
                predicted = Dense(z.shape[-1], use_bias=False)(context[:, :-k])
                pairs.append((_flat(predicted), _flat(turned[:, k:])))
        return jnp.mean(z, axis=(1, 2)), pairs

    def encode(self, patches: Array, *, train: bool) -> Array:
        """Codes [batch, rows, columns, dim]."""
        grid = patches.shape[:3]
        z = self.encoder(patches.reshape(-1, *patches.shape[3:]), train=train)
        return z.reshape(*grid, -1)

    def cut(self, batch: Batch) -> Array:
        """The input, from `patches` or else from `image`."""
        if "patches" in batch:
            return batch["patches"]
        return patch_grid(batch["image"], self.size, self.stride)


@export("ssl.SignalCPC", since="0.1")
class SignalCPC(nn.Module):
    """CPC of signals; reads `signal` [batch, time, channels].

    The defaults are the paper's for speech at 16 kHz: a code for every 160 samples.

    Attributes:
        width: of the codes.
        kernels: sizes of the encoder's convolutions.
        strides: their strides.
        context_width: of the GRU.
        num_steps: codes ahead that are predicted.
        axis_name: mesh axis the batch is split over.
    """

    width: int = 512
    kernels: Sequence[int] = (10, 8, 4, 4, 4)
    strides: Sequence[int] = (5, 4, 2, 2, 2)
    context_width: int = 256
    num_steps: int = 12
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, signal: Float[Array, "batch time channels"], *, train: bool
    ) -> tuple[Float[Array, "batch width"], list[Pair]]:
        """Returns the mean context of each signal, and predictions with their targets."""
        del train  # nothing here is random or a batch statistic
        z = jnp.asarray(signal)
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            # Zeros before and none behind: a code knows no later sample.
            padding = ((kernel - 1, 0),)
            z = nn.Conv(self.width, (kernel,), (stride,), padding=padding)(z)
            z = nn.relu(z)
        if z.shape[1] <= self.num_steps:
            raise ValueError(
                f"the signal must have more than {self.num_steps} codes, got "
                f"{z.shape[1]} of {signal.shape[1]} samples"
            )
        context: Any = nn.RNN(nn.GRUCell(self.context_width))(z)
        pairs: list[Pair] = []
        for k in range(1, self.num_steps + 1):
            predicted = Dense(self.width, use_bias=False)(context[:, :-k])
            pairs.append((predicted, z[:, k:]))
        return jnp.mean(context, axis=1), pairs

    def cut(self, batch: Batch) -> Array:
        """The input."""
        return batch["signal"]


@export("ssl.cpc_loss", since="0.1")
def cpc_loss(
    pairs: Sequence[Pair], axis_name: str | None = None
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The mean InfoNCE over all predictions, in nats, and the share that finds its own.

    Args:
        pairs: predictions and targets, [batch, places, dim] each; every step's mean
            counts the same.
        axis_name: mesh axis the batch is split over, or None.

    Raises:
        ValueError: if there are none, or two of a pair differ in shape.
    """
    if not pairs:
        raise ValueError("there must be a prediction, got none")
    losses, found = [], []
    for predicted, target in pairs:
        rows = [x.reshape(-1, x.shape[-1]) for x in (predicted, target)]
        contrast = info_nce_rows(*rows, axis_name=axis_name)
        losses.append(jnp.mean(contrast.loss))
        found.append(jnp.mean(contrast.found, dtype=jnp.float32))
    return jnp.mean(jnp.stack(losses)), jnp.mean(jnp.stack(found))


@export("ssl.cpc", since="0.1")
def cpc(model: CPC | SignalCPC) -> Method:
    """The CPC method; a batch holds `patches` (or `image`, which is cut), or `signal`.

    `predict` returns the mean code [batch, dim] of `image`, or the mean context of
    `signal`. Metrics: the loss, the share of predictions nearer to their code than to all
    others (`accuracy`), and what `jaxml.metrics.diagnose` reads: `feature_std` of what
    `predict` returns (near 1 healthy, 0 collapsed) and `loss_at_chance`.
    """

    def init(key: PRNGKeyArray, batch: Batch) -> tuple[Params, ModelState]:
        return init_module(model, key, model.cut(batch), train=True)

    def loss(
        params: Params, model_state: ModelState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[ModelState, Metrics]]:
        del key  # patches are augmented before
        (features, pairs), model_state = apply_module(
            model, params, model_state, model.cut(batch), train=True
        )
        value, accuracy = cpc_loss(pairs, model.axis_name)
        std = feature_std(features, axis_name=model.axis_name)
        places = [len(p) * p.shape[1] * axis_size(model.axis_name) for p, _ in pairs]
        metrics = {
            "loss": value,
            "loss_at_chance": jnp.float32(np.mean(np.log(places))),
            "accuracy": accuracy,
            "feature_std": std,
        }
        return value, (model_state, metrics)

    def predict(
        params: Params, model_state: ModelState, batch: Batch
    ) -> Float[Array, "batch dim"]:
        plain = {k: v for k, v in batch.items() if k != "patches"}
        (features, _), _ = apply_module(
            model, params, model_state, model.cut(plain), train=False
        )
        return features

    return Method(init, loss, predict)


@export("ssl.patch_views", since="0.1")
def patch_views(size: int, stride: int, augment: View | None = None) -> Any:
    """(key, image) -> {"patches": ...}, every patch augmented on its own (version 2).

    Args:
        size: of the patches.
        stride: between them.
        augment: (key, patch) -> patch of any one size; None leaves them.
    """

    def views(key: PRNGKeyArray, image: Array) -> dict[str, Array]:
        patches = patch_grid(image, size, stride)
        if augment is None:
            return {"patches": patches}
        grid = patches.shape[:2]
        flat = patches.reshape(-1, *patches.shape[2:])
        flat = jax.vmap(augment)(jax.random.split(key, len(flat)), flat)
        return {"patches": flat.reshape(*grid, *flat.shape[1:])}

    return views


def _flat(grid: Float[Array, "batch rows columns dim"]) -> Array:
    return grid.reshape(len(grid), -1, grid.shape[-1])
