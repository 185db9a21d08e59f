"""The rules by which faults are named: their thresholds, their order, their sentences."""

import math

import numpy as np
import pytest

from jaxml.metrics import diagnose


def names(metrics, **options):
    return [finding.name for finding in diagnose(metrics, **options)]


RULES = [
    ({"feature_std": 0.0999}, {"feature_std": 0.1001}, "complete collapse"),
    ({"feature_std_h": 0.0999}, {"feature_std_h": 0.1001}, "complete collapse"),
    ({"rank_share": 0.0999}, {"rank_share": 0.1001}, "dimensional collapse"),
    (
        {"participation_ratio": 1.49},
        {"participation_ratio": 1.51},
        "dimensional collapse",
    ),
    ({"marginal_error": 0.51}, {"marginal_error": 0.49}, "unequal marginals"),
    ({"hardest_share": 0.91}, {"hardest_share": 0.89}, "temperature too low"),
    (
        {"accuracy": 0.61, "batch_accuracy": 0.5},
        {"accuracy": 0.59, "batch_accuracy": 0.5},
        "batch statistics leak",
    ),
    (
        {"loss": 1.0, "loss_at_chance": 1.0009},
        {"loss": 1.0, "loss_at_chance": 1.0011},
        "uniform output",
    ),
    (
        {"loss": 1.51, "loss_at_chance": 1.0},
        {"loss": 1.49, "loss_at_chance": 1.0},
        "worse than chance",
    ),
    (
        {"alignment": 0.96, "pair_distance": 1.0},
        {"alignment": 0.94, "pair_distance": 1.0},
        "unrelated positives",
    ),
    (
        {"alignment": 0.0009, "pair_distance": 1.0},
        {"alignment": 0.0011, "pair_distance": 1.0},
        "identical positives",
    ),
    (
        {"row_entropy": 0.991, "mean_entropy": 1.1},
        {"row_entropy": 0.989, "mean_entropy": 1.1},
        "uniform output",
    ),
    (
        {"row_entropy": 0.5, "mean_entropy": 0.509},
        {"row_entropy": 0.5, "mean_entropy": 0.511},
        "constant output",
    ),
    (
        {"row_entropy": 0.1, "mean_entropy": 0.5, "outputs_used": 0.09},
        {"row_entropy": 0.1, "mean_entropy": 0.5, "outputs_used": 0.11},
        "few outputs used",
    ),
    (
        {"disagreement/params/head": 0.011},
        {"disagreement/params/head": 0.009},
        "gradient differs",
    ),
    (
        {"disagreement/model_state/queue": 0.011},
        {"disagreement/model_state/queue": 0.009},
        "state differs",
    ),
]


@pytest.mark.parametrize("sick, healthy, finding", RULES)
def test_thresholds_are_the_stated_ones(sick, healthy, finding):
    assert names(sick) == [finding]
    assert names(healthy) == []


def test_a_rule_needs_all_of_its_numbers():
    assert names({"loss": 4.0, "accuracy": 1.0, "alignment": 9.0}) == []
    assert names({"loss_at_chance": 4.0, "mean_entropy": 0.3}) == []


def test_symptoms_of_a_collapse_are_not_listed_beside_it():
    sick = {"feature_std": 0.0, "rank_share": 0.01, "alignment": 0, "pair_distance": 0}
    assert names(sick) == ["complete collapse"]


@pytest.mark.parametrize("why", [{"rank_share": 0.05}, {"participation_ratio": 1.2}])
def test_a_collapse_explains_positives_that_hardly_differ(why):
    near = {"alignment": 1e-5, "pair_distance": 1.0}
    assert names({**near, **why}) == ["dimensional collapse"]


@pytest.mark.parametrize(
    "loss, outputs, found",
    [
        (8.3178, 4096, ["uniform output"]),  # ln 4096 = 8.31777
        (8.3096, 4096, ["uniform output"]),
        (8.3090, 4096, []),
        (8.3265, 4096, []),
        (8.3178, 65536, []),
        (math.log(511), 511, ["uniform output"]),
        (8.3178, None, []),
    ],
)
def test_a_loss_that_equals_ln_k_is_named(loss, outputs, found):
    assert names({"loss": loss, "lr": 0.1}, num_outputs=outputs) == found


def test_findings_read_as_sentences():
    (finding,) = diagnose({"feature_std_z": np.float32(0.01)})
    assert str(finding) == (
        "complete collapse: feature_std_z 0.01 is below 0.1, all features point one way"
    )
    (finding,) = diagnose({"loss": math.inf, "feature_std": math.nan})
    assert str(finding) == "not finite: feature_std is nan, loss is inf"
    (finding,) = diagnose({"disagreement/model_state/queue": 1.5, "x": 0.0})
    assert finding.detail.startswith("model_state/queue by 150.0% of what a step")
