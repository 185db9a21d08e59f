"""Segmentation: a class for every pixel.

| method | paper |
|---|---|
| `fcn` | https://arxiv.org/abs/1411.4038 |
| `unet` | https://arxiv.org/abs/1505.04597 |

    batch    image [batch, height, width, channels] in [0, 1], label [batch, height, width]
             and, if need be, weight [batch, height, width] and mask
    predict  labels [batch, height_out, width_out]

What they share: `per_pixel` (network, loss and labels), `elastic` and `border_weights` for
microscopy, `tiles` for images that are too large. The losses stand in `jaxml.losses`, the
measures in `jaxml.metrics` (`mean_iou`, `membrane_scores`).
"""

from jaxml.segmentation.border_weights import border_weights as border_weights
from jaxml.segmentation.elastic import elastic_field as elastic_field
from jaxml.segmentation.elastic import warp_image as warp_image
from jaxml.segmentation.elastic import warp_labels as warp_labels
from jaxml.segmentation.fcn import FCN as FCN
from jaxml.segmentation.fcn import DilatedFCN as DilatedFCN
from jaxml.segmentation.fcn import fcn as fcn
from jaxml.segmentation.fcn import fcn_from_vgg as fcn_from_vgg
from jaxml.segmentation.per_pixel import center_crop as center_crop
from jaxml.segmentation.tiles import predict_tiles as predict_tiles
from jaxml.segmentation.unet import UNet as UNet
from jaxml.segmentation.unet import unet as unet
from jaxml.segmentation.unet import unet_sizes as unet_sizes
