"""One small instance of every exported method, on which `test_contract.py` tries it.

A new method needs one more function here: it returns the method and a batch that holds
everything `init`, `loss` and `predict` read. Small widths: each is compiled.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxml.method import Batch, Method
from jaxml.nn import VGG, ConvNet, VisionTransformer
from jaxml.segmentation import FCN, UNet, fcn, unet
from jaxml.ssl import (
    BERT,
    BYOL,
    CMC,
    CPC,
    DINO,
    MAE,
    BEiT,
    BertEncoder,
    Colorization,
    ContextEncoder,
    FineTuned,
    GlobalCritic,
    ImageTokenizer,
    InfoMaxEncoder,
    Jigsaw,
    LocalCritic,
    MoCoV3,
    PaintingCritic,
    PatchEncoder,
    PriorCritic,
    Projected,
    RelativePatch,
    Rotation,
    SimCLR,
    SimSiam,
    beit,
    bert,
    byol,
    cmc,
    colorization,
    cpc,
    deep_infomax,
    dino,
    distill,
    fine_tune,
    gamut_bins,
    hamming_permutations,
    image_tokenizer,
    inpainting,
    instdisc,
    invaspread,
    jigsaw,
    mae,
    moco,
    moco_v3,
    relative_patch,
    rotation,
    simclr,
    simsiam,
    swav,
)

SIZE = 6
"""Samples in every batch."""


def views() -> Batch:
    """Small images and two noisy views of each."""
    image, *noise = jax.random.uniform(jax.random.key(0), (3, SIZE, 8, 8, 1))
    view1, view2 = (0.8 * image + 0.2 * extra for extra in noise)
    return {"image": image, "view1": view1, "view2": view2}


def indexed() -> Batch:
    """Views, and which samples of a larger set they are of."""
    batch = views()
    return {**batch, "view": batch["view1"], "index": 2 * jnp.arange(SIZE)}


def crops() -> Batch:
    """Two large crops and a small one of each image."""
    batch = views()
    large = jnp.stack([batch["view1"], batch["view2"]], axis=1)
    return {**batch, "global": large, "local": large[:, :1, :6, :6]}


def patches(count: int) -> Batch:
    """Parts of each image."""
    image = views()["image"]
    return {
        "image": image,
        "parts": jnp.stack([image[:, i : i + 4, :4] for i in range(count)], 1),
    }


def projected() -> Projected:
    return Projected(ConvNet([4]), [4])


def labelled() -> Batch:
    """One view of each image, and labels."""
    batch = views()
    return {**batch, "view": batch["view1"], "label": jnp.arange(SIZE) % 3}


def label_maps() -> Batch:
    """Small images, a class for every pixel, and what each is worth."""
    image = views()["image"]
    label = (image[..., 0] > 0.5).astype(jnp.int32).at[:, 0].set(255)
    return {"image": image, "label": label, "weight": 1 + image[..., 0]}


def segmentation_fcn() -> tuple[Method, Batch]:
    model = FCN(VGG((1, 1, 1, 1, 1), width=2), 2, hidden=4)
    return fcn(model), label_maps()


def segmentation_unet() -> tuple[Method, Batch]:
    return unet(UNet(widths=(2, 4), padding="same")), label_maps()


def ssl_byol() -> tuple[Method, Batch]:
    return byol(BYOL(ConvNet([4]), [8, 4], [8, 4])), views()


def tiny_tokenizer() -> ImageTokenizer:
    return ImageTokenizer(5, downsamples=1, width=4, code_width=3, channels=1)


def ssl_beit() -> tuple[Method, Batch]:
    vit = tiny_vit(position="none", relative_position="shared", layer_scale=0.1)
    tokenizer, batch = tiny_tokenizer(), labelled()
    pretrained, _ = image_tokenizer(tokenizer).init(jax.random.key(2), batch)
    model = BEiT(vit, 5)
    return beit(model, tokenizer, pretrained, mask_ratio=0.5, min_block=1), batch


def ssl_bert() -> tuple[Method, Batch]:
    sizes = {"width": 8, "depth": 1, "heads": 2, "hidden": 8, "max_length": 9}
    tokens = jax.random.randint(jax.random.key(0), (SIZE, 9), 0, 11)
    batch = {"tokens": tokens, "random_next": jnp.arange(SIZE) % 2}
    model = BERT(BertEncoder(11, **sizes), next_sentence=True)
    return bert(model, mask_id=1), batch


def ssl_cmc() -> tuple[Method, Batch]:
    halves = CMC([ConvNet([4]), ConvNet([3])], 4, lambda x: (x[:, :4], x[:, 4:]))
    return cmc(halves, 2 * SIZE, num_noise=3), indexed()


def ssl_colorization() -> tuple[Method, Batch]:
    image = jax.random.uniform(jax.random.key(0), (SIZE, 8, 8, 3))
    blocks = [(4, 1, 2, 1), (4, 1, 1, 2)]
    bins = gamut_bins(40)
    method = colorization(Colorization(blocks, 4, len(bins)), bins)
    return method, {"image": image, "view": image}


def ssl_cpc() -> tuple[Method, Batch]:
    encoder = PatchEncoder([4])
    return cpc(CPC(encoder, 4, 1, num_steps=1, size=4, stride=2)), views()


def ssl_deep_infomax() -> tuple[Method, Batch]:
    method = deep_infomax(
        InfoMaxEncoder([4, 4], 1, hidden=4, dim=3),
        alpha=0.5,
        global_critic=GlobalCritic(4),
        local_critic=LocalCritic("dot", 4),
        prior_critic=PriorCritic([4]),
    )
    return method, views()


def ssl_dino() -> tuple[Method, Batch]:
    return dino(DINO(ConvNet([4]), 5, [8, 4]), freeze_steps=1), crops()


def ssl_distill() -> tuple[Method, Batch]:
    model, batch = FineTuned(ConvNet([4]), 3), labelled()
    pretrained = fine_tune(model).init(jax.random.key(2), batch)
    return distill(model, model, pretrained, alpha=0.5), batch


def ssl_fine_tune() -> tuple[Method, Batch]:
    return fine_tune(FineTuned(ConvNet([4]), 3, head=[8])), labelled()


def ssl_image_tokenizer() -> tuple[Method, Batch]:
    return image_tokenizer(tiny_tokenizer()), labelled()


def ssl_inpainting() -> tuple[Method, Batch]:
    batch = labelled()
    hole = jnp.zeros((SIZE, 8, 8, 1), bool).at[:, 2:5, 3:7].set(True)
    method = inpainting(ContextEncoder([4, 4], 1), PaintingCritic([4, 4]), overlap=1)
    return method, {**batch, "hole": hole}


def ssl_instdisc() -> tuple[Method, Batch]:
    return instdisc(projected(), 2 * SIZE, num_noise=3), indexed()


def ssl_invaspread() -> tuple[Method, Batch]:
    return invaspread(projected()), views()


def ssl_jigsaw() -> tuple[Method, Batch]:
    batch = patches(4)
    model = Jigsaw(ConvNet([4]), 5, 4, [4])
    return jigsaw(model, hamming_permutations(5, 4)), {**batch, "tiles": batch["parts"]}


def tiny_vit(**options: Any) -> VisionTransformer:
    sizes = {"image_size": 8, "patch_size": 4, "width": 8, "depth": 1, "heads": 2}
    return VisionTransformer(**{**sizes, **options})


def ssl_mae() -> tuple[Method, Batch]:
    decoder = {"decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2}
    return mae(MAE(tiny_vit(position="sincos"), **decoder, channels=1)), labelled()


def ssl_moco() -> tuple[Method, Batch]:
    return moco(projected(), queue_size=SIZE + 1, shuffle=True), views()


def ssl_moco_v3() -> tuple[Method, Batch]:
    return moco_v3(MoCoV3(ConvNet([4]), [8, 4], [8, 4])), views()


def ssl_swav() -> tuple[Method, Batch]:
    return swav(projected(), num_prototypes=3, queue_size=SIZE + 1), crops()


def ssl_relative_patch() -> tuple[Method, Batch]:
    batch = patches(2)
    patch1, patch2 = (batch["parts"][:, i] for i in range(2))
    pairs = {"patch1": patch1, "patch2": patch2, "direction": jnp.arange(SIZE)}
    return relative_patch(RelativePatch(ConvNet([4]), [4])), {**batch, **pairs}


def ssl_rotation() -> tuple[Method, Batch]:
    return rotation(Rotation(ConvNet([4]))), labelled()


def ssl_simclr() -> tuple[Method, Batch]:
    return simclr(SimCLR(ConvNet([4]), [8, 4])), views()


def ssl_simsiam() -> tuple[Method, Batch]:
    return simsiam(SimSiam(ConvNet([4]), dim=8, bottleneck=4)), views()


CASES: Mapping[str, Callable[[], tuple[Method, Batch]]] = {
    "segmentation.fcn": segmentation_fcn,
    "segmentation.unet": segmentation_unet,
    "ssl.byol": ssl_byol,
    "ssl.beit": ssl_beit,
    "ssl.bert": ssl_bert,
    "ssl.cmc": ssl_cmc,
    "ssl.colorization": ssl_colorization,
    "ssl.cpc": ssl_cpc,
    "ssl.deep_infomax": ssl_deep_infomax,
    "ssl.dino": ssl_dino,
    "ssl.distill": ssl_distill,
    "ssl.fine_tune": ssl_fine_tune,
    "ssl.image_tokenizer": ssl_image_tokenizer,
    "ssl.inpainting": ssl_inpainting,
    "ssl.instdisc": ssl_instdisc,
    "ssl.invaspread": ssl_invaspread,
    "ssl.jigsaw": ssl_jigsaw,
    "ssl.mae": ssl_mae,
    "ssl.moco": ssl_moco,
    "ssl.moco_v3": ssl_moco_v3,
    "ssl.relative_patch": ssl_relative_patch,
    "ssl.rotation": ssl_rotation,
    "ssl.simclr": ssl_simclr,
    "ssl.simsiam": ssl_simsiam,
    "ssl.swav": ssl_swav,
}
