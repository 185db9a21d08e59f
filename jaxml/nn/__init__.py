"""Linen modules that several families use, called as `module(x, train=bool)`.

| module | what |
|---|---|
| `BatchNorm` | batch norm of the global batch, in groups if asked |
| `Mlp` | projection and prediction heads |
| `ConvNet` | a small encoder for small pictures |
"""

from jaxml.nn.convnet import ConvNet as ConvNet
from jaxml.nn.mlp import Mlp as Mlp
from jaxml.nn.norm import BatchNorm as BatchNorm
