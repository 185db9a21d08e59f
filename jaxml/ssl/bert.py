"""BERT: tell the words that are missing from a sentence, from both of its sides.

Of the tokens of a sentence 15% are to be told, and most of them hidden: see
`jaxml.ssl.mask_tokens`. With C the chosen places:

    L = mean over i in C of  -log P(x_i | tokens),    logits_i = E g(h_i) + b,
        g(h) = norm(gelu(h W + c)),    E the embeddings of words, shared,

and, if asked for, the cross-entropy of whether the second of two sentences follows the
first. The choice is drawn anew in every step, on the device ("dynamic masking").

The traps: padding is no key of attention; and the mean is over the choices of all devices,
which have not equally many.

Reference: Devlin, Chang, Lee and Toutanova, "BERT: Pre-training of Deep Bidirectional
Transformers for Language Understanding", NAACL 2019, https://arxiv.org/abs/1810.04805
(section 3, appendix A.1 and A.2); Liu et al., "RoBERTa",
https://arxiv.org/abs/1907.11692 (dynamic masking). Deviations: the matrices inside the
blocks start as Xavier draws them, not at deviation 0.02; no dropout inside attention.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxml.attention import attention
from jaxml.export import export
from jaxml.method import Batch, Method, Metrics, ModelState, Params
from jaxml.nn.activations import gelu
from jaxml.nn.dense import Dense
from jaxml.nn.dropout import Dropout
from jaxml.nn.functional import apply_module, init_module
from jaxml.nn.transformer import TransformerBlock
from jaxml.parallel.collectives import pmean, sample_keys
from jaxml.ssl.mask_tokens import mask_tokens
from jaxml.typing import Array, Bool, Float, Int, PRNGKeyArray

small = nn.initializers.truncated_normal(0.02)
Tokens = Int[Array, "batch length"]
Hidden = Float[Array, "batch length dim"]


@export("ssl.masked_lm_loss", since="0.1")
def masked_lm_loss(
    logits: Float[Array, "batch places vocab"],
    labels: Int[Array, "batch places"],
    chosen: Bool[Array, "batch places"],
    *,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Cross-entropy in nats per chosen token.

    Args:
        logits: of every place.
        labels: what stood there.
        chosen: False where nothing is to be told.
        axis_name: mesh axis the batch is split over, or None: the mean over the devices
            of what this returns is the mean over the choices of all.

    Raises:
        ValueError: if the shapes do not fit one another.
    """
    if not logits.shape[:2] == labels.shape == chosen.shape:
        raise ValueError(
            "labels and chosen must have the places of the logits, "
            f"got {labels.shape}, {chosen.shape} and {logits.shape}"
        )
    losses = optax.softmax_cross_entropy_with_integer_labels(
        logits.astype(jnp.float32), labels
    )
    return _share(losses * chosen, chosen, axis_name)


def _share(values: Array, chosen: Array, axis_name: str | None) -> Array:
    count = pmean(jnp.sum(chosen, dtype=jnp.float32), axis_name)
    return jnp.sum(values) / jnp.maximum(count, 1e-6)


@export("ssl.BertEncoder", since="0.1")
class BertEncoder(nn.Module):
    """Embeddings of words, places and segments, and post-norm transformer blocks.

    Attributes:
        vocab_size: number of tokens.
        width: of the residual stream.
        depth: number of blocks.
        heads: of attention; they divide the width.
        hidden: width of the feedforward layers.
        max_length: longest sentence.
        num_types: number of segments.
        pad: the token that is padding, which nothing attends to; None has none.
        pool: what features are: "class", of the first token, or "mean", of all but
            padding.
        dropout: rate after the embeddings and after every dense layer of a block.
        epsilon: of the layer norms.
        attention: a function (q, k, v, **options), see `nn.MultiHeadAttention`.
        axis_name: mesh axis the batch is split over.
        dtype: of computation; None takes the widest of input and parameters.
        param_dtype: of the parameters.
    """

    vocab_size: int = 30522
    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    max_length: int = 512
    num_types: int = 2
    pad: int | None = 0
    pool: str = "class"
    dropout: float = 0.1
    epsilon: float = 1e-12
    attention: Callable[..., Array] = attention
    axis_name: str | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32

    def setup(self) -> None:
        if self.pool not in ("class", "mean"):
            raise ValueError(f"pool must be class or mean, got {self.pool!r}")
        sizes = {
            "word": self.vocab_size,
            "position": self.max_length,
            "type": self.num_types,
        }
        self.tables = {
            name: self.param(name, small, (size, self.width), self.param_dtype)
            for name, size in sizes.items()
        }
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.embed_norm = nn.LayerNorm(self.epsilon, **kinds)
        self.embed_dropout = Dropout(self.dropout, axis_name=self.axis_name)
        self.blocks = [
            TransformerBlock(
                self.heads,
                self.hidden,
                self.attention,
                norm="post",
                dropout=self.dropout,
                epsilon=self.epsilon,
                axis_name=self.axis_name,
                **kinds,
            )
            for _ in range(self.depth)
        ]

    def __call__(
        self,
        tokens: Tokens,
        types: Tokens | None = None,
        mask: Bool[Array, "batch length"] | None = None,
        *,
        train: bool,
    ) -> Float[Array, "batch dim"]:
        """Returns the pooled features; the arguments are those of `tokens`."""
        x = self.tokens(tokens, types, mask, train=train)
        if self.pool == "class":
            return x[:, 0]
        real = self._real(tokens, mask)[..., None]
        count = jnp.maximum(jnp.sum(real, axis=1), 1)
        return jnp.sum(jnp.where(real, x, 0), axis=1) / count.astype(x.dtype)

    def tokens(
        self,
        tokens: Tokens,
        types: Tokens | None = None,
        mask: Bool[Array, "batch length"] | None = None,
        *,
        train: bool,
    ) -> Hidden:
        """Returns what the last block makes of every token.

        Args:
            tokens: numbers below `vocab_size`.
            types: the segment of every token; None, all of the first.
            mask: True for real tokens; None, all that are not `pad`.
            train: whether there is dropout.

        Raises:
            ValueError: if there are more tokens than `max_length`.
        """
        length = tokens.shape[1]
        if length > self.max_length:
            raise ValueError(
                f"sentences must have at most {self.max_length} tokens, got {length}"
            )
        types = jnp.zeros_like(tokens) if types is None else types
        x: Any = self.tables["word"][tokens] + self.tables["type"][types]
        x += self.tables["position"][None, :length]
        x = self.embed_dropout(self.embed_norm(x), train=train)
        options = {}
        if mask is not None or self.pad is not None:
            options["mask"] = self._real(tokens, mask)[:, None, None]
        for block in self.blocks:
            x = block(x, train=train, **options)
        return x

    def _real(self, tokens: Tokens, mask: Array | None) -> Bool[Array, "batch length"]:
        if mask is not None:
            return mask
        return jnp.full(tokens.shape, True) if self.pad is None else tokens != self.pad


@export("ssl.BERT", since="0.1")
class BERT(nn.Module):
    """The encoder, a head that tells tokens, and one that tells what follows.

    Attributes:
        encoder: its embeddings of words are also the last matrix of the head.
        next_sentence: whether there is the second head.
    """

    encoder: BertEncoder
    next_sentence: bool = False

    def setup(self) -> None:
        own = self.encoder
        kinds = {"dtype": own.dtype, "param_dtype": own.param_dtype}
        self.transform = Dense(own.width, kernel_init=small, **kinds)
        self.norm = nn.LayerNorm(own.epsilon, **kinds)
        zeros = nn.initializers.zeros
        self.bias = self.param("bias", zeros, (own.vocab_size,), own.param_dtype)
        if self.next_sentence:
            self.pooler = Dense(own.width, kernel_init=small, **kinds)
            self.follows = Dense(2, kernel_init=small, **kinds)

    def __call__(
        self,
        tokens: Tokens,
        types: Tokens | None = None,
        mask: Bool[Array, "batch length"] | None = None,
        places: Int[Array, "batch places"] | None = None,
        *,
        train: bool,
    ) -> tuple[Float[Array, "batch places vocab"], Float[Array, "batch 2"] | None]:
        """Returns logits of tokens at the places (None: all), and of (follows, random)."""
        x = self.encoder.tokens(tokens, types, mask, train=train)
        told = x
        if places is not None:
            told = jnp.take_along_axis(x, places[..., None], axis=1)
        told = self.norm(gelu(self.transform(told)))
        word = self.encoder.tables["word"].astype(told.dtype)
        logits = told @ word.T + self.bias.astype(told.dtype)[None, None]
        if not self.next_sentence:
            return logits, None
        return logits, self.follows(jnp.tanh(self.pooler(x[:, 0])))

    def features(
        self, tokens: Tokens, types: Tokens | None = None, *, train: bool
    ) -> Float[Array, "batch dim"]:
        """What transfers: the encoder's features."""
        return self.encoder(tokens, types, train=train)


@export("ssl.bert", since="0.1")
def bert(
    model: BERT,
    *,
    mask_id: int,
    special_ids: Sequence[int] = (),
    rate: float = 0.15,
) -> Method:
    """Masked language modelling; a batch holds `tokens` [batch, length].

    It may also hold `types`, the segment of every token, and `words`, to which word each
    belongs: then whole words are chosen. A model with `next_sentence` wants `random_next`
    [batch], 0 where the second segment follows the first and 1 where it was drawn
    elsewhere. `predict` returns the encoder's features [batch, dim]. Metrics: the loss;
    `masked_lm` in nats per chosen token and the share told right (`accuracy`), and
    `next_accuracy`; `loss_at_chance` is that of uniform answers.

    Args:
        model: encoder and heads.
        mask_id: the token that hides another.
        special_ids: tokens that are never chosen; the encoder's padding need not be named.
        rate: share of the tokens that are to be told.
    """
    own = model.encoder
    special = {*special_ids, mask_id} | ({own.pad} if own.pad is not None else set())
    chance = math.log(own.vocab_size) + (math.log(2) if model.next_sentence else 0)

    def init(key: PRNGKeyArray, batch: Batch) -> tuple[Params, ModelState]:
        return init_module(model, key, batch["tokens"], train=False)

    def loss(
        params: Params, model_state: ModelState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[ModelState, Metrics]]:
        if model.next_sentence and "random_next" not in batch:
            raise ValueError(
                f"the batch must hold random_next, got {', '.join(sorted(batch))}"
            )
        mask_key, key = jax.random.split(key)
        masked = mask_tokens(
            sample_keys(mask_key, len(batch["tokens"]), own.axis_name),
            batch["tokens"],
            vocab_size=own.vocab_size,
            mask_id=mask_id,
            special_ids=sorted(special),
            rate=rate,
            words=batch.get("words"),
        )
        (logits, follows), model_state = apply_module(
            model,
            params,
            model_state,
            masked.tokens,
            batch.get("types"),
            # A random token may be the padding's number: what is real is known before.
            None if own.pad is None else batch["tokens"] != own.pad,
            masked.places,
            train=True,
            rngs={"dropout": key},
        )
        value = masked_lm_loss(
            logits, masked.labels, masked.chosen, axis_name=own.axis_name
        )
        right = (jnp.argmax(logits, axis=2) == masked.labels) & masked.chosen
        metrics = {
            "masked_lm": value,
            "accuracy": _share(right, masked.chosen, own.axis_name),
            "loss_at_chance": jnp.float32(chance),
        }
        if follows is not None:
            labels = batch["random_next"]
            value += jnp.mean(
                optax.softmax_cross_entropy_with_integer_labels(
                    follows.astype(jnp.float32), labels
                )
            )
            told = jnp.argmax(follows, axis=1) == labels
            metrics["next_accuracy"] = jnp.mean(told, dtype=jnp.float32)
        return value, (model_state, {"loss": value, **metrics})

    def predict(
        params: Params, model_state: ModelState, batch: Batch
    ) -> Float[Array, "batch dim"]:
        h, _ = apply_module(
            model,
            params,
            model_state,
            batch["tokens"],
            batch.get("types"),
            train=False,
            method="features",
        )
        return h

    return Method(init, loss, predict)
