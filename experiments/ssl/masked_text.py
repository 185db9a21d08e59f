"""What the experiments with masked text share: a small BERT, trained on speeches."""

from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.ssl import masked_images, shakespeare
from jaxml import data, parallel, train
from jaxml.method import Method
from jaxml.ssl import BERT, BertEncoder, bert

MAY_CHANGE = ("out", "data_dir")


class Pretrained(NamedTuple):
    """A trained BERT, and what its tokens mean."""

    model: BERT
    method: Method
    state: train.TrainState
    vocabulary: shakespeare.Vocabulary


def encoder(config: Any) -> BertEncoder:
    """The encoder of a configuration."""
    return BertEncoder(
        config.vocab_size,
        config.width,
        config.depth,
        config.heads,
        4 * config.width,
        config.length,
        dropout=config.dropout,
        pool="mean",
        axis_name="data",
    )


def pretrained(config: Any, plays: shakespeare.Plays, out: Path) -> Pretrained:
    """Masked language modelling of the training speeches, which have no labels."""
    vocabulary = shakespeare.vocabulary(plays.train, config.vocab_size)
    arrays = shakespeare.pairs(plays.train, vocabulary, config.length, config.seed)
    if not config.whole_words:
        del arrays["words"]
    model = BERT(encoder(config), config.next_sentence)
    method = bert(model, mask_id=shakespeare.MASK, special_ids=shakespeare.SPECIAL)
    steps = config.num_steps
    optimizer = masked_images.optimizer(config, steps, config.learning_rate)
    source = data.from_arrays({"train": arrays})
    batches = data.load(source, "train", config.batch_size, seed=config.seed)
    init_key, run_key = jax.random.split(jax.random.key(config.seed))
    mesh = parallel.data_mesh()
    state = train.init_state(method, optimizer, init_key, next(iter(batches)))
    step = train.gradient_step(method, optimizer, run_key, "data")
    state = train.fit(
        parallel.data_parallel(step, mesh),
        parallel.replicate(state, mesh),
        batches,
        steps,
        run=train.Run(out, config, MAY_CHANGE),
    )
    return Pretrained(model, method, state, vocabulary)
