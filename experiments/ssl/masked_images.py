"""What the experiments with masked images share: a small ViT and its optimizer.

A ViT learns with AdamW, a warm-up and a cosine; weight decay is for matrices, not for
norms, biases and tokens.
"""

from pathlib import Path
from typing import Any

import jax
import optax

from jaxml import data, ops, parallel, train
from jaxml.compose import augmented
from jaxml.method import Method, Params
from jaxml.nn import VisionTransformer
from jaxml.ops.views import Views
from jaxml.ssl import ImageTokenizer, image_tokenizer
from jaxml.typing import Array, PRNGKeyArray


def image_shape(config: Any) -> tuple[int, int, int]:
    """Height, width and channels of the pictures of `config.dataset`."""
    described = data.describe(config.dataset, data_dir=config.data_dir)
    return described.features["image"][0]


def encoder(config: Any, **options: Any) -> VisionTransformer:
    """The ViT of a configuration."""
    height, width, _ = image_shape(config)
    sizes = {
        "image_size": (height, width),
        "patch_size": config.patch_size,
        "width": config.width,
        "depth": config.depth,
        "heads": config.heads,
        "axis_name": "data",
    }
    return VisionTransformer(**sizes, **options)


def optimizer(config: Any, num_steps: int, rate: float) -> optax.GradientTransformation:
    """AdamW with the momenta of MAE, warmed up for a tenth of the steps."""
    warm_up = max(num_steps // 10, 1)
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, warm_up, num_steps + 1)
    return optax.adamw(
        schedule, 0.9, 0.95, weight_decay=config.weight_decay, mask=is_matrix
    )


def is_matrix(params: Params) -> Any:
    """What weight decay is for."""
    return jax.tree.map(lambda x: x.ndim > 1, params)


def crops(config: Any) -> Views:
    """Crops and flips of the size of the pictures, or crops alone."""
    size = image_shape(config)[:2]

    def views(key: PRNGKeyArray, image: Array) -> dict[str, Array]:
        if config.flip:
            return {"view": ops.mae_view(key, image, size=size, area=config.area)}
        return {"view": ops.random_resized_crop(key, image, size, area=config.area)}

    return views


def centred(images: Array) -> Array:
    """Pictures with a mean near 0 and a deviation near 1."""
    return ops.normalize(images, 0.5, 0.25)


def trained_tokenizer(
    config: Any, out: Path
) -> tuple[ImageTokenizer, Method, train.TrainState]:
    """A tokenizer of patches of the ViT's size, trained on the training split."""
    model = ImageTokenizer(
        config.num_codes,
        downsamples=(config.patch_size - 1).bit_length(),
        width=config.tokenizer_width,
        channels=image_shape(config)[2],
        axis_name="data",
    )
    method = image_tokenizer(
        model,
        num_steps=config.tokenizer_steps,
        kl_weight=config.kl_weight,
        kl_steps=max(config.tokenizer_steps // 30, 1),
    )
    method = augmented(method, crops(config), "data")
    adam = optax.adam(config.tokenizer_rate)
    batches = data.load(
        config.dataset,
        "train",
        config.batch_size,
        seed=config.seed,
        data_dir=config.data_dir,
    )
    init_key, run_key = jax.random.split(jax.random.key(config.seed))
    mesh = parallel.data_mesh()
    state = train.init_state(method, adam, init_key, next(iter(batches)))
    step = train.gradient_step(method, adam, run_key, "data")
    state = train.fit(
        parallel.data_parallel(step, mesh),
        parallel.replicate(state, mesh),
        batches,
        config.tokenizer_steps,
        run=train.Run(out, config, ignore=("out", "data_dir", "seeds", "save_every")),
    )
    return model, method, state
