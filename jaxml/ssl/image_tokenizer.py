"""A discrete variational autoencoder: pictures as words of a learned vocabulary.

An encoder gives every patch x_p a distribution q over K codes, a decoder paints the image
from one code for each. The choice is relaxed, so that it has a gradient: with Gumbel noise
g and a temperature t that falls as training goes on,

    w_p = softmax((log q_p + g_p) / t),    z_p = sum_k w_pk e_k,
    L   = (R(x, decoder(z)) + beta sum_p KL(q_p || uniform)) / values of an image.

R is the negative log-likelihood of the logit-Laplace distribution, whose support are the
values a pixel can have, or the squared error. Afterwards a patch's token is argmax q_p.

The trap is a codebook that dies: a few codes do all. `usage` and `perplexity` tell; the
term of beta, and a temperature that starts at 1, work against it.

Reference: Ramesh et al., "Zero-Shot Text-to-Image Generation", ICML 2021,
https://arxiv.org/abs/2102.12092 (section 2.1, appendices A.2 and A.3; schedules of
temperature and beta); Jang, Gu and Poole, "Categorical Reparameterization with
Gumbel-Softmax", ICLR 2017, https://arxiv.org/abs/1611.01144 (equation 2; straight-through,
section 2.2); van den Oord et al., "Neural Discrete Representation Learning", NeurIPS 2017,
https://arxiv.org/abs/1711.00937 (codebooks). Deviation: a smaller network, strided
convolutions and one residual block on either side.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxml.export import export
from jaxml.method import Batch, Method, Metrics, ModelState, Params
from jaxml.nn.conv import Conv
from jaxml.nn.deconv import Deconv
from jaxml.nn.functional import init_module
from jaxml.parallel.collectives import psum, sample_keys
from jaxml.typing import Array, Float, Int, PRNGKeyArray

Images = Float[Array, "batch height width channels"]
Codes = Float[Array, "batch rows columns codes"]


@export("ssl.gumbel_softmax", since="0.1")
def gumbel_softmax(
    logits: Codes,
    noise: Codes,
    temperature: Float[Array, ""] | float,
    *,
    straight_through: bool = False,
) -> Codes:
    """A relaxed draw from softmax(logits): weights of the codes, which sum to 1.

    Args:
        logits: of the codes.
        noise: of Gumbel's distribution.
        temperature: above 0; towards 0 the weights become a draw of one code.
        straight_through: return that one code, with the gradient of the weights.

    Raises:
        ValueError: if the shapes differ.
    """
    if logits.shape != noise.shape:
        raise ValueError(
            f"logits and noise must have one shape, got {logits.shape}, {noise.shape}"
        )
    weights = jax.nn.softmax((logits + noise) / temperature, axis=-1)
    if not straight_through:
        return weights
    code = jnp.argmax(weights, axis=-1)
    one = jax.nn.one_hot(code, logits.shape[-1], dtype=weights.dtype)
    return one + weights - lax.stop_gradient(weights)


@export("ssl.uniform_kl", since="0.1")
def uniform_kl(logits: Codes) -> Float[Array, "batch"]:
    """KL(softmax(logits) || uniform) in nats, summed over the places of an image."""
    log_q = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    entropy = -jnp.sum(jnp.exp(log_q) * log_q, axis=-1)
    return jnp.sum(jnp.log(float(logits.shape[-1])) - entropy, axis=(1, 2))


@export("ssl.logit_laplace_loss", since="0.1")
def logit_laplace_loss(
    outputs: Float[Array, "batch height width parameters"],
    images: Images,
    *,
    margin: float = 0.1,
) -> Float[Array, ""]:
    """The mean negative log-likelihood in nats per value.

    A value x in [0, 1] becomes y = margin + (1 - 2 margin) x, and logit(y) is Laplace
    distributed: L = ln(2 b y (1 - y)) + |logit(y) - mu| / b.

    Args:
        outputs: mu of every channel, and behind them ln b.
        images: in [0, 1].
        margin: how far values stay away from 0 and 1, in (0, 1/2).

    Raises:
        ValueError: if there are not two parameters for every channel, or the margin is
            out of range.
    """
    if outputs.shape != (*images.shape[:3], 2 * images.shape[3]):
        raise ValueError(
            f"outputs must have two parameters for each of {images.shape}, "
            f"got {outputs.shape}"
        )
    if not 0 < margin < 0.5:
        raise ValueError(f"margin must be in (0, 1/2), got {margin}")
    mu, log_b = jnp.split(outputs.astype(jnp.float32), 2, axis=-1)
    y = margin + (1 - 2 * margin) * images.astype(jnp.float32)
    logit = jnp.log(y) - jnp.log1p(-y)
    scale = jnp.log(2 * y * (1 - y)) + log_b
    return jnp.mean(scale + jnp.abs(logit - mu) * jnp.exp(-log_b))


@export("ssl.ImageTokenizer", since="0.1")
class ImageTokenizer(nn.Module):
    """Encoder, codebook and decoder, all convolutional.

    Attributes:
        vocab_size: number of codes.
        downsamples: halvings; a code is a patch of 2^downsamples pixels a side.
        width: channels inside.
        code_width: of a code's vector.
        channels: of the images.
        likelihood: "logit_laplace", or "mse" for the squared error.
        axis_name: mesh axis the batch is split over.
    """

    vocab_size: int = 8192
    downsamples: int = 3
    width: int = 256
    code_width: int = 128
    channels: int = 3
    likelihood: str = "logit_laplace"
    axis_name: str | None = None

    def setup(self) -> None:
        if self.likelihood not in ("logit_laplace", "mse"):
            raise ValueError(
                f"likelihood must be logit_laplace or mse, got {self.likelihood!r}"
            )
        width, count = self.width, range(self.downsamples)
        conv: dict[str, Any] = {"use_bias": True}
        self.downs = [Conv(width, 4, 2, padding=1, **conv) for _ in count]
        self.inner = [Conv(width, 3, **conv) for _ in range(2)]
        self.to_logits = Conv(self.vocab_size, 1, **conv)
        shape = (self.vocab_size, self.code_width)
        self.codebook = self.param("codebook", nn.initializers.normal(1.0), shape)
        self.from_codes = Conv(width, 1, **conv)
        self.outer = [Conv(width, 3, **conv) for _ in range(2)]
        start = nn.initializers.lecun_normal()
        self.ups = [Deconv(width, 2, 4, 1, kernel_init=start) for _ in count]
        parameters = 2 if self.likelihood == "logit_laplace" else 1
        self.paint = Conv(parameters * self.channels, 1, **conv)

    def __call__(self, images: Images) -> tuple[Codes, Array]:
        """Returns logits of the codes, and what the decoder makes of the likeliest."""
        logits = self.encode(images)
        best = jax.nn.one_hot(jnp.argmax(logits, axis=-1), self.vocab_size)
        return logits, self.decode(best.astype(logits.dtype))

    def encode(self, images: Images) -> Codes:
        """Logits of the codes of every patch.

        Raises:
            ValueError: if the images are not whole patches.
        """
        side = 2**self.downsamples
        if images.shape[1] % side or images.shape[2] % side:
            raise ValueError(
                f"images must be whole patches of {side} x {side}, got {images.shape}"
            )
        x = images
        for conv in self.downs:
            x = nn.relu(conv(x))
        return self.to_logits(nn.relu(x + self._branch(self.inner, x)))

    def decode(self, weights: Codes) -> Float[Array, "batch height width parameters"]:
        """Parameters of the pixels from weights of the codes."""
        x = self.from_codes(weights @ self.codebook.astype(weights.dtype))
        x = nn.relu(x + self._branch(self.outer, x))
        for conv in self.ups:
            x = nn.relu(conv(x))
        return self.paint(x)

    def tokens(self, images: Images) -> Int[Array, "batch patches"]:
        """The likeliest code of every patch, row by row."""
        return jnp.argmax(self.encode(images), axis=-1).reshape(len(images), -1)

    def pictures(self, images: Images) -> Images:
        """Images made of their tokens alone, in [0, 1]."""
        outputs = self(images)[1].astype(jnp.float32)
        if self.likelihood == "mse":
            return jnp.clip(outputs, 0, 1)
        y = nn.sigmoid(outputs[..., : self.channels])
        return jnp.clip((y - 0.1) / 0.8, 0, 1)

    def _branch(self, convs: Sequence[nn.Module], x: Array) -> Array:
        return convs[1](nn.relu(convs[0](nn.relu(x))))


@export("ssl.image_tokenizer", since="0.1")
def image_tokenizer(
    model: ImageTokenizer,
    *,
    num_steps: int = 150_000,
    temperatures: tuple[float, float] = (1.0, 1 / 16),
    kl_weight: float = 6.6,
    kl_steps: int = 5000,
    straight_through: bool = False,
) -> Method:
    """The discrete autoencoder; a batch holds one image, `view`, in [0, 1].

    `predict` returns tokens [batch, patches] of `image`. Model state: `temperature` and
    `kl_weight`, which follow their schedules. Metrics: the loss; `reconstruction` in nats
    (or squared error) per value; `kl` in nats per token; of the batch's likeliest codes
    the share of all codes that occur (`usage`) and the exponential of their entropy
    (`perplexity`, at most the number of codes).

    Args:
        model: encoder and decoder.
        num_steps: updates over which the temperature falls, along a cosine.
        temperatures: at the start and at the end.
        kl_weight: beta; in the paper 6.6, and 0 at the start.
        kl_steps: updates over which beta rises.
        straight_through: decode the one code that was drawn, not a mixture.

    Raises:
        ValueError: if the temperatures are not positive and falling, or steps or weight
            out of range.
    """
    start, end = temperatures
    if not 0 < end <= start or kl_weight < 0 or min(num_steps, kl_steps) < 1:
        raise ValueError(
            "temperatures must fall and stay above 0, and the weight not be negative, "
            f"got {temperatures} and {kl_weight}, in {num_steps} and {kl_steps} steps"
        )
    cooling = optax.cosine_decay_schedule(start, num_steps, end / start)
    rising = optax.linear_schedule(0.0, kl_weight, kl_steps)

    def schedules(step: Array) -> ModelState:
        names = {"temperature": cooling, "kl_weight": rising}
        return {name: jnp.float32(f(step)) for name, f in names.items()}

    def init(key: PRNGKeyArray, batch: Batch) -> tuple[Params, ModelState]:
        params, _ = init_module(model, key, batch["view"])
        return params, schedules(jnp.zeros((), jnp.int32))

    def loss(
        params: Params, model_state: ModelState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[ModelState, Metrics]]:
        images, variables = batch["view"], {"params": params}
        logits: Any = model.apply(variables, images, method="encode")
        keys = sample_keys(key, len(images), model.axis_name)
        noise = jax.vmap(lambda k: jax.random.gumbel(k, logits.shape[1:]))(keys)
        weights = gumbel_softmax(
            logits.astype(jnp.float32),
            noise,
            model_state["temperature"],
            straight_through=straight_through,
        )
        mixture = weights.astype(logits.dtype)
        outputs: Any = model.apply(variables, mixture, method="decode")
        if model.likelihood == "mse":
            error = outputs.astype(jnp.float32) - images.astype(jnp.float32)
            rebuilt = jnp.mean(jnp.square(error))
        else:
            rebuilt = jnp.asarray(logit_laplace_loss(outputs, images))
        kl, values = jnp.mean(uniform_kl(logits)), images[0].size
        value = rebuilt + model_state["kl_weight"] * kl / values
        places = logits.shape[1] * logits.shape[2]
        metrics = {"loss": value, "reconstruction": rebuilt, "kl": kl / places}
        metrics |= code_usage(jnp.argmax(logits, axis=-1), model)
        return value, (model_state, metrics)

    def predict(
        params: Params, model_state: ModelState, batch: Batch
    ) -> Int[Array, "batch patches"]:
        codes: Any = model.apply({"params": params}, batch["image"], method="tokens")
        return codes

    def after_update(
        params: Params, model_state: ModelState, step: Int[Array, ""]
    ) -> tuple[Params, ModelState]:
        return params, schedules(step + 1)  # for the update that comes next

    return Method(init, loss, predict, after_update)


def code_usage(
    codes: Int[Array, "batch rows columns"], model: ImageTokenizer
) -> dict[str, Float[Array, ""]]:
    """`usage`, the share of codes that occur, and `perplexity` of their frequencies."""
    counts = jnp.zeros(model.vocab_size).at[codes.reshape(-1)].add(1.0)
    counts = psum(counts, model.axis_name)
    share = counts / jnp.sum(counts)
    entropy = -jnp.sum(share * jnp.log(jnp.maximum(share, 1e-30)))
    usage = jnp.mean(counts > 0, dtype=jnp.float32)
    return {"usage": usage, "perplexity": jnp.exp(entropy)}
