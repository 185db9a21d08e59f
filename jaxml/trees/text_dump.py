"""A model as text, in the form of XGBoost's `get_dump`.

    0:[f2<0.5] yes=1,no=2,missing=1,gain=9.5,cover=64
            1:leaf=0.25,cover=40
            2:leaf=-0.5,cover=24

Nodes are numbered level by level, as in XGBoost, whose numbers have gaps where an exact tree
was pruned.

Reference: Chen and Guestrin, "XGBoost: A Scalable Tree Boosting System", KDD 2016,
https://arxiv.org/abs/1603.02754; the form is that of
https://xgboost.readthedocs.io/en/stable/python/python_api.html (Booster.get_dump).
"""

from collections.abc import Iterator, Sequence

import jax
import numpy as np

from jaxml.export import export
from jaxml.trees.model import Model
from jaxml.trees.tree import Tree, compact


@export("trees.text_dump.text_dump", since="0.1")
def text_dump(
    model: Model, *, with_stats: bool = False, feature_names: Sequence[str] = ()
) -> list[str]:
    """Every tree as text, indented by tabs; NumPy, not for `jit`.

    Args:
        model: of trees; of a linear model there is nothing to say.
        with_stats: whether to add gains and covers.
        feature_names: of all columns; without them f0, f1 and so on.

    Raises:
        ValueError: if there is another number of names than of columns.
    """
    names = list(feature_names) or [f"f{i}" for i in range(model.num_features)]
    if len(names) != model.num_features:
        raise ValueError(
            f"feature_names must be {model.num_features}, got {len(names)}"
        )
    trees = jax.tree.map(np.asarray, model.trees)
    found = []
    for index in range(len(trees.left)):
        tree = compact(jax.tree.map(lambda leaf, i=index: leaf[i], trees))
        found.append("\n".join(_lines(tree, 0, 0, names, with_stats)) + "\n")
    return found


def _lines(
    tree: Tree, node: int, depth: int, names: list[str], with_stats: bool
) -> Iterator[str]:
    indent, first = "\t" * depth, int(tree.left[node])
    cover = f",cover={_number(tree.cover[node])}" if with_stats else ""
    if not first:
        values = [_number(v) for v in tree.value[node]]
        value = values[0] if len(values) == 1 else f"[{','.join(values)}]"
        yield f"{indent}{node}:leaf={value}{cover}"
        return
    missing = first if tree.default_left[node] else first + 1
    words = np.ascontiguousarray(tree.categories[node], np.uint32)
    yes, no = first, first + 1
    name = names[tree.feature[node]]
    if words.any():
        bits = np.unpackbits(words.view(np.uint8), bitorder="little")
        chosen = ",".join(map(str, np.flatnonzero(bits)))
        test, yes, no = f"{name}:{{{chosen}}}", no, yes
    else:
        test = f"{name}<{_number(tree.threshold[node])}"
    gain = f",gain={_number(tree.gain[node])}" if with_stats else ""
    yield f"{indent}{node}:[{test}] yes={yes},no={no},missing={missing}{gain}{cover}"
    for child in (first, first + 1):
        yield from _lines(tree, child, depth + 1, names, with_stats)


def _number(x: np.floating) -> str:
    return f"{float(np.float32(x)):.9g}"
