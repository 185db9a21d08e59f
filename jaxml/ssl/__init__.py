"""Self-supervised learning: representations without labels.

| method | paper |
|---|---|
| `cmc` | https://arxiv.org/abs/1906.05849 |
| `cpc` | https://arxiv.org/abs/1807.03748, https://arxiv.org/abs/1905.09272 |
| `deep_infomax` | https://arxiv.org/abs/1808.06670 |
| `distill`, `fine_tune` | SimCLR v2, https://arxiv.org/abs/2006.10029 |
| `instdisc` | https://arxiv.org/abs/1805.01978 |
| `invaspread` | https://arxiv.org/abs/1904.03436 |
| `moco` | https://arxiv.org/abs/1911.05722, https://arxiv.org/abs/2003.04297 |
| `rotation` | https://arxiv.org/abs/1803.07728 |
| `simclr` | https://arxiv.org/abs/2002.05709 |
| `simsiam` | https://arxiv.org/abs/2011.10566 |
| `swav` | https://arxiv.org/abs/2006.09882 |

What they share: `projected` (backbone and head), `queue`, `memory_bank` and `teacher`; the contrastive
losses stand in `jaxml.losses`, bounds of information in `mutual_information`.
"""

from jaxml.ssl.cmc import CMC as CMC
from jaxml.ssl.cmc import cmc as cmc
from jaxml.ssl.cmc import split_lab as split_lab
from jaxml.ssl.cpc import CPC as CPC
from jaxml.ssl.cpc import PatchEncoder as PatchEncoder
from jaxml.ssl.cpc import RowContext as RowContext
from jaxml.ssl.cpc import SignalCPC as SignalCPC
from jaxml.ssl.cpc import cpc as cpc
from jaxml.ssl.cpc import cpc_loss as cpc_loss
from jaxml.ssl.cpc import patch_grid as patch_grid
from jaxml.ssl.cpc import patch_views as patch_views
from jaxml.ssl.deep_infomax import GlobalCritic as GlobalCritic
from jaxml.ssl.deep_infomax import InfoMaxEncoder as InfoMaxEncoder
from jaxml.ssl.deep_infomax import LocalCritic as LocalCritic
from jaxml.ssl.deep_infomax import PriorCritic as PriorCritic
from jaxml.ssl.deep_infomax import deep_infomax as deep_infomax
from jaxml.ssl.deep_infomax import estimate_information as estimate_information
from jaxml.ssl.deep_infomax import prior_optimizer as prior_optimizer
from jaxml.ssl.distill import distill as distill
from jaxml.ssl.distill import distillation_loss as distillation_loss
from jaxml.ssl.fine_tune import FineTuned as FineTuned
from jaxml.ssl.fine_tune import fine_tune as fine_tune
from jaxml.ssl.fine_tune import layerwise_decay as layerwise_decay
from jaxml.ssl.fine_tune import taken_over as taken_over
from jaxml.ssl.fine_tune import transformer_depth as transformer_depth
from jaxml.ssl.instdisc import instance_nce as instance_nce
from jaxml.ssl.instdisc import instance_softmax as instance_softmax
from jaxml.ssl.instdisc import instdisc as instdisc
from jaxml.ssl.instdisc import noise_scores as noise_scores
from jaxml.ssl.invaspread import invaspread as invaspread
from jaxml.ssl.invaspread import invaspread_loss as invaspread_loss
from jaxml.ssl.lars import is_weight as is_weight
from jaxml.ssl.lars import lars as lars
from jaxml.ssl.memory_bank import changed_rows as changed_rows
from jaxml.ssl.memory_bank import init_bank as init_bank
from jaxml.ssl.memory_bank import update_bank as update_bank
from jaxml.ssl.moco import moco as moco
from jaxml.ssl.mutual_information import (
    discrete_mutual_information as discrete_mutual_information,
)
from jaxml.ssl.mutual_information import donsker_varadhan as donsker_varadhan
from jaxml.ssl.mutual_information import (
    gaussian_mutual_information as gaussian_mutual_information,
)
from jaxml.ssl.mutual_information import info_nce_bound as info_nce_bound
from jaxml.ssl.mutual_information import jensen_shannon as jensen_shannon
from jaxml.ssl.mutual_information import nwj as nwj
from jaxml.ssl.mutual_information import split_scores as split_scores
from jaxml.ssl.projected import Projected as Projected
from jaxml.ssl.queue import enqueue as enqueue
from jaxml.ssl.queue import init_queue as init_queue
from jaxml.ssl.rotation import Rotation as Rotation
from jaxml.ssl.rotation import quarter_turns as quarter_turns
from jaxml.ssl.rotation import rotation as rotation
from jaxml.ssl.simclr import SimCLR as SimCLR
from jaxml.ssl.simclr import simclr as simclr
from jaxml.ssl.simsiam import SimSiam as SimSiam
from jaxml.ssl.simsiam import constant_predictor_rate as constant_predictor_rate
from jaxml.ssl.simsiam import negative_cosine as negative_cosine
from jaxml.ssl.simsiam import simsiam as simsiam
from jaxml.ssl.swav import sinkhorn as sinkhorn
from jaxml.ssl.swav import swav as swav
from jaxml.ssl.swav import swav_loss as swav_loss
from jaxml.ssl.teacher import cosine_momentum as cosine_momentum
from jaxml.ssl.teacher import init_teacher as init_teacher
from jaxml.ssl.teacher import move_teacher as move_teacher
