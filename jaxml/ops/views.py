"""Views: the augmentation recipes of the self-supervised papers.

A recipe is a plain function `(key, image) -> image` with the paper's numbers as defaults;
`functools.partial` changes them. `two_views` and `multi_crop` make of recipes what a
method reads, one dictionary of views per image:

    views = two_views(functools.partial(simclr_view, size=96))
    method = augmented(simclr(...), views)

Images stay in [0, 1]. Where a paper subtracts the mean of ImageNet, do so in the encoder
(`jaxml.ops.normalize`), which then sees the same in training and in evaluation.

| recipe | crop area | jitter (b, c, s, h), p | gray | blur | solarize |
|---|---|---|---|---|---|
| `simclr_view` | 0.08 to 1 | 0.8, 0.8, 0.8, 0.2 times strength, 0.8 | 0.2 | 0.5 | |
| `simclr_cifar_view` | 0.08 to 1 | the same with strength 0.5 | 0.2 | | |
| `moco_v2_view`, `simsiam_view` | 0.2 to 1 | 0.4, 0.4, 0.4, 0.1, 0.8 | 0.2 | 0.5 | |
| `byol_view1`, `byol_view2` | 0.08 to 1 | 0.4, 0.4, 0.2, 0.1, 0.8 | 0.2 | 1, 0.1 | 0, 0.2 |
| `swav_view` | 0.14 to 1 | 0.8, 0.8, 0.8, 0.2, 0.8 | 0.2 | 0.5 | |
| `dino_view1`, `dino_view2` | 0.4 to 1 | 0.4, 0.4, 0.2, 0.1, 0.8 | 0.2 | 1, 0.1 | 0, 0.2 |
| `dino_local_view` | 0.05 to 0.4 | 0.4, 0.4, 0.2, 0.1, 0.8 | 0.2 | 0.5 | |
| `mae_view` | 0.2 to 1 | | | | |

Every recipe flips half of its images; sigma of the blur is uniform in [0.1, 2] pixels.
The trap is a small image: the same jitter and blur erase what a class is told by. CIFAR
gets half of the jitter and no blur, and digits, which a flip changes, `digit_view`.

Reference: Chen et al., "A Simple Framework for Contrastive Learning of Visual
Representations", ICML 2020, https://arxiv.org/abs/2002.05709 (appendices A and B.9);
Chen et al., "Improved Baselines with Momentum Contrastive Learning", 2020,
https://arxiv.org/abs/2003.04297; Grill et al., "Bootstrap Your Own Latent", NeurIPS 2020,
https://arxiv.org/abs/2006.07733 (appendix B); Caron et al., "Unsupervised Learning of
Visual Features by Contrasting Cluster Assignments", NeurIPS 2020,
https://arxiv.org/abs/2006.09882 (multi-crop); Chen and He, "Exploring Simple Siamese
Representation Learning", CVPR 2021, https://arxiv.org/abs/2011.10566; Caron et al.,
"Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021,
https://arxiv.org/abs/2104.14294; He et al., "Masked Autoencoders Are Scalable Vision
Learners", CVPR 2022, https://arxiv.org/abs/2111.06377 (appendix A.1). Deviations: crops are
bilinear with antialiasing where the code of SimCLR has a cubic without; contrast is about the
mean of the gray image, in the code of SimCLR and BYOL about that of each channel; the blur of
MoCo v2, SimSiam and DINO is a Gaussian with a fixed number of taps, theirs Pillow's
approximation of one.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from jaxml.export import export
from jaxml.ops.augment import (
    Range,
    View,
    apply_with_probability,
    color_jitter,
    random_affine,
    random_gaussian_blur,
    random_grayscale,
    random_horizontal_flip,
    random_intensity,
    random_noise,
    random_resized_crop,
    random_solarize,
)
from jaxml.ops.color import Image, Number
from jaxml.typing import Array, Float, PRNGKeyArray

Size = int | tuple[int, int]
Views = Callable[[PRNGKeyArray, Array], dict[str, Array]]
"""(key, one image) -> named views of it."""


@export("ops.two_views", since="0.1")
def two_views(view1: View, view2: View | None = None) -> Views:
    """(key, image) -> {"view1": ..., "view2": ...}, two independent draws.

    Args:
        view1: recipe of the first view.
        view2: recipe of the second; by default that of the first.
    """

    def views(key: PRNGKeyArray, image: Array) -> dict[str, Array]:
        first, second = _pair(view1, view2, key, image)
        return {"view1": first, "view2": second}

    return views


@export("ops.multi_crop", since="0.1")
def multi_crop(
    global1: View, local: View, num_local: int, *, global2: View | None = None
) -> Views:
    """(key, image) -> {"global": [2, ...], "local": [num_local, ...]}.

    Args:
        global1: recipe of the first large crop.
        local: recipe of the small crops.
        num_local: how many small crops, may be 0.
        global2: recipe of the second large crop, of the same size; by default `global1`.

    Raises:
        ValueError: if `num_local` is negative.
    """
    if num_local < 0:
        raise ValueError(f"num_local must not be negative, got {num_local}")

    def views(key: PRNGKeyArray, image: Array) -> dict[str, Array]:
        global_key, local_key = jax.random.split(key)
        large = jnp.stack(_pair(global1, global2, global_key, image))
        if num_local == 0:
            return {"global": large}
        keys = jax.random.split(local_key, num_local)
        return {"global": large, "local": jax.vmap(local, (0, None))(keys, image)}

    return views


@export("ops.simclr_view", since="0.1")
def simclr_view(
    key: PRNGKeyArray,
    image: Image,
    *,
    size: Size = 224,
    strength: Number = 1.0,
    blur: Number = 0.5,
) -> Float[Array, "out_height out_width channels"]:
    """SimCLR on ImageNet.

    Args:
        key: of this view.
        image: 1 or 3 channels.
        size: of the view.
        strength: of the color jitter.
        blur: probability of it.
    """
    jitter = (0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength)
    return _view(key, image, size, area=(0.08, 1), jitter=jitter, blur=blur)


@export("ops.simclr_cifar_view", since="0.1")
def simclr_cifar_view(
    key: PRNGKeyArray, image: Image, *, size: Size = 32, strength: Number = 0.5
) -> Float[Array, "out_height out_width channels"]:
    """SimCLR on CIFAR-10: half the jitter, no blur."""
    return simclr_view(key, image, size=size, strength=strength, blur=0)


@export("ops.moco_v2_view", since="0.1")
def moco_v2_view(
    key: PRNGKeyArray, image: Image, *, size: Size = 224, blur: Number = 0.5
) -> Float[Array, "out_height out_width channels"]:
    """MoCo v2."""
    jitter = (0.4, 0.4, 0.4, 0.1)
    return _view(key, image, size, area=(0.2, 1), jitter=jitter, blur=blur)


@export("ops.simsiam_view", since="0.1")
def simsiam_view(
    key: PRNGKeyArray, image: Image, *, size: Size = 224, blur: Number = 0.5
) -> Float[Array, "out_height out_width channels"]:
    """SimSiam: the view of MoCo v2; for CIFAR-10 with `size=32, blur=0`."""
    return moco_v2_view(key, image, size=size, blur=blur)


@export("ops.byol_view1", since="0.1")
def byol_view1(
    key: PRNGKeyArray, image: Image, *, size: Size = 224
) -> Float[Array, "out_height out_width channels"]:
    """BYOL's first view: always blurred."""
    return _soft_view(key, image, size, area=(0.08, 1), blur=1, solarize=0)


@export("ops.byol_view2", since="0.1")
def byol_view2(
    key: PRNGKeyArray, image: Image, *, size: Size = 224
) -> Float[Array, "out_height out_width channels"]:
    """BYOL's second view: seldom blurred, sometimes solarized."""
    return _soft_view(key, image, size, area=(0.08, 1), blur=0.1, solarize=0.2)


@export("ops.byol_views", since="0.1")
def byol_views(
    key: PRNGKeyArray, image: Image, *, size: Size = 224
) -> dict[str, Array]:
    """BYOL's two views, which differ: {"view1": ..., "view2": ...}."""
    pair = two_views(partial(byol_view1, size=size), partial(byol_view2, size=size))
    return pair(key, image)


@export("ops.swav_view", since="0.1")
def swav_view(
    key: PRNGKeyArray, image: Image, *, size: Size = 224, area: Range = (0.14, 1)
) -> Float[Array, "out_height out_width channels"]:
    """SwAV's large crop; its small ones have `size=96, area=(0.05, 0.14)`."""
    jitter = (0.8, 0.8, 0.8, 0.2)
    return _view(key, image, size, area=area, jitter=jitter, blur=0.5, taps=23)


@export("ops.swav_views", since="0.1")
def swav_views(
    key: PRNGKeyArray,
    image: Image,
    *,
    num_local: int = 6,
    global_size: Size = 224,
    local_size: Size = 96,
) -> dict[str, Array]:
    """SwAV's multi-crop: {"global": [2, ...], "local": [num_local, ...]}."""
    large = partial(swav_view, size=global_size)
    small = partial(swav_view, size=local_size, area=(0.05, 0.14))
    return multi_crop(large, small, num_local)(key, image)


@export("ops.dino_view1", since="0.1")
def dino_view1(
    key: PRNGKeyArray, image: Image, *, size: Size = 224, area: Range = (0.4, 1)
) -> Float[Array, "out_height out_width channels"]:
    """DINO's first large crop: always blurred."""
    return _soft_view(key, image, size, area=area, blur=1, solarize=0, taps=23)


@export("ops.dino_view2", since="0.1")
def dino_view2(
    key: PRNGKeyArray, image: Image, *, size: Size = 224, area: Range = (0.4, 1)
) -> Float[Array, "out_height out_width channels"]:
    """DINO's second large crop: seldom blurred, sometimes solarized."""
    return _soft_view(key, image, size, area=area, blur=0.1, solarize=0.2, taps=23)


@export("ops.dino_local_view", since="0.1")
def dino_local_view(
    key: PRNGKeyArray, image: Image, *, size: Size = 96, area: Range = (0.05, 0.4)
) -> Float[Array, "out_height out_width channels"]:
    """DINO's small crops."""
    return _soft_view(key, image, size, area=area, blur=0.5, solarize=0, taps=23)


@export("ops.dino_views", since="0.1")
def dino_views(
    key: PRNGKeyArray,
    image: Image,
    *,
    num_local: int = 8,
    global_size: Size = 224,
    local_size: Size = 96,
) -> dict[str, Array]:
    """DINO's multi-crop: {"global": [2, ...], "local": [num_local, ...]}."""
    crops = multi_crop(
        partial(dino_view1, size=global_size),
        partial(dino_local_view, size=local_size),
        num_local,
        global2=partial(dino_view2, size=global_size),
    )
    return crops(key, image)


@export("ops.mae_view", since="0.1")
def mae_view(
    key: PRNGKeyArray, image: Image, *, size: Size = 224, area: Range = (0.2, 1)
) -> Float[Array, "out_height out_width channels"]:
    """MAE: cropping (bicubic) and flips alone; what is masked makes the samples differ.

    Args:
        key: of this view.
        image: any number of channels.
        size: of the view.
        area: of the crop, as parts of the image's.
    """
    crop_key, flip_key = jax.random.split(key)
    view = random_resized_crop(crop_key, image, size, area=area, method="bicubic")
    return random_horizontal_flip(flip_key, jnp.clip(view, 0, 1))


@export("ops.digit_view", since="0.1")
def digit_view(
    key: PRNGKeyArray,
    image: Image,
    *,
    degrees: Number = 15,
    translate: Number = 0.125,
    scale: Range = (0.8, 1.2),
    shear: Number = 10,
    gain: Range = (0.6, 1.4),
    sigma: Range = (0, 0.1),
) -> Image:
    """Small gray images such as digits: moved, turned, brightened, made noisy.

    Args:
        key: of this view.
        image: bright on black, any number of channels.
        degrees: largest rotation.
        translate: largest move along each axis, as a part of the image.
        scale: range of the scaling.
        shear: largest shear along each axis, in degrees.
        gain: range of the brightness.
        sigma: range of the noise's standard deviation.
    """
    affine_key, gain_key, noise_key = jax.random.split(key, 3)
    image = random_affine(
        affine_key,
        image,
        degrees=degrees,
        translate=(translate, translate),
        scale=scale,
        shear=(shear, shear),
    )
    image = random_intensity(gain_key, image, gain=gain)
    return random_noise(noise_key, image, sigma)


def _soft_view(
    key: PRNGKeyArray,
    image: Array,
    size: Size,
    *,
    area: Range,
    blur: Number,
    solarize: Number,
    taps: int | None = None,
) -> Array:
    """BYOL's colors and cubic crops, taken over by DINO."""
    return _view(
        key,
        image,
        size,
        area=area,
        jitter=(0.4, 0.4, 0.2, 0.1),
        blur=blur,
        solarize=solarize,
        method="bicubic",
        taps=taps,
    )


def _view(
    key: PRNGKeyArray,
    image: Array,
    size: Size,
    *,
    area: Range,
    jitter: tuple[Number, Number, Number, Number],
    blur: Number,
    solarize: Number = 0,
    method: str = "bilinear",
    taps: int | None = None,
) -> Array:
    """Crop, flip, jitter, gray, blur, solarize: what all the recipes share."""
    brightness, contrast, saturation, hue = jitter
    jittered = partial(
        color_jitter,
        brightness=brightness,
        contrast=contrast,
        saturation=saturation,
        hue=hue,
    )
    keys = jax.random.split(key, 6)
    image = random_resized_crop(keys[0], image, size, area=area, method=method)
    image = random_horizontal_flip(keys[1], image)
    image = apply_with_probability(keys[2], 0.8, jittered, image)
    image = random_grayscale(keys[3], image, 0.2)
    if taps is not None:  # a small image cannot be mirrored so far
        taps = min(taps, 2 * min(image.shape[:2]) - 1)
    blurred = partial(random_gaussian_blur, kernel_size=taps)
    image = apply_with_probability(keys[4], blur, blurred, image)
    return random_solarize(keys[5], image, solarize)


def _pair(
    view1: View, view2: View | None, key: PRNGKeyArray, image: Array
) -> tuple[Array, Array]:
    key1, key2 = jax.random.split(key)
    return view1(key1, image), (view2 or view1)(key2, image)
