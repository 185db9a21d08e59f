"""Speeches of plays as tokens: what the experiments with text read.

`tinyshakespeare` is the folder of that name in the data folder, with its `input.txt`;
`generated` needs nothing: speakers who each have words that they like, and who do not
listen to one another. Of every fifty speeches the first ten, in a row, are for test, and
are seen in no training, with labels or without.

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
    """Who says what, and the number of the speech."""

    speaker: str
    text: str
    place: int


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
    parts: tuple[list[Speech], list[Speech]] = ([], [])
    for speech in speeches:
        parts[speech.place // 10 % 5 == 0].append(speech)
    return Plays(*parts)


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
    said = [(name.strip(), words.strip()) for name, _, words in blocks if words]
    return [Speech(*who_what, place) for place, who_what in enumerate(said)]


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
    for place in range(count):
        who = int(rng.integers(len(names)))
        said = []
        for _ in range(int(rng.integers(1, 4))):
            # Each likes some words more, in all three places.
            draw = [int(rng.integers(6)) if rng.uniform() < 0.6 else who for _ in "svo"]
            said.append(f"{subjects[draw[0]]} {verbs[draw[1]]} {things[draw[2]]}.")
        speeches.append(Speech(names[who], " ".join(said), place))
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
    places = np.array([speech.place for speech in speeches])
    firsts = np.flatnonzero(np.diff(places) == 1)  # whose next one is here
    drawn = rng.integers(len(speeches), size=len(firsts))
    seconds = np.where(np.arange(len(firsts)) % 2, drawn, firsts + 1)
    names, half = ("tokens", "types", "words"), (length - 3) // 2
    arrays = {name: np.zeros((len(firsts), length), np.int32) for name in names}
    for i, pair in enumerate(zip(firsts, seconds, strict=True)):
        tokens, types, words = [FIRST], [0], [0]
        for number, which in enumerate(pair):
            part, own = (x[:half] for x in coded[which])
            tokens += [*part, END]
            types += [number] * (len(part) + 1)
            words += [w + words[-1] + 1 for w in own]
            words.append(words[-1] + 1)
        for name, row in zip(names, (tokens, types, words), strict=True):
            arrays[name][i, : len(row)] = row
    return {**arrays, "random_next": np.int32(seconds != firsts + 1)}
