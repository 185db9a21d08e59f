"""Speeches of plays as tokens: what the experiments with text read.

`tinyshakespeare` is the folder of that name in the data folder, with its `input.txt`;
`generated` needs nothing: speakers who each have words that they like, and who do not
listen to one another. Of every five hundred speeches the first fifty, in a row, are for
test, and are seen in no training, with labels or without.

A word is a token if it is among the most frequent of the training speeches, and otherwise
spelled, letter by letter; a mark of punctuation is a word. Tokens 0 to 4 are padding, the
mask, the beginning, the end of a sentence, and what is unknown.
"""

import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxml.data.catalog import data_folder

PAD, MASK, FIRST, END, UNKNOWN = range(5)
SPECIAL = (PAD, MASK, FIRST, END)
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)*|[^a-z\s]")


class Speech(NamedTuple):
    """Who says what."""

    speaker: str
    text: str


class Plays(NamedTuple):
    """The speeches to learn from, and those that are asked for at the end."""

    train: list[Speech]
    test: list[Speech]


class Vocabulary(NamedTuple):
    """Tokens by name: words, and letters as `##a`."""

    tokens: dict[str, int]

    def encode(self, text: str) -> tuple[list[int], list[int]]:
        """Tokens, and to which word each belongs, from 0."""
        tokens, words = [], []
        for number, word in enumerate(_WORD.findall(text.lower())):
            known = self.tokens.get(word)
            parts = (
                [known]
                if known is not None
                else [self.tokens.get(f"##{letter}", UNKNOWN) for letter in word]
            )
            tokens += parts
            words += [number] * len(parts)
        return tokens, words

    def decode(self, tokens: Any) -> str:
        """Tokens as text, with underscores for masks."""
        names = {number: name for name, number in self.tokens.items()}
        names |= {MASK: "_", UNKNOWN: "?"}
        text = " ".join(names.get(int(t), "") for t in tokens if t not in (PAD, FIRST))
        return text.replace(" ##", "").strip()


def load(config: Any) -> Plays:
    """The speeches of `config.dataset`."""
    if config.dataset == "generated":
        speeches = generated(config.seed)
    else:
        speeches = parsed(_file(config).read_text("utf-8"))
    is_test = [i // 50 % 10 == 0 for i in range(len(speeches))]  # so that one follows
    rows = list(zip(speeches, is_test, strict=True))
    return Plays([s for s, test in rows if not test], [s for s, test in rows if test])


def _file(config: Any) -> Path:
    folder = data_folder(config.data_dir)
    path = (folder or Path(".")) / config.dataset / "input.txt"
    if folder is None or not path.is_file():
        raise FileNotFoundError(
            f"there is no {path}: name the data folder with --data-dir or "
            "JAXML_DATA_DIR, or take --dataset generated"
        )
    return path


def parsed(text: str) -> list[Speech]:
    """Speeches of a play: a line "NAME:", what is said, an empty line."""
    blocks = (block.partition(":\n") for block in text.split("\n\n"))
    return [Speech(name.strip(), said.strip()) for name, _, said in blocks if said]


def generated(seed: int, count: int = 2000) -> list[Speech]:
    """Speeches of four people, who like words of their own."""
    rng = np.random.default_rng(seed)
    names = ("ADA", "BEN", "CLEO", "DAN")
    subjects = (
        "the king",
        "my friend",
        "a sailor",
        "the moon",
        "our queen",
        "this fool",
    )
    verbs = ("loves", "fears", "seeks", "mocks", "hides", "keeps")
    things = ("the crown", "a song", "the sea", "gold", "the night", "a dream")
    speeches = []
    for _ in range(count):
        who = int(rng.integers(len(names)))
        said = []
        for _ in range(int(rng.integers(1, 4))):
            # Each likes some words more, in all three places.
            draw = [int(rng.integers(6)) if rng.uniform() < 0.6 else who for _ in "svo"]
            said.append(f"{subjects[draw[0]]} {verbs[draw[1]]} {things[draw[2]]}.")
        speeches.append(Speech(names[who], " ".join(said)))
    return speeches


def vocabulary(speeches: list[Speech], size: int) -> Vocabulary:
    """The letters, and the most frequent words."""
    counts = Counter(w for s in speeches for w in _WORD.findall(s.text.lower()))
    letters = sorted({f"##{letter}" for word in counts for letter in word})
    words = [word for word, _ in counts.most_common()]
    names = (letters + words)[: size - len(SPECIAL) - 1]
    return Vocabulary({name: i + UNKNOWN + 1 for i, name in enumerate(names)})


def single(
    speeches: list[Speech], vocabulary: Vocabulary, length: int
) -> dict[str, np.ndarray]:
    """[first] speech [end], cut to a length: `tokens`."""
    rows = np.full((len(speeches), length), PAD, np.int32)
    for row, speech in zip(rows, speeches, strict=True):
        tokens, _ = vocabulary.encode(speech.text)
        sentence = [FIRST, *tokens[: length - 2], END]
        row[: len(sentence)] = sentence
    return {"tokens": rows}


def pairs(
    speeches: list[Speech], vocabulary: Vocabulary, length: int, seed: int
) -> dict[str, np.ndarray]:
    """[first] speech [end] speech [end]: the one that follows, or any, by turns.

    Returns:
        `tokens`; `types`, 1 in the second speech; `words`, to which word each token
        belongs; and `random_next`, 1 where the second was drawn anywhere.
    """
    rng = np.random.default_rng(seed)
    coded = [vocabulary.encode(speech.text) for speech in speeches]
    count = len(speeches) - 1
    arrays = {
        n: np.zeros((count, length), np.int32) for n in ("tokens", "types", "words")
    }
    other = rng.integers(len(speeches), size=count)
    random = np.arange(count) % 2
    other = np.where((random == 1) & (other != np.arange(count) + 1), other, -1)
    half = (length - 3) // 2
    for i in range(count):
        second = i + 1 if other[i] < 0 else other[i]
        tokens, types, words = [FIRST], [0], [0]
        for number, which in enumerate((i, second)):
            part, own = (x[:half] for x in coded[which])
            tokens += [*part, END]
            types += [number] * (len(part) + 1)
            words += [w + words[-1] + 1 for w in own]
            words.append(words[-1] + 1)
        for name, row in zip(arrays, (tokens, types, words), strict=True):
            arrays[name][i, : len(row)] = row
    return {**arrays, "random_next": np.int32(other >= 0)}
