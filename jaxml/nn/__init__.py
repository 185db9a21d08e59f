"""Linen modules that several families use, called as `module(x, train=bool)`.

| module | what |
|---|---|
| `Mlp` | projection and prediction heads |
| `ConvNet` | a small encoder for small pictures |
| `ResNet`, `resnet18` ... `resnet152` | residual networks, with their pyramid of stages |
| `dilated` | options of `ResNet` for an output stride of 8 or 16 |
| `VGG`, `vgg11` ... `vgg19` | plain stacks of convolutions, with and without batch norm |
| `Darknet`, `darknet19`, `darknet53` | the backbones of YOLOv2 and YOLOv3 |
| `DLA`, `dla34` | deep layer aggregation |
| `Hourglass` | stacked hourglasses, each with its own output |
| `FPN` | feature pyramids over the stages of a backbone |
| `MultiHeadAttention`, `Feedforward`, `TransformerBlock` | with any attention function |
| `VisionTransformer`, `vit_tiny` ... `vit_huge` | transformers over patches |
| `attention_maps`, `stack_blocks`, `unstack_blocks` | what its blocks look at; for `scan` |
| `sincos_positions`, `resize_positions` | where a patch lies, on any grid |
| `BatchNorm` | batch norm of the global batch, in groups if asked |
| `FrozenBatchNorm` | batch norm that learns nothing and moves nothing |
| `Conv`, `convolve`, `Dense` | with gradients that are fast on a CPU too |
| `Deconv`, `bilinear_upsample` | transposed convolutions |
| `DeformConv` | a convolution whose taps move |
| `Dropout` | per entry or per sample, the same on any number of devices |
| `step`, `sign`, `swish`, `gated`, `PReLU` ... | activations that `jax.nn` lacks |
| `Dropout`, `AlphaDropout` | the same on any number of devices |
| `init_module`, `apply_module` | a linen module as pure functions |
"""

from jaxml.nn.activations import PReLU as PReLU
from jaxml.nn.activations import gated as gated
from jaxml.nn.activations import gelu as gelu
from jaxml.nn.activations import maxout as maxout
from jaxml.nn.activations import relu_squared as relu_squared
from jaxml.nn.activations import rrelu as rrelu
from jaxml.nn.activations import sign as sign
from jaxml.nn.activations import step as step
from jaxml.nn.activations import swish as swish
from jaxml.nn.attention import MultiHeadAttention as MultiHeadAttention
from jaxml.nn.conv import Conv as Conv
from jaxml.nn.conv import convolve as convolve
from jaxml.nn.convnet import ConvNet as ConvNet
from jaxml.nn.darknet import Darknet as Darknet
from jaxml.nn.darknet import darknet19 as darknet19
from jaxml.nn.darknet import darknet53 as darknet53
from jaxml.nn.deconv import Deconv as Deconv
from jaxml.nn.deconv import bilinear_upsample as bilinear_upsample
from jaxml.nn.deform_conv import DeformConv as DeformConv
from jaxml.nn.dense import Dense as Dense
from jaxml.nn.dla import DLA as DLA
from jaxml.nn.dla import dla34 as dla34
from jaxml.nn.dropout import AlphaDropout as AlphaDropout
from jaxml.nn.dropout import Dropout as Dropout
from jaxml.nn.fpn import FPN as FPN
from jaxml.nn.functional import apply_module as apply_module
from jaxml.nn.functional import init_module as init_module
from jaxml.nn.hourglass import Hourglass as Hourglass
from jaxml.nn.mlp import Mlp as Mlp
from jaxml.nn.norm import BatchNorm as BatchNorm
from jaxml.nn.norm import FrozenBatchNorm as FrozenBatchNorm
from jaxml.nn.positions import relative_positions as relative_positions
from jaxml.nn.positions import resize_positions as resize_positions
from jaxml.nn.positions import sincos_positions as sincos_positions
from jaxml.nn.resnet import ResNet as ResNet
from jaxml.nn.resnet import dilated as dilated
from jaxml.nn.resnet import resnet18 as resnet18
from jaxml.nn.resnet import resnet34 as resnet34
from jaxml.nn.resnet import resnet50 as resnet50
from jaxml.nn.resnet import resnet101 as resnet101
from jaxml.nn.resnet import resnet152 as resnet152
from jaxml.nn.transformer import Feedforward as Feedforward
from jaxml.nn.transformer import TransformerBlock as TransformerBlock
from jaxml.nn.vgg import VGG as VGG
from jaxml.nn.vgg import vgg11 as vgg11
from jaxml.nn.vgg import vgg13 as vgg13
from jaxml.nn.vgg import vgg16 as vgg16
from jaxml.nn.vgg import vgg19 as vgg19
from jaxml.nn.vit import VisionTransformer as VisionTransformer
from jaxml.nn.vit import attention_maps as attention_maps
from jaxml.nn.vit import stack_blocks as stack_blocks
from jaxml.nn.vit import unstack_blocks as unstack_blocks
from jaxml.nn.vit import vit_base as vit_base
from jaxml.nn.vit import vit_huge as vit_huge
from jaxml.nn.vit import vit_large as vit_large
from jaxml.nn.vit import vit_small as vit_small
from jaxml.nn.vit import vit_tiny as vit_tiny
