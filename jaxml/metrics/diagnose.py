"""A doctor for training runs: names what the numbers of a log show.

The rules know names of metrics and no method: whatever reports `feature_std` is watched
for collapse, whatever reports `loss_at_chance` for a loss that says nothing. A name may be
followed by whose number it is: `feature_std_h` is the `feature_std` of h.

    finding                 when
    not finite              any number is NaN or infinite
    complete collapse       feature_std < 0.1
    dimensional collapse    rank_share < 0.1, or participation_ratio < 1.5: one direction
                            has nearly all of the variance
    unrelated positives     alignment > 0.95 pair_distance, as for shuffled pairs
    identical positives     alignment < 0.001 pair_distance, as for one view twice, and no
                            collapse that would explain it
    uniform output          |loss - loss_at_chance| < 0.001 loss_at_chance, or
                            row_entropy > 0.99; every untrained head starts there
    worse than chance       loss > 1.5 loss_at_chance: sure of what is wrong
    constant output         mean_entropy - row_entropy < 0.01 and not uniform: the output
                            does not depend on the input
    few outputs used        outputs_used < 0.1 and the output not constant
    unequal marginals       marginal_error > 0.5: half of the assignment lies on outputs
                            beyond their equal share
    temperature too low     hardest_share > 0.9: one negative has all of the gradient
    batch statistics leak   accuracy > batch_accuracy + 0.1: a positive is told from the
                            many of other batches more surely than from its own batch, by
                            a mark that batch norm left
    gradient differs,       a disagreement of a step with the same step on one device, or
    state differs           in one micro-batch, above 0.01: see
                            `jaxml.metrics.step_disagreement`

The trap: an empty list is no proof of health. Some faults train quietly wrong and leave no
trace in any log, such as a gradient that stops between devices; only the step itself tells.

Reference: Jing et al., "Understanding Dimensional Collapse in Contrastive Self-supervised
Learning", ICLR 2022, https://arxiv.org/abs/2110.09348; Wang and Liu, "Understanding the
Behaviour of Contrastive Loss", CVPR 2021, https://arxiv.org/abs/2012.09740 (the temperature
and the hardest negatives); He et al., https://arxiv.org/abs/1911.05722 (section 3.3, the
leak). The thresholds are this library's own.
"""

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple, SupportsFloat

from jaxml.export import export

DISAGREEMENT = "disagreement/"
"""What the names of `step_disagreement` begin with."""


@export("metrics.Finding", since="0.1")
class Finding(NamedTuple):
    """What is wrong, and the numbers that say so."""

    name: str
    detail: str

    def __str__(self) -> str:
        return f"{self.name}: {self.detail}"


@export("metrics.diagnose", since="0.1")
def diagnose(
    metrics: Mapping[str, SupportsFloat], *, num_outputs: int | None = None
) -> list[Finding]:
    """Names what a run's numbers show; an empty list is all that is known of health.

    The findings, and when they are made, are those of the table of this module.

    Args:
        metrics: a row of a log, `collapse_metrics`, `step_disagreement`, or all of them.
        num_outputs: what a `loss` in nats chooses among (prototypes, classes,
            candidates), where the metrics hold no `loss_at_chance`.

    >>> for finding in diagnose({"loss": 8.3178}, num_outputs=4096):
    ...     print(finding)
    uniform output: loss 8.318 is 8.318, what equal outputs give
    """
    m = {name: float(value) for name, value in metrics.items()}
    bad = sorted(name for name, value in m.items() if not math.isfinite(value))
    if bad:
        return [
            Finding("not finite", ", ".join(f"{name} is {m[name]}" for name in bad))
        ]
    if num_outputs is not None:
        m.setdefault("loss_at_chance", math.log(num_outputs))
    return [*_features(m), *_outputs(m), *_contrast(m), *_disagreement(m)]


def _features(m: Mapping[str, float]) -> Iterator[Finding]:
    collapsed = list(_named(m, "feature_std", lambda std: std < 0.1))
    if collapsed:  # the other symptoms follow from this one
        detail = f"{_listed(m, collapsed)} is below 0.1, all features point one way"
        yield Finding("complete collapse", detail)
        return
    flat = list(_named(m, "rank_share", lambda share: share < 0.1))
    line = list(_named(m, "participation_ratio", lambda dims: dims < 1.5))
    if flat:
        detail = (
            f"{_listed(m, flat)} is below 0.1: the effective rank as a share of what "
            "batch and dim allow"
        )
        yield Finding("dimensional collapse", detail)
    elif line:
        detail = f"{_listed(m, line)} is below 1.5, all features lie near one line"
        yield Finding("dimensional collapse", detail)
    if "alignment" not in m or "pair_distance" not in m:
        return
    apart, chance = m["alignment"], m["pair_distance"]
    if apart > 0.95 * chance:
        detail = (
            f"alignment {apart:.3g} is no better than {chance:.3g} between any two "
            "rows, are the views in one order?"
        )
        yield Finding("unrelated positives", detail)
    elif apart < 0.001 * chance and not flat and not line:
        detail = (
            f"alignment {apart:.3g} is nothing beside {chance:.3g} between any two "
            "rows, do the views differ?"
        )
        yield Finding("identical positives", detail)


def _outputs(m: Mapping[str, float]) -> Iterator[Finding]:
    if m.get("marginal_error", 0.0) > 0.5:
        detail = (
            f"{m['marginal_error']:.1%} of the assignment lies on outputs beyond their "
            "equal share"
        )
        yield Finding("unequal marginals", detail)
    loss, chance = m.get("loss", math.inf), m.get("loss_at_chance", math.nan)
    row, mean = m.get("row_entropy", math.nan), m.get("mean_entropy", math.nan)
    if abs(loss - chance) < 1e-3 * chance:
        detail = f"loss {loss:.4g} is {chance:.4g}, what equal outputs give"
        yield Finding("uniform output", detail)
    elif loss > 1.5 * chance and loss < math.inf:
        detail = f"loss {loss:.4g} is above {chance:.4g}, what equal outputs give"
        yield Finding("worse than chance", detail)
    elif row > 0.99:
        detail = f"the entropy of a row is {row:.1%} of its maximum"
        yield Finding("uniform output", detail)
    elif mean - row < 0.01:
        detail = (
            f"rows have {row:.1%} and their mean {mean:.1%} of the greatest entropy: "
            "every input gets one output"
        )
        yield Finding("constant output", detail)
    elif m.get("outputs_used", 1.0) < 0.1:
        detail = (
            f"the mean row spreads over {m['outputs_used']:.1%} of the outputs that "
            "this batch could use"
        )
        yield Finding("few outputs used", detail)


def _contrast(m: Mapping[str, float]) -> Iterator[Finding]:
    if m.get("hardest_share", 0.0) > 0.9:
        detail = (
            f"the nearest negative has {m['hardest_share']:.1%} of the weight of all "
            "negatives"
        )
        yield Finding("temperature too low", detail)
    found, own = m.get("accuracy", 0.0), m.get("batch_accuracy", math.inf)
    if found > own + 0.1:
        detail = (
            f"{found:.1%} are told from those of other batches, only {own:.1%} from "
            "those of their own: does batch norm mark the batch?"
        )
        yield Finding("batch statistics leak", detail)


def _disagreement(m: Mapping[str, float]) -> Iterator[Finding]:
    parts = {
        name.removeprefix(DISAGREEMENT): value
        for name, value in m.items()
        if name.startswith(DISAGREEMENT) and value > 0.01
    }
    kinds = {
        "gradient": "is a gradient stopped, or summed where it should be averaged?",
        "state": "does it move once in a step, by all of the batch?",
    }
    for kind, question in kinds.items():
        of_kind = {
            name: value
            for name, value in parts.items()
            if name.startswith("model_state") == (kind == "state")
        }
        if of_kind:
            listing = ", ".join(f"{name} by {v:.1%}" for name, v in of_kind.items())
            detail = f"{listing} of what a step changes: {question}"
            yield Finding(f"{kind} differs", detail)


def _named(m: Mapping[str, float], name: str, is_bad) -> Iterator[str]:
    """The metrics of this name, whosever they are, that are bad."""
    return (
        key
        for key, value in m.items()
        if (key == name or key.startswith(f"{name}_")) and is_bad(value)
    )


def _listed(m: Mapping[str, float], names: list[str]) -> str:
    return " and ".join(f"{name} {m[name]:.3g}" for name in names)
