"""Decision trees and their ensembles: pure functions over pytrees of arrays.

| module | paper |
|---|---|
| `xgboost` | https://arxiv.org/abs/1603.02754 |
| `shap` | https://arxiv.org/abs/1802.03888 |

What they share: `tree` (a tree as arrays, and prediction), `rule` (scores and leaves from
sums of channels), `exact` and `histogram` (the search for splits), `bins`, `fixed_point`
(sums that no order can change), `growth` (levels to trees), `objectives` (losses by
autodiff), `boosting` (rounds of trees), `linear` (the linear booster), `model`,
`model_files` and `ubjson`.
"""

from jaxml.trees import bins as bins
from jaxml.trees import boosting as boosting
from jaxml.trees import exact as exact
from jaxml.trees import fixed_point as fixed_point
from jaxml.trees import growth as growth
from jaxml.trees import histogram as histogram
from jaxml.trees import linear as linear
from jaxml.trees import model as model
from jaxml.trees import model_files as model_files
from jaxml.trees import objectives as objectives
from jaxml.trees import rule as rule
from jaxml.trees import shap as shap
from jaxml.trees import tree as tree
from jaxml.trees import ubjson as ubjson
from jaxml.trees import xgboost as xgboost
