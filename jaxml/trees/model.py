"""A boosted model: a pytree of arrays with what is needed to predict, save and explain.

Slicing is by rounds, as in XGBoost: `model[:10]` are the first ten, `model[-1:]` the last.

Reference: Chen and Guestrin, "XGBoost: A Scalable Tree Boosting System", KDD 2016,
https://arxiv.org/abs/1603.02754 (equation 1).
"""

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np

from jaxml.export import export
from jaxml.trees.objectives import Objective

Leaf = Any
"""An array; or what JAX puts in its place while it takes a pytree apart."""
STATIC = {"static": True}


@export("trees.model.Model", since="0.1")
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Model:
    """Margins are start + the sum of weight * value of each tree's leaf.

    Attributes:
        trees: a `Tree` with a leading axis: round by round, output by output.
        group: [trees], the output to which each tree adds.
        weight: [trees], all ones except with DART.
        start: [outputs], margins that the sums start from.
        base_score: [outputs], the same as predictions, as XGBoost stores them.
        eta: the factor that is already in the values of the trees.
        losses: [rounds], held-out loss after each round, NaN without held-out rows.
        objective: turns margins into predictions.
        num_features: columns of x.
        trees_per_round: outputs times parallel trees.
        booster: "gbtree", "dart" or "gblinear".
        linear: weights [columns + 1, outputs] of a linear model, the last row the bias.
        best_iteration: the round of the least held-out loss, where early stopping or a
            file says that predictions end there.
    """

    trees: Leaf
    group: Leaf
    weight: Leaf
    start: Leaf
    base_score: Leaf
    eta: Leaf
    losses: Leaf
    linear: Leaf = None
    objective: Objective = field(kw_only=True, metadata=STATIC)
    num_features: int = field(kw_only=True, metadata=STATIC)
    trees_per_round: int = field(kw_only=True, default=1, metadata=STATIC)
    booster: str = field(kw_only=True, default="gbtree", metadata=STATIC)
    best_iteration: int | None = field(kw_only=True, default=None, metadata=STATIC)

    @property
    def num_rounds(self) -> int:
        """Rounds that the model holds."""
        return self.group.shape[-1] // self.trees_per_round

    def __getitem__(self, rounds: slice) -> "Model":
        """The model of some rounds, with the same start."""
        first, end, step = rounds.indices(self.num_rounds)
        if step != 1:
            raise IndexError(f"rounds must be a slice of step 1, got {rounds}")
        end = max(end, first)
        each = slice(first * self.trees_per_round, end * self.trees_per_round)
        trees, group, weight = jax.tree.map(
            lambda leaf: leaf[each], (self.trees, self.group, self.weight)
        )
        return replace(
            self,
            trees=trees,
            group=group,
            weight=weight,
            losses=self.losses[first:end],
            best_iteration=None,
        )

    def up_to_best(self) -> "Model":
        """The rounds up to the best held-out loss; all where none is known."""
        if self.best_iteration is None:
            losses = np.asarray(self.losses)
            if np.isnan(losses).all():
                return self
            return self[: int(np.nanargmin(losses)) + 1]
        return self[: self.best_iteration + 1]
