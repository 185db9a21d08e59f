"""Weights of other libraries in our modules, and ours in theirs, without PyTorch.

| name | what |
|---|---|
| `load`, `save` | a module and its weights, from and to files, folders, the hub |
| `convert`, `export_state` | named tensors to variables and back, by rules |
| `Conversion`, `Report` | the rules of a naming; what a conversion did |
| `read_safetensors`, `write_safetensors` | files and shards |
| `ConversionError`, `WeightsError` | what does not fit; what cannot be read |

`load` knows ResNet of torchvision, timm and transformers; ViT of the same, with DeiT,
DINO and DINOv2 (registers and SwiGLU too); MAE, BEiT and BERT of transformers, with their
heads and decoders, and of their authors.
"""

from jaxml.interop.files import WeightsError as WeightsError
from jaxml.interop.files import read_safetensors as read_safetensors
from jaxml.interop.files import write_safetensors as write_safetensors
from jaxml.interop.load import load as load
from jaxml.interop.load import save as save
from jaxml.interop.rules import Conversion as Conversion
from jaxml.interop.rules import ConversionError as ConversionError
from jaxml.interop.rules import Report as Report
from jaxml.interop.rules import convert as convert
from jaxml.interop.rules import export_state as export_state
