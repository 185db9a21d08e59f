"""Losses that more than one family uses.

| name | paper |
|---|---|
| `nt_xent` | SimCLR, https://arxiv.org/abs/2002.05709 |
"""

from jaxml.losses.contrastive import nt_xent as nt_xent
from jaxml.losses.contrastive import nt_xent_logits as nt_xent_logits
