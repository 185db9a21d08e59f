"""Evaluation: pure functions on features and outputs, and sums over a split.

| function | what it tells |
|---|---|
| `knn_probe`, `knn_predict` | accuracy of the nearest neighbours' vote; trains nothing |
| `linear_probe` | accuracy of a linear classifier on frozen features |
| `fit_linear_probe`, `linear_probe_logits` | that classifier itself |
| `few_labels` | which samples keep their label when only a few per class may |
| `feature_std`, `effective_rank`, `participation_ratio` | whether features collapsed, and to how few dims |
| `alignment`, `uniformity` | how near positives lie, how evenly all features spread |
| `collapse_metrics` | all of these at once |
| `step_disagreement` | whether two programs for one training step agree |
| `diagnose` | what is wrong, by name |
| `top_k_accuracy`, `top_k_correct` | share of labels among the first k guesses |
| `confusion` | the confusion matrix: recalls, F1, IoU |
| `mean_iou`, `confusion_matrix` | label maps: IoU and accuracies over all pixels |
| `membrane_scores`, `rand_scores`, `cell_regions` | segmentation of neurons, as ISBI 2012 |
| `coco_average_precision` | COCO's twelve numbers, of boxes or masks |
| `voc_average_precision` | mAP of VOC, as in 2007 and since 2010 |
| `box_average_precision` | COCO's numbers as a `Metric`, on padded boxes |
| `Metric`, `mean_of`, `combine` | sums over a split, for `jaxml.train.evaluate` |
"""

from jaxml.metrics.accuracy import confusion as confusion
from jaxml.metrics.accuracy import top_k_accuracy as top_k_accuracy
from jaxml.metrics.accuracy import top_k_correct as top_k_correct
from jaxml.metrics.average_precision import CocoResult as CocoResult
from jaxml.metrics.average_precision import VocResult as VocResult
from jaxml.metrics.average_precision import (
    coco_average_precision as coco_average_precision,
)
from jaxml.metrics.average_precision import (
    voc_average_precision as voc_average_precision,
)
from jaxml.metrics.box_average_precision import (
    box_average_precision as box_average_precision,
)
from jaxml.metrics.collapse import alignment as alignment
from jaxml.metrics.collapse import collapse_metrics as collapse_metrics
from jaxml.metrics.collapse import effective_rank as effective_rank
from jaxml.metrics.collapse import feature_std as feature_std
from jaxml.metrics.collapse import output_entropies as output_entropies
from jaxml.metrics.collapse import pair_metrics as pair_metrics
from jaxml.metrics.collapse import participation_ratio as participation_ratio
from jaxml.metrics.collapse import uniformity as uniformity
from jaxml.metrics.diagnose import Finding as Finding
from jaxml.metrics.diagnose import diagnose as diagnose
from jaxml.metrics.knn_probe import knn_predict as knn_predict
from jaxml.metrics.knn_probe import knn_probe as knn_probe
from jaxml.metrics.linear_probe import LinearProbe as LinearProbe
from jaxml.metrics.linear_probe import few_labels as few_labels
from jaxml.metrics.linear_probe import fit_linear_probe as fit_linear_probe
from jaxml.metrics.linear_probe import linear_probe as linear_probe
from jaxml.metrics.linear_probe import linear_probe_logits as linear_probe_logits
from jaxml.metrics.mean_iou import confusion_matrix as confusion_matrix
from jaxml.metrics.mean_iou import mean_iou as mean_iou
from jaxml.metrics.membranes import cell_regions as cell_regions
from jaxml.metrics.membranes import membrane_scores as membrane_scores
from jaxml.metrics.membranes import rand_scores as rand_scores
from jaxml.metrics.metric import Metric as Metric
from jaxml.metrics.metric import combine as combine
from jaxml.metrics.metric import mean_of as mean_of
from jaxml.metrics.step_disagreement import step_disagreement as step_disagreement
