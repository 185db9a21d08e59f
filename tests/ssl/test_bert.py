"""BERT: the loss in NumPy, padding, devices; transformers in tests/oracle."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.ssl import (
    BERT,
    BertEncoder,
    FineTuned,
    bert,
    fine_tune,
    mask_tokens,
    masked_lm_loss,
    transformer_depth,
)
from tests.numerical import close, gradients
from tests.ssl.trials import check_all_moved, check_bfloat16, check_devices, train

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


def loss_numpy(logits, labels, chosen):
    terms = []
    for b, p in np.argwhere(chosen):
        row = logits[b, p]
        terms.append(
            np.log(np.exp(row - row.max()).sum()) + row.max() - row[labels[b, p]]
        )
    return sum(terms) / max(len(terms), 1)


def test_loss_matches_loops(rng):
    logits = 3 * rng.normal(size=(3, 4, 7))
    labels = rng.integers(0, 7, size=(3, 4))
    chosen = np.array([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], bool)
    value, grad = jax.value_and_grad(masked_lm_loss)(
        jnp.float32(logits), jnp.asarray(labels), jnp.asarray(chosen)
    )
    close(value, loss_numpy(logits, labels, chosen), scale=3)
    (slope,) = gradients(lambda x: loss_numpy(x, labels, chosen), logits)
    close(grad, slope, rtol=1e-5, atol=1e-5)
    nothing = masked_lm_loss(
        jnp.float32(logits), jnp.asarray(labels), jnp.zeros((3, 4), bool)
    )
    close(nothing, 0.0)


SIZES = {"width": 8, "depth": 2, "heads": 2, "hidden": 12, "max_length": 12}


def make_model(axis_name=None, **options):
    sizes = {**SIZES, "dropout": 0.0, **options}
    encoder = BertEncoder(20, axis_name=axis_name, **sizes)
    return BERT(encoder, next_sentence=True)


def build(axis_name=None, **options):
    return bert(make_model(axis_name, **options), mask_id=MASK, special_ids=(2, 3))


def make_batch(rng, size=16, full=False):
    """Counting upwards: what is hidden follows from its neighbours."""
    count = 4 + (rng.integers(0, 16, size=(size, 1)) + np.arange(12)) % 16
    tokens = np.where(sentences(rng, size, 12, 20, full) == PAD, PAD, count)
    tokens[:, 0] = FIRST
    types = np.broadcast_to(np.arange(12) > 6, tokens.shape)
    return {
        "tokens": jnp.asarray(tokens, jnp.int32),
        "types": jnp.asarray(types, jnp.int32),
        "random_next": jnp.asarray(rng.integers(0, 2, size), jnp.int32),
    }


def test_padding_is_seen_by_nothing(rng):
    """Whatever stands behind the sentence, in either pool."""
    batch = make_batch(rng, 4)
    tokens, model = batch["tokens"], make_model()
    init = jax.jit(lambda: model.init(jax.random.key(0), tokens, train=False))
    variables = init()
    variables = jax.tree.map(
        lambda p: jnp.asarray(p + 0.3 * rng.normal(size=p.shape), jnp.float32),
        variables,
    )
    real = tokens != PAD
    assert not real.all()
    run = jax.jit(lambda t, m: model.apply(variables, t, None, m, train=False))
    logits, follows = run(tokens, real)
    other = jnp.where(real, tokens, 7)
    again, same = run(other, real)
    chex.assert_trees_all_close(follows, same, rtol=1e-5, atol=1e-6)
    kept = np.asarray(real)
    chex.assert_trees_all_close(
        np.asarray(logits)[kept], np.asarray(again)[kept], rtol=1e-5, atol=1e-6
    )
    assert np.abs(run(other, jnp.ones_like(real))[1] - follows).max() > 1e-3
    params = {"params": variables["params"]["encoder"]}
    for pool in ("class", "mean"):
        encoder = make_model(pool=pool).encoder
        h = encoder.apply(params, tokens, train=False)
        short = int(real[0].sum())
        alone = encoder.apply(params, tokens[:1, :short], train=False)
        chex.assert_trees_all_close(h[:1], alone, rtol=1e-4, atol=1e-5)


def test_loss_is_that_of_its_masks(rng):
    """Logits at the chosen places alone, of what the encoder really sees."""
    batch, method, model = make_batch(rng), build(), make_model()
    params, state = jax.jit(method.init)(jax.random.key(0), batch)
    key = jax.random.key(5)
    value, (_, metrics) = jax.jit(method.loss)(params, state, batch, key)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(
        jax.random.split(key)[0], jnp.arange(16)
    )
    seen, places, labels, chosen = mask_tokens(
        keys, batch["tokens"], vocab_size=20, mask_id=MASK, special_ids=(0, 1, 2, 3)
    )
    real = batch["tokens"] != PAD
    logits, follows = jax.jit(
        lambda p: model.apply({"params": p}, seen, batch["types"], real, train=False)
    )(params)
    at = np.take_along_axis(np.float64(logits), np.asarray(places)[..., None], 1)
    lm = loss_numpy(at, np.asarray(labels), np.asarray(chosen))
    next_ = loss_numpy(
        np.float64(follows)[:, None],
        np.asarray(batch["random_next"])[:, None],
        np.ones((16, 1), bool),
    )
    close(metrics["masked_lm"], lm, rtol=1e-5)
    close(value, lm + next_, rtol=1e-5)
    right = (at.argmax(2) == np.asarray(labels))[np.asarray(chosen)].mean()
    close(metrics["accuracy"], right)
    close(metrics["loss_at_chance"], np.log(20) + np.log(2))


def test_it_learns_and_touches_every_parameter(rng):
    start, state, history = train(build(width=16), make_batch(rng, 32), 150)
    check_all_moved(start, state)
    first, last = (
        np.mean([h["masked_lm"] for h in part]) for part in (history[:5], history[-5:])
    )
    assert last < 0.6 * first


def test_the_encoder_goes_on_to_classify_sentences(rng):
    """Dropout and layer-wise decay included."""
    batch = make_batch(rng)
    params, _ = jax.jit(build().init)(jax.random.key(0), batch)
    encoder = make_model(dropout=0.1, pool="mean").encoder
    tuned = fine_tune(FineTuned(encoder, 3), ({"backbone": params["encoder"]}, {}))
    batch = {"view": batch["tokens"], "image": batch["tokens"]}
    batch["label"] = jnp.arange(16) % 3
    fresh, _ = jax.jit(tuned.init)(jax.random.key(3), batch)
    chex.assert_trees_all_equal(fresh["backbone"], params["encoder"])
    loss = jax.jit(tuned.loss)
    losses = [loss(fresh, {}, batch, jax.random.key(i))[0] for i in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    assert jax.jit(tuned.predict)(fresh, {}, batch).shape == (16, 3)
    depth = transformer_depth(2)
    names = [(name, "x") for name in ("word", "type", "position", "embed_norm")]
    assert [depth(("backbone", *name)) for name in names] == [0] * 4


def test_a_step_runs_in_bfloat16(rng):
    check_bfloat16(build(depth=1), make_batch(rng))


def test_eight_devices_take_the_same_steps_as_one(rng):
    """Though they have not equally many tokens to tell, and dropout."""
    batch = make_batch(rng)
    assert len({int((row != PAD).sum()) for row in batch["tokens"]}) > 3
    batch["words"] = jnp.broadcast_to(jnp.arange(12) // 2, batch["tokens"].shape)
    check_devices(lambda name: build(name, dropout=0.1), batch, 8, num_steps=2)


def test_init_needs_no_mesh(rng):
    jax.eval_shape(build("data").init, jax.random.key(0), make_batch(rng))


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda t: masked_lm_loss(
                jnp.ones((2, 3, 4)), jnp.ones((2, 2), int), jnp.ones((2, 3), bool)
            ),
            "must have the places of the logits",
        ),
        (
            lambda t: make_model(max_length=7).init(jax.random.key(0), t, train=False),
            "at most 7 tokens, got 8",
        ),
        (
            lambda t: build().loss({}, {}, {"tokens": t}, jax.random.key(0)),
            "batch must hold random_next, got tokens",
        ),
        (
            lambda t: make_model(pool="last").init(jax.random.key(0), t, train=False),
            "pool must be class or mean",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=rf"{message}|places"):
        call(jnp.ones((2, 8), jnp.int32))
