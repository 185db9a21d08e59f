"""Losses that more than one family uses.

| name | paper |
|---|---|
| `nt_xent` | SimCLR, https://arxiv.org/abs/2002.05709 |
| `info_nce` | CPC, https://arxiv.org/abs/1807.03748 |
| `nce`, `negative_sampling` | https://proceedings.mlr.press/v9/gutmann10a.html |
| `contrastive_margin` | https://doi.org/10.1109/CVPR.2006.100 |
| `triplet_margin` | FaceNet, https://arxiv.org/abs/1503.03832 |
| `pixel_cross_entropy` | FCN, https://arxiv.org/abs/1411.4038, and U-Net |
| `soft_dice` | V-Net, https://arxiv.org/abs/1606.04797 |
| `lovasz_softmax`, `lovasz_hinge` | https://arxiv.org/abs/1705.08790 |
| `sigmoid_focal` | RetinaNet, https://arxiv.org/abs/1708.02002 |
| `blockwise_similarity` | what contrastive losses stand on: similarities, never stored |
"""

from jaxml.losses.blockwise_similarity import BlockwiseSimilarity as BlockwiseSimilarity
from jaxml.losses.blockwise_similarity import Contrast as Contrast
from jaxml.losses.blockwise_similarity import (
    blockwise_similarity as blockwise_similarity,
)
from jaxml.losses.contrastive import nt_xent as nt_xent
from jaxml.losses.contrastive import nt_xent_logits as nt_xent_logits
from jaxml.losses.contrastive import nt_xent_rows as nt_xent_rows
from jaxml.losses.cross_entropy import pixel_cross_entropy as pixel_cross_entropy
from jaxml.losses.dice import soft_dice as soft_dice
from jaxml.losses.focal import sigmoid_focal as sigmoid_focal
from jaxml.losses.lovasz import lovasz_hinge as lovasz_hinge
from jaxml.losses.lovasz import lovasz_softmax as lovasz_softmax
from jaxml.losses.noise_contrastive import info_nce as info_nce
from jaxml.losses.noise_contrastive import info_nce_rows as info_nce_rows
from jaxml.losses.noise_contrastive import nce as nce
from jaxml.losses.noise_contrastive import negative_sampling as negative_sampling
from jaxml.losses.pairs import contrastive_margin as contrastive_margin
from jaxml.losses.pairs import triplet_margin as triplet_margin
