"""Decision trees and their ensembles: pure functions over pytrees of arrays.

| module | paper |
|---|---|
| `cart` | https://doi.org/10.1201/9781315139470 |
| `random_forest` | https://doi.org/10.1023/A:1010933404324 |
| `extra_trees` | https://doi.org/10.1007/s10994-006-6226-1 |
| `adaboost` | https://doi.org/10.4310/SII.2009.v2.n3.a8 |
| `gbdt` | https://doi.org/10.1214/aos/1013203451 |
| `xgboost` | https://arxiv.org/abs/1603.02754 |
| `bagging` | https://doi.org/10.1023/A:1018054314350 |
| `stacking` | https://doi.org/10.1016/S0893-6080(05)80023-1 |
| `shap` | https://arxiv.org/abs/1802.03888 |

What they share: `tree` (a tree as arrays, and prediction), `rule` (scores and leaves from
sums of channels) and `vector_leaves` (the same for several outputs), `exact` and `histogram`
(the search for splits; the latter by `bin_sums`, in scatters or by the kernel of
`gpu_histogram`, and `bin_splits`), `categories` (sets of them), `bins`, `fixed_point` (sums that no
order can change), `growth` (levels to trees), `objectives` (losses by autodiff), `ranking`
(gradients of queries), `boosting` (rounds of trees), `linear` (the linear booster), `model`,
`prediction`, `partial_dependence`, `text_dump`, `model_files` and `ubjson`. Trees of any
depth stand on `frontier` (lists of open nodes), `stages` (of large ones), `visits` (columns
that nodes draw), `search` and `walk` (their thresholds), `codes`, `radix` (order by digits),
`scatter` and `scan` (sums), `impurity`, `deviation`, `pruning` and `planting`; ensembles of
anything on `learner`.
`estimators` and `ensemble_estimators`, loaded when they are named, are the same for
scikit-learn.
"""

from jaxml.trees import adaboost as adaboost
from jaxml.trees import bagging as bagging
from jaxml.trees import bins as bins
from jaxml.trees import boosting as boosting
from jaxml.trees import cart as cart
from jaxml.trees import categories as categories
from jaxml.trees import codes as codes
from jaxml.trees import deviation as deviation
from jaxml.trees import exact as exact
from jaxml.trees import extra_trees as extra_trees
from jaxml.trees import fixed_point as fixed_point
from jaxml.trees import frontier as frontier
from jaxml.trees import gbdt as gbdt
from jaxml.trees import growth as growth
from jaxml.trees import histogram as histogram
from jaxml.trees import impurity as impurity
from jaxml.trees import learner as learner
from jaxml.trees import linear as linear
from jaxml.trees import model as model
from jaxml.trees import model_files as model_files
from jaxml.trees import objectives as objectives
from jaxml.trees import partial_dependence as partial_dependence
from jaxml.trees import prediction as prediction
from jaxml.trees import pruning as pruning
from jaxml.trees import random_forest as random_forest
from jaxml.trees import ranking as ranking
from jaxml.trees import rule as rule
from jaxml.trees import shap as shap
from jaxml.trees import stacking as stacking
from jaxml.trees import text_dump as text_dump
from jaxml.trees import tree as tree
from jaxml.trees import ubjson as ubjson
from jaxml.trees import vector_leaves as vector_leaves
from jaxml.trees import xgboost as xgboost
