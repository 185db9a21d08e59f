"""Masked tokens: what of a sentence is to be told, and what stands in its place.

Of the tokens of a sentence 15% are to be told. What stands in their place is a mask in 80%
of cases, a random token in 10%, and the token itself in 10%, so that the encoder, which
cannot know which, must make something of every token:

    seen_i = mask if u < 0.8, any token if u < 0.9, x_i otherwise,    u uniform.

The choice is a function of a key, on the device, and so another one in every step.

The traps: special tokens and padding are never chosen; and a pair of tokens drawn one by one
gives the rest of a word away, which choosing whole words does not.

Reference: Devlin, Chang, Lee and Toutanova, "BERT: Pre-training of Deep Bidirectional
Transformers for Language Understanding", NAACL 2019, https://arxiv.org/abs/1810.04805
(section 3.1, appendix A.1; whole words are of the authors' later code); Liu et al.,
"RoBERTa", https://arxiv.org/abs/1907.11692 (dynamic masking, section 4.1).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxml.export import export
from jaxml.typing import Array, Bool, Float, Int, Key, PRNGKeyArray

Tokens = Int[Array, "batch length"]


@export("ssl.MaskedTokens", since="0.1")
class MaskedTokens(NamedTuple):
    """What is seen, and what is to be told.

    Attributes:
        tokens: what the encoder sees.
        places: where something is to be told.
        labels: the token that stood there.
        chosen: False where a row has fewer places than the longest could have.
    """

    tokens: Int[Array, "batch length"]
    places: Int[Array, "batch places"]
    labels: Int[Array, "batch places"]
    chosen: Bool[Array, "batch places"]


@export("ssl.mask_tokens", since="0.1")
def mask_tokens(
    keys: Key[Array, "batch"],
    tokens: Tokens,
    *,
    vocab_size: int,
    mask_id: int,
    special_ids: Sequence[int] = (),
    rate: float = 0.15,
    words: Tokens | None = None,
) -> MaskedTokens:
    """Chooses tokens of every sentence, and hides most of them.

    Of n tokens that may be chosen max(1, round(rate n)) are, none of them twice. Of these
    80% become the mask and 10% a token drawn from the whole vocabulary.

    Args:
        keys: one for each sentence.
        tokens: numbers below `vocab_size`.
        vocab_size: how many there are.
        mask_id: the mask.
        special_ids: tokens that are never chosen, padding among them.
        rate: share of the tokens.
        words: to which word of its sentence a token belongs, numbers below the length;
            then whole words are chosen, in random order, as long as they fit into the
            number above. None chooses tokens.

    Raises:
        ValueError: if the rate is not in (0, 1), the mask is no token, or the words are
            not given for every token.
    """
    if not 0 < rate < 1:
        raise ValueError(f"rate must be in (0, 1), got {rate}")
    if not 0 <= mask_id < vocab_size:
        raise ValueError(f"mask_id must be below {vocab_size}, got {mask_id}")
    if words is not None and words.shape != tokens.shape:
        raise ValueError(f"words must be {tokens.shape}, got {words.shape}")
    special = jnp.asarray(tuple(special_ids), tokens.dtype)
    most = max(1, round(rate * tokens.shape[1]))

    def one(key: PRNGKeyArray, tokens: Array, words: Array | None) -> MaskedTokens:
        tokens = jnp.asarray(tokens)
        choice_key, fate_key, token_key = jax.random.split(key, 3)
        may = ~jnp.isin(tokens, special)
        count = jnp.sum(may)
        count = jnp.clip(jnp.round(rate * count), 1, most) * (count > 0)
        noise = jax.random.uniform(choice_key, tokens.shape)
        if words is None:
            places = jnp.argsort(jnp.where(may, noise, 2.0))[:most]
        else:
            taken = _whole_words(noise, may, words, count)
            places, count = jnp.argsort(~taken)[:most], jnp.sum(taken)
        chosen, labels = jnp.arange(most) < count, tokens[places]
        fate = jax.random.uniform(fate_key, (most,))
        drawn = jax.random.randint(token_key, (most,), 0, vocab_size, tokens.dtype)
        seen = jnp.where(fate < 0.8, mask_id, jnp.where(fate < 0.9, drawn, labels))
        seen = jnp.where(chosen, seen, labels).astype(tokens.dtype)
        return MaskedTokens(tokens.at[places].set(seen), places, labels, chosen)

    return jax.vmap(one)(jnp.asarray(keys), tokens, words)


def _whole_words(
    noise: Float[Array, "length"],
    may: Bool[Array, "length"],
    words: Int[Array, "length"],
    count: jax.Array,
) -> Bool[Array, "length"]:
    """Tokens of words in the order of their noise, those that still fit in."""
    size = jnp.zeros(len(words)).at[words].add(may)

    def take(total: jax.Array, word: jax.Array) -> tuple[jax.Array, jax.Array]:
        fits = (size[word] > 0) & (total + size[word] <= count)
        return total + fits * size[word], fits

    order = jnp.argsort(noise)
    # Zero, but made of all: inside `shard_map` it varies over devices as they do.
    start = 0 * (noise[0] + size[0] + count)
    _, fits = lax.scan(take, start, order)
    return may & jnp.zeros(len(words), bool).at[order].set(fits)[words]
