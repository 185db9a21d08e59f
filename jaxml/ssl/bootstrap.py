"""Two networks for two views: what BYOL and MoCo v3 do alike.

A network predicts from each view what its own slow copy, the teacher, makes of the other
view. They differ in how a prediction is compared with its target; network, teacher, batch
statistics and what is reported are the same, and stand here.

The traps. Teacher and network each keep batch statistics of their own, made by their own
passes, one for each view. The predictor belongs to the network alone. And the teacher is no
parameter: no gradient, weight decay or clipping of an optimizer ever reaches it.

Reference: Grill et al., "Bootstrap Your Own Latent", NeurIPS 2020,
https://arxiv.org/abs/2006.07733 (section 3.1); Chen, Xie and He, "An Empirical Study of
Training Self-Supervised Vision Transformers", ICCV 2021,
https://arxiv.org/abs/2104.02057 (algorithm 1).
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jax import lax

from jaxml.method import Batch, Method, Metrics, ModelState, Params
from jaxml.metrics.collapse import feature_std, pair_metrics
from jaxml.nn.functional import apply_module, init_module
from jaxml.ssl.teacher import Momentum, init_teacher, move_teacher
from jaxml.typing import Array, Float, Int, PRNGKeyArray


class Pairs(NamedTuple):
    """What the two networks make of views 1 and 2."""

    p1: Float[Array, "batch dim"]
    p2: Float[Array, "batch dim"]
    z1: Float[Array, "batch dim"]
    z2: Float[Array, "batch dim"]


Compare = Callable[[Pairs], tuple[Float[Array, ""], Metrics]]
"""Loss and further metrics of predictions p of the network and targets z of the teacher."""


def bootstrapped(
    model: nn.Module,
    compare: Compare,
    *,
    momentum: Momentum,
    frozen: Collection[str] = (),
    axis_name: str | None = None,
) -> Method:
    """The method; a batch holds two augmented images, `view1` and `view2`.

    Args:
        model: gives (h, z, p) of images, its method `project` (h, z); what makes p of z
            is named `predictor`.
        compare: the loss.
        momentum: of the teacher.
        frozen: names in the path of arrays that stay as they are, whatever the optimizer
            makes of them. The teacher's never move, and stand in for them.
        axis_name: mesh axis the batch is split over, or None.
    """
    still = {frozen} if isinstance(frozen, str) else set(frozen)

    def init(key: PRNGKeyArray, batch: Batch) -> tuple[Params, ModelState]:
        params, stats = init_module(model, key, batch["view1"], train=True)
        kept = {name: _without_predictor(x) for name, x in stats.items()}
        teacher = {"params": _without_predictor(params), "stats": kept}
        return params, {"encoder": stats, "teacher": init_teacher(teacher)}

    def held(params: Params, teacher: Params) -> Params:
        def choose(path: Any, own: Array, first: Array) -> Array:
            names = {getattr(entry, "key", None) for entry in path}
            return first.astype(own.dtype) if names & still else own

        shared = _without_predictor(params)
        return {**params, **jax.tree.map_with_path(choose, shared, teacher)}

    def predictions(
        params: Params, stats: ModelState, batch: Batch
    ) -> tuple[list[Any], ModelState]:
        outputs = []
        for view in (batch["view1"], batch["view2"]):
            output, stats = apply_module(model, params, stats, view, train=True)
            outputs.append(output)
        return outputs, stats

    def targets(teacher: ModelState, batch: Batch) -> tuple[list[Array], ModelState]:
        params, stats = teacher["params"], teacher["stats"]
        found = []
        for view in (batch["view1"], batch["view2"]):
            (_, z), stats = apply_module(
                model, params, stats, view, train=True, method="project"
            )
            found.append(lax.stop_gradient(z))
        return found, {"params": params, "stats": stats}

    def loss(
        params: Params, model_state: ModelState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[ModelState, Metrics]]:
        del key  # the views are drawn before
        params = held(params, model_state["teacher"]["params"])
        ((h, z1, p1), (_, z2, p2)), stats = predictions(
            params, model_state["encoder"], batch
        )
        found, teacher = targets(model_state["teacher"], batch)
        value, metrics = compare(Pairs(p1, p2, *found))
        return value, (
            {"encoder": stats, "teacher": teacher},
            {
                "loss": value,
                **metrics,
                "feature_std_h": feature_std(h, axis_name=axis_name),
                "feature_std_z": feature_std(z1, axis_name=axis_name),
                **pair_metrics(z1, z2, axis_name=axis_name),
            },
        )

    def predict(
        params: Params, model_state: ModelState, batch: Batch
    ) -> Float[Array, "batch features"]:
        (h, _), _ = apply_module(
            model,
            params,
            model_state["encoder"],
            batch["image"],
            train=False,
            method="project",
        )
        return h

    def after_update(
        params: Params, model_state: ModelState, step: Int[Array, ""]
    ) -> tuple[Params, ModelState]:
        teacher = model_state["teacher"]
        params = held(params, teacher["params"])
        shared = _without_predictor(params)
        moved = move_teacher(teacher["params"], shared, momentum, step)
        return params, {**model_state, "teacher": {**teacher, "params": moved}}

    return Method(init, loss, predict, after_update)


def _without_predictor(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {name: part for name, part in tree.items() if name != "predictor"}
