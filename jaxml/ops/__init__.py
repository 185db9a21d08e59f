"""Pure functions on arrays: no parameters, no layers, one idea per file.

| file | what |
|---|---|
| `augment` | random operations on one image, for the jitted step |
| `views` | the augmentation recipes of the self-supervised papers |
| `color` | brightness, contrast, saturation, hue, gray, HSV, normalization |
| `lab` | CIE Lab: lightness apart from colour |
| `resize` | crop and resize with antialiasing, as two matrix products |
| `blur` | Gaussian blur |
| `patches` | an image as a sequence of patches, and back |
| `receptive_field` | which input pixels an output can see, and which of them count |
| `sampling` | bilinear sampling at any points, affine warps |
| `boxes` | overlaps (IoU, GIoU, DIoU, CIoU), codes and formats of boxes |
| `nms` | exact greedy suppression, also by class |
| `soft_nms` | suppression that lowers scores |
| `box_voting` | kept boxes at the mean of those around them |
| `anchors` | anchors and centers over a feature pyramid |
| `matching` | which object an anchor answers for, and a balanced draw of anchors |
| `letterbox` | images and boxes in a frame of fixed size, and back |
| `order` | stable orders and masked top-k |
| `pooling` | bins that do not divide the image, and pooling that can be undone |
| `upsampling` | interpolation, transposed convolution, sub-pixel shuffles |
| `roi` | RoIPool, RoIAlign, and their position-sensitive kinds |
| `multilevel_roi` | RoIAlign on a pyramid of features |
| `deform_conv` | convolution whose taps move |
| `deform_roi` | RoIAlign with bins that move |
| `grids`, `max_grids`, `regions` | what these are made of |
| `similarity` | unit vectors and cosine similarity |
"""

from jaxml.ops.anchors import cell_anchors as cell_anchors
from jaxml.ops.anchors import grid_centers as grid_centers
from jaxml.ops.anchors import pyramid_anchors as pyramid_anchors
from jaxml.ops.augment import apply_with_probability as apply_with_probability
from jaxml.ops.augment import color_jitter as color_jitter
from jaxml.ops.augment import cutout as cutout
from jaxml.ops.augment import pad_and_crop as pad_and_crop
from jaxml.ops.augment import random_affine as random_affine
from jaxml.ops.augment import random_gaussian_blur as random_gaussian_blur
from jaxml.ops.augment import random_grayscale as random_grayscale
from jaxml.ops.augment import random_horizontal_flip as random_horizontal_flip
from jaxml.ops.augment import random_intensity as random_intensity
from jaxml.ops.augment import random_noise as random_noise
from jaxml.ops.augment import random_resized_crop as random_resized_crop
from jaxml.ops.augment import random_solarize as random_solarize
from jaxml.ops.augment import random_vertical_flip as random_vertical_flip
from jaxml.ops.augment import to_float as to_float
from jaxml.ops.blur import gaussian_blur as gaussian_blur
from jaxml.ops.box_voting import box_voting as box_voting
from jaxml.ops.boxes import box_area as box_area
from jaxml.ops.boxes import box_ioa as box_ioa
from jaxml.ops.boxes import box_iou as box_iou
from jaxml.ops.boxes import clip_boxes as clip_boxes
from jaxml.ops.boxes import complete_box_iou as complete_box_iou
from jaxml.ops.boxes import convert_boxes as convert_boxes
from jaxml.ops.boxes import decode_boxes as decode_boxes
from jaxml.ops.boxes import distance_box_iou as distance_box_iou
from jaxml.ops.boxes import encode_boxes as encode_boxes
from jaxml.ops.boxes import generalized_box_iou as generalized_box_iou
from jaxml.ops.boxes import has_size as has_size
from jaxml.ops.color import IMAGENET_MEAN as IMAGENET_MEAN
from jaxml.ops.color import IMAGENET_STD as IMAGENET_STD
from jaxml.ops.color import adjust_brightness as adjust_brightness
from jaxml.ops.color import adjust_contrast as adjust_contrast
from jaxml.ops.color import adjust_hue as adjust_hue
from jaxml.ops.color import adjust_saturation as adjust_saturation
from jaxml.ops.color import grayscale as grayscale
from jaxml.ops.color import hsv_to_rgb as hsv_to_rgb
from jaxml.ops.color import normalize as normalize
from jaxml.ops.color import rgb_to_hsv as rgb_to_hsv
from jaxml.ops.color import solarize as solarize
from jaxml.ops.deform_conv import deform_conv2d as deform_conv2d
from jaxml.ops.deform_roi import deform_roi_pool as deform_roi_pool
from jaxml.ops.lab import lab_to_rgb as lab_to_rgb
from jaxml.ops.lab import rgb_to_lab as rgb_to_lab
from jaxml.ops.letterbox import Letterbox as Letterbox
from jaxml.ops.letterbox import letterbox as letterbox
from jaxml.ops.letterbox import letterbox_boxes as letterbox_boxes
from jaxml.ops.letterbox import letterbox_image as letterbox_image
from jaxml.ops.letterbox import unletterbox_boxes as unletterbox_boxes
from jaxml.ops.matching import Matches as Matches
from jaxml.ops.matching import Sample as Sample
from jaxml.ops.matching import match_anchors as match_anchors
from jaxml.ops.matching import sample_matches as sample_matches
from jaxml.ops.multilevel_roi import multilevel_roi_align as multilevel_roi_align
from jaxml.ops.multilevel_roi import pyramid_level as pyramid_level
from jaxml.ops.nms import batched_nms as batched_nms
from jaxml.ops.nms import nms as nms
from jaxml.ops.order import descending_order as descending_order
from jaxml.ops.order import masked_top_k as masked_top_k
from jaxml.ops.patches import patchify as patchify
from jaxml.ops.patches import unpatchify as unpatchify
from jaxml.ops.pooling import adaptive_max_pool as adaptive_max_pool
from jaxml.ops.pooling import max_pool_with_indices as max_pool_with_indices
from jaxml.ops.pooling import max_unpool as max_unpool
from jaxml.ops.pooling import spatial_pyramid_pool as spatial_pyramid_pool
from jaxml.ops.pooling import yolo_spp as yolo_spp
from jaxml.ops.receptive_field import ReceptiveField as ReceptiveField
from jaxml.ops.receptive_field import Window as Window
from jaxml.ops.receptive_field import (
    effective_receptive_field as effective_receptive_field,
)
from jaxml.ops.receptive_field import receptive_field as receptive_field
from jaxml.ops.receptive_field import receptive_field_of as receptive_field_of
from jaxml.ops.receptive_field import (
    top_down_receptive_field as top_down_receptive_field,
)
from jaxml.ops.resize import crop_and_resize as crop_and_resize
from jaxml.ops.resize import resize_image as resize_image
from jaxml.ops.roi import ps_roi_align as ps_roi_align
from jaxml.ops.roi import ps_roi_pool as ps_roi_pool
from jaxml.ops.roi import roi_align as roi_align
from jaxml.ops.roi import roi_pool as roi_pool
from jaxml.ops.sampling import affine as affine
from jaxml.ops.sampling import bilinear_sample as bilinear_sample
from jaxml.ops.similarity import inverse_norm as inverse_norm
from jaxml.ops.similarity import unit as unit
from jaxml.ops.soft_nms import soft_nms as soft_nms
from jaxml.ops.upsampling import bilinear_kernel as bilinear_kernel
from jaxml.ops.upsampling import conv_transpose as conv_transpose
from jaxml.ops.upsampling import icnr as icnr
from jaxml.ops.upsampling import pixel_shuffle as pixel_shuffle
from jaxml.ops.upsampling import pixel_unshuffle as pixel_unshuffle
from jaxml.ops.upsampling import upsample_bicubic as upsample_bicubic
from jaxml.ops.upsampling import upsample_bilinear as upsample_bilinear
from jaxml.ops.upsampling import upsample_nearest as upsample_nearest
from jaxml.ops.views import byol_view1 as byol_view1
from jaxml.ops.views import byol_view2 as byol_view2
from jaxml.ops.views import byol_views as byol_views
from jaxml.ops.views import digit_view as digit_view
from jaxml.ops.views import dino_local_view as dino_local_view
from jaxml.ops.views import dino_view1 as dino_view1
from jaxml.ops.views import dino_view2 as dino_view2
from jaxml.ops.views import dino_views as dino_views
from jaxml.ops.views import mae_view as mae_view
from jaxml.ops.views import moco_v2_view as moco_v2_view
from jaxml.ops.views import multi_crop as multi_crop
from jaxml.ops.views import simclr_cifar_view as simclr_cifar_view
from jaxml.ops.views import simclr_view as simclr_view
from jaxml.ops.views import simsiam_view as simsiam_view
from jaxml.ops.views import swav_view as swav_view
from jaxml.ops.views import swav_views as swav_views
from jaxml.ops.views import two_views as two_views
