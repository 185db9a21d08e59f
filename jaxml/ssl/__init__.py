"""Self-supervised learning: representations without labels.

| method | paper |
|---|---|
| `simclr` | https://arxiv.org/abs/2002.05709 |
| `simsiam` | https://arxiv.org/abs/2011.10566 |
"""

from jaxml.ssl.simclr import SimCLR as SimCLR
from jaxml.ssl.simclr import simclr as simclr
from jaxml.ssl.simsiam import SimSiam as SimSiam
from jaxml.ssl.simsiam import constant_predictor_rate as constant_predictor_rate
from jaxml.ssl.simsiam import negative_cosine as negative_cosine
from jaxml.ssl.simsiam import simsiam as simsiam
