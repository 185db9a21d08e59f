"""Self-supervised learning: representations without labels.

| method | paper |
|---|---|
| `beit` | https://arxiv.org/abs/2106.08254 |
| `bert` | https://arxiv.org/abs/1810.04805 |
| `byol` | https://arxiv.org/abs/2006.07733 |
| `cmc` | https://arxiv.org/abs/1906.05849 |
| `colorization` | https://arxiv.org/abs/1603.08511 |
| `cpc` | https://arxiv.org/abs/1807.03748, https://arxiv.org/abs/1905.09272 |
| `deep_infomax` | https://arxiv.org/abs/1808.06670 |
| `dino` | https://arxiv.org/abs/2104.14294 |
| `distill`, `fine_tune` | SimCLR v2, https://arxiv.org/abs/2006.10029 |
| `image_tokenizer` | https://arxiv.org/abs/2102.12092 |
| `inpainting` | https://arxiv.org/abs/1604.07379 |
| `instdisc` | https://arxiv.org/abs/1805.01978 |
| `invaspread` | https://arxiv.org/abs/1904.03436 |
| `jigsaw` | https://arxiv.org/abs/1603.09246 |
| `mae` | https://arxiv.org/abs/2111.06377 |
| `moco` | https://arxiv.org/abs/1911.05722, https://arxiv.org/abs/2003.04297 |
| `moco_v3` | https://arxiv.org/abs/2104.02057 |
| `relative_patch` | https://arxiv.org/abs/1505.05192 |
| `rotation` | https://arxiv.org/abs/1803.07728 |
| `simclr` | https://arxiv.org/abs/2002.05709 |
| `simsiam` | https://arxiv.org/abs/2011.10566 |
| `swav` | https://arxiv.org/abs/2006.09882 |

What they share: `projected` (backbone and head), `bootstrap` (a network and its teacher),
`crops`, `mask_tokens`, `queue`, `memory_bank` and `teacher`; the contrastive losses stand in
`jaxml.losses`, bounds of information in `mutual_information`.
"""

from jaxml.ssl.beit import BEiT as BEiT
from jaxml.ssl.beit import beit as beit
from jaxml.ssl.beit import beit_loss as beit_loss
from jaxml.ssl.beit import blockwise_masking as blockwise_masking
from jaxml.ssl.beit import hidden_places as hidden_places
from jaxml.ssl.bert import BERT as BERT
from jaxml.ssl.bert import BertEncoder as BertEncoder
from jaxml.ssl.bert import bert as bert
from jaxml.ssl.bert import masked_lm_loss as masked_lm_loss
from jaxml.ssl.byol import BYOL as BYOL
from jaxml.ssl.byol import byol as byol
from jaxml.ssl.byol import byol_loss as byol_loss
from jaxml.ssl.clip_each import clip_each as clip_each
from jaxml.ssl.cmc import CMC as CMC
from jaxml.ssl.cmc import cmc as cmc
from jaxml.ssl.cmc import split_lab as split_lab
from jaxml.ssl.colorization import Colorization as Colorization
from jaxml.ssl.colorization import annealed_mean as annealed_mean
from jaxml.ssl.colorization import color_prior as color_prior
from jaxml.ssl.colorization import color_weights as color_weights
from jaxml.ssl.colorization import colorization as colorization
from jaxml.ssl.colorization import colorize as colorize
from jaxml.ssl.colorization import gamut_bins as gamut_bins
from jaxml.ssl.colorization import soft_encode as soft_encode
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
from jaxml.ssl.dino import DINO as DINO
from jaxml.ssl.dino import class_attention as class_attention
from jaxml.ssl.dino import dino as dino
from jaxml.ssl.dino import dino_loss as dino_loss
from jaxml.ssl.dino import dino_optimizer as dino_optimizer
from jaxml.ssl.distill import distill as distill
from jaxml.ssl.distill import distillation_loss as distillation_loss
from jaxml.ssl.fine_tune import FineTuned as FineTuned
from jaxml.ssl.fine_tune import fine_tune as fine_tune
from jaxml.ssl.fine_tune import layerwise_decay as layerwise_decay
from jaxml.ssl.fine_tune import taken_over as taken_over
from jaxml.ssl.fine_tune import transformer_depth as transformer_depth
from jaxml.ssl.holes import central_hole as central_hole
from jaxml.ssl.holes import cover as cover
from jaxml.ssl.holes import hole_views as hole_views
from jaxml.ssl.holes import random_blocks as random_blocks
from jaxml.ssl.holes import random_region as random_region
from jaxml.ssl.image_tokenizer import ImageTokenizer as ImageTokenizer
from jaxml.ssl.image_tokenizer import gumbel_softmax as gumbel_softmax
from jaxml.ssl.image_tokenizer import image_tokenizer as image_tokenizer
from jaxml.ssl.image_tokenizer import logit_laplace_loss as logit_laplace_loss
from jaxml.ssl.image_tokenizer import uniform_kl as uniform_kl
from jaxml.ssl.inpainting import ChannelwiseDense as ChannelwiseDense
from jaxml.ssl.inpainting import ContextEncoder as ContextEncoder
from jaxml.ssl.inpainting import PaintingCritic as PaintingCritic
from jaxml.ssl.inpainting import inpainting as inpainting
from jaxml.ssl.inpainting import painter_optimizer as painter_optimizer
from jaxml.ssl.inpainting import painting_loss as painting_loss
from jaxml.ssl.instdisc import instance_nce as instance_nce
from jaxml.ssl.instdisc import instance_softmax as instance_softmax
from jaxml.ssl.instdisc import instdisc as instdisc
from jaxml.ssl.instdisc import noise_scores as noise_scores
from jaxml.ssl.invaspread import invaspread as invaspread
from jaxml.ssl.invaspread import invaspread_loss as invaspread_loss
from jaxml.ssl.jigsaw import Jigsaw as Jigsaw
from jaxml.ssl.jigsaw import cut_tiles as cut_tiles
from jaxml.ssl.jigsaw import hamming_distances as hamming_distances
from jaxml.ssl.jigsaw import hamming_permutations as hamming_permutations
from jaxml.ssl.jigsaw import jigsaw as jigsaw
from jaxml.ssl.jigsaw import jigsaw_views as jigsaw_views
from jaxml.ssl.jigsaw import normalize_tiles as normalize_tiles
from jaxml.ssl.jigsaw import shuffle_tiles as shuffle_tiles
from jaxml.ssl.lars import is_weight as is_weight
from jaxml.ssl.lars import lars as lars
from jaxml.ssl.mae import MAE as MAE
from jaxml.ssl.mae import Masking as Masking
from jaxml.ssl.mae import mae as mae
from jaxml.ssl.mae import mae_loss as mae_loss
from jaxml.ssl.mae import mae_pictures as mae_pictures
from jaxml.ssl.mae import mae_targets as mae_targets
from jaxml.ssl.mae import random_masking as random_masking
from jaxml.ssl.mask_tokens import MaskedTokens as MaskedTokens
from jaxml.ssl.mask_tokens import mask_tokens as mask_tokens
from jaxml.ssl.memory_bank import changed_rows as changed_rows
from jaxml.ssl.memory_bank import init_bank as init_bank
from jaxml.ssl.memory_bank import update_bank as update_bank
from jaxml.ssl.moco import moco as moco
from jaxml.ssl.moco_v3 import MoCoV3 as MoCoV3
from jaxml.ssl.moco_v3 import moco_v3 as moco_v3
from jaxml.ssl.moco_v3 import moco_v3_loss as moco_v3_loss
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
from jaxml.ssl.relative_patch import DIRECTIONS as DIRECTIONS
from jaxml.ssl.relative_patch import RelativePatch as RelativePatch
from jaxml.ssl.relative_patch import drop_colors as drop_colors
from jaxml.ssl.relative_patch import pair_views as pair_views
from jaxml.ssl.relative_patch import patch_pair as patch_pair
from jaxml.ssl.relative_patch import pixelate as pixelate
from jaxml.ssl.relative_patch import project_colors as project_colors
from jaxml.ssl.relative_patch import relative_patch as relative_patch
from jaxml.ssl.rotation import Rotation as Rotation
from jaxml.ssl.rotation import quarter_turns as quarter_turns
from jaxml.ssl.rotation import rotation as rotation
from jaxml.ssl.simclr import SimCLR as SimCLR
from jaxml.ssl.simclr import simclr as simclr
from jaxml.ssl.simsiam import SimSiam as SimSiam
from jaxml.ssl.simsiam import constant_predictor_rate as constant_predictor_rate
from jaxml.ssl.simsiam import negative_cosine as negative_cosine
from jaxml.ssl.simsiam import simsiam as simsiam
from jaxml.ssl.simsiam import simsiam_optimizer as simsiam_optimizer
from jaxml.ssl.swav import sinkhorn as sinkhorn
from jaxml.ssl.swav import swav as swav
from jaxml.ssl.swav import swav_loss as swav_loss
from jaxml.ssl.teacher import cosine_momentum as cosine_momentum
from jaxml.ssl.teacher import init_teacher as init_teacher
from jaxml.ssl.teacher import move_teacher as move_teacher
