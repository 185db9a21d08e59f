"""Pretrain without labels, fine-tune with few: tell who says a speech.

    python -m experiments.ssl.bert_few_labels_shakespeare
    python -m experiments.ssl.bert_few_labels_shakespeare --dataset generated

A small BERT is pretrained on all training speeches, without the names of who speaks, then
trained to tell the speakers who have the most speeches apart, with 1, 2, 5, 10 and 50
speeches of each, beside the same network from random weights. The test speeches are of the
same people, and were in no training. `curve.png` shows both.

Measured with `--width 64 --depth 2 --heads 2 --batch-size 32 --num-steps 5000
--fine-tune-steps 150` (seed 0, JAX 0.10.2, two shared CPU cores, 12 minutes), accuracy on the
test split in percent; the most frequent of the four speakers says 32.6:

    labels per class         1       2       5      10      50
    from scratch          24.8    24.1    29.8    34.8    43.3
    pretrained            22.0    29.8    34.0    34.0    35.5

So small a network, which has learned to tell one masked word in five, is ahead by four to
six points with two and five labels, and eight behind with fifty. For pictures the same
experiment is ahead everywhere (`mae_few_labels_digits.py`).
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import tyro

from experiments.ssl import few_labels, masked_images, masked_text, shakespeare
from jaxml.ssl import FineTuned, layerwise_decay, transformer_depth


@dataclass(frozen=True)
class Config:
    """A curve over labels, for a BERT on speeches."""

    dataset: str = "tinyshakespeare"
    """A folder of the data folder with `input.txt`, or `generated`."""
    num_speakers: int = 4
    """How many are told apart, those with the most speeches."""
    labels_per_class: tuple[int, ...] = (1, 2, 5, 10, 50)
    """How many speeches of each have a label, each number in turn."""
    vocab_size: int = 4000
    """Number of tokens."""
    length: int = 64
    """Tokens of a speech, or of a pair without labels, at most."""
    width: int = 128
    """Of the encoder."""
    depth: int = 4
    """Blocks of the encoder."""
    heads: int = 4
    """Of its attention."""
    dropout: float = 0.1
    """Rate after every dense layer."""
    whole_words: bool = True
    """Choose whole words to be told."""
    next_sentence: bool = True
    """Also tell whether one speech follows another."""
    num_steps: int = 6000
    """Updates without labels."""
    fine_tune_steps: int = 300
    """Updates on the labels, for each point of the curve."""
    batch_size: int = 128
    """Pairs of speeches per update without labels, over all devices."""
    fine_tune_batch: int = 32
    """Speeches per update on the labels."""
    learning_rate: float = 1e-3
    """Of AdamW without labels, at its highest."""
    fine_tune_rate: float = 5e-4
    """Of AdamW on the labels, at its highest."""
    layer_decay: float = 0.8
    """By which the rate falls from layer to layer towards the input."""
    weight_decay: float = 0.01
    """Of matrices."""
    seed: int = 0
    """Of initialisation, labels, data order, masks and dropout."""
    data_dir: Path | None = None
    """Folder of the original files; by default the one JAXML_DATA_DIR names."""
    out: Path = Path("runs/bert_few_labels_shakespeare")
    """Where everything is written; a run found there is continued."""


SMOKE = Config(
    dataset="generated",
    labels_per_class=(1, 2),
    vocab_size=60,
    length=20,
    width=8,
    depth=1,
    heads=1,
    num_steps=2,
    fine_tune_steps=2,
    batch_size=16,
    fine_tune_batch=8,
)


def main(config: Config) -> Mapping[str, float]:
    """Pretrains, fine-tunes from both starts; returns accuracies on the test split."""
    plays = shakespeare.load(config)
    done = masked_text.pretrained(config, plays, config.out / "pretrain")
    counts = Counter(speech.speaker for speech in plays.train)
    names = [name for name, _ in counts.most_common(config.num_speakers)]

    def labelled(speeches: list[shakespeare.Speech]) -> dict[str, np.ndarray]:
        theirs = [speech for speech in speeches if speech.speaker in names]
        arrays = shakespeare.single(theirs, done.vocabulary, config.length)
        label = [names.index(speech.speaker) for speech in theirs]
        return {"image": arrays["tokens"], "label": np.array(label, np.int32)}

    test = labelled(plays.test)
    most = np.bincount(test["label"]).max() / len(test["label"])
    print(f"{', '.join(names)}; the most frequent says {100 * most:.1f}%")
    adamw = masked_images.optimizer(
        config, config.fine_tune_steps, config.fine_tune_rate
    )
    return few_labels.curve(
        config,
        FineTuned(masked_text.encoder(config), len(names), axis_name="data"),
        ({"backbone": jax.device_get(done.state.params)["encoder"]}, {}),
        labelled(plays.train),
        test,
        layerwise_decay(adamw, config.layer_decay, transformer_depth(config.depth)),
    )


if __name__ == "__main__":
    main(tyro.cli(Config))
