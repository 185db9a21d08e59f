"""Masks of tokens: how many, which, and what stands in their place."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.ssl import mask_tokens

PAD, MASK, FIRST, LAST = range(4)


def sentences(rng, batch, length, vocab=50, full=False):
    """[class] words [end] padding, of different lengths."""
    tokens = rng.integers(4, vocab, size=(batch, length))
    ends = rng.integers(4, length + 1, size=batch)
    if full:
        ends[:] = length
    tokens[:, 0] = FIRST
    tokens[np.arange(batch), ends - 1] = LAST
    tokens[np.arange(length)[None] >= ends[:, None]] = PAD
    return jnp.asarray(tokens, jnp.int32)


def masked(tokens, seed=0, **options):
    keys = jax.random.split(jax.random.key(seed), len(tokens))
    given = {"vocab_size": 50, "mask_id": MASK, "special_ids": (PAD, FIRST, LAST)}
    return mask_tokens(keys, tokens, **given | options)


def test_tokens_are_chosen_by_number_and_never_special(rng):
    tokens = sentences(rng, 300, 40)
    seen, places, labels, chosen = (np.asarray(x) for x in masked(tokens))
    may = ~np.isin(tokens, (PAD, FIRST, LAST))
    assert places.shape == (300, 6)
    for row in range(300):
        count = max(1, round(0.15 * may[row].sum()))
        assert chosen[row].sum() == count
        own = places[row][chosen[row]]
        assert len(set(own)) == count
        assert may[row][own].all()
        np.testing.assert_array_equal(tokens[row][own], labels[row][chosen[row]])
        changed = np.flatnonzero(seen[row] != np.asarray(tokens[row]))
        assert set(changed) <= set(own)
    share = (seen[np.arange(300)[:, None], places] == MASK)[chosen].mean()
    assert 0.74 < share < 0.86


def test_eighty_ten_ten(rng):
    tokens = sentences(rng, 400, 102, full=True)
    seen, places, labels, chosen = (np.asarray(x) for x in masked(tokens))
    assert chosen.all()
    assert places.shape[1] == 15
    now = np.take_along_axis(seen, places, 1)
    shares = (now == MASK).mean(), (now == labels).mean()
    # Of 6000 draws, five deviations; a random token is the old one or the mask in 2 of 50.
    assert abs(shares[0] - (0.8 + 0.1 / 50)) < 5 * np.sqrt(0.16 / 6000)
    assert abs(shares[1] - (0.1 + 0.1 / 50)) < 5 * np.sqrt(0.09 / 6000)
    strange = now[(now != MASK) & (now != labels)]
    assert len(np.unique(strange)) > 45  # of the whole vocabulary
    where = np.bincount(places.ravel(), minlength=102)
    assert where[0] == where[101] == 0
    assert where[1:101].min() > 30  # of 60 on average
    assert len(np.unique(places, axis=0)) == 400


def test_masks_change_with_the_key_alone(rng):
    tokens = sentences(rng, 5, 20)
    chex.assert_trees_all_equal(masked(tokens), masked(tokens))
    assert (masked(tokens).tokens != masked(tokens, seed=1).tokens).any()


def test_a_sentence_without_words_has_nothing_to_tell(rng):
    seen, _, _, chosen = masked(jnp.full((2, 8), PAD, jnp.int32))
    assert not chosen.any()
    assert (seen == PAD).all()


def test_words_are_chosen_as_a_whole(rng):
    tokens = sentences(rng, 200, 42, full=True)
    words = np.cumsum(rng.uniform(size=(200, 42)) < 0.5, axis=1)
    words = jnp.asarray(np.minimum(words, 41), jnp.int32)
    _, places, _, chosen = (np.asarray(x) for x in masked(tokens, words=words))
    may = ~np.isin(tokens, (PAD, FIRST, LAST))
    for row in range(200):
        own = set(places[row][chosen[row]])
        assert len(own) <= 6
        for word in {int(words[row, p]) for p in own}:
            every = np.flatnonzero((np.asarray(words[row]) == word) & may[row])
            assert set(every) <= own
    assert chosen.sum(1).mean() > 5.5  # nearly all that may be chosen are


@pytest.mark.parametrize(
    "options, message",
    [
        ({"rate": 1.0}, "rate must be in"),
        ({"mask_id": 50}, "mask_id must be below 50, got 50"),
        ({"words": jnp.ones((2, 3), int)}, r"words must be \(2, 8\)|'words'"),
    ],
)
def test_bad_input_is_refused(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        masked(jnp.ones((2, 8), jnp.int32), **options)
