"""Pictures as visual words: a discrete autoencoder on CIFAR-10, or pictures like it.

    python -m experiments.ssl.image_tokenizer_cifar10
    python -m experiments.ssl.image_tokenizer_cifar10 --dataset cifar10_jpg

Every patch becomes one of a few hundred codes. `rebuilt.png` shows pictures of the test
split beside what is left of them in their codes; the reports in `metrics.jsonl` tell how
many codes are in use.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from experiments.ssl import masked_images
from jaxml import data, draw, ops, train


@dataclass(frozen=True)
class Config:
    """A discrete autoencoder on CIFAR-10."""

    dataset: str = "cifar10"
    """`cifar10` is TFDS's; any picture set of the data folder will do."""
    patch_size: int = 4
    """Side of a patch, a power of two."""
    num_codes: int = 512
    """Size of the vocabulary."""
    tokenizer_width: int = 64
    """Channels inside."""
    tokenizer_steps: int = 3000
    """Optimizer updates."""
    tokenizer_rate: float = 1e-3
    """Of Adam."""
    kl_weight: float = 0.5
    """Of the term that keeps all codes in use; 6.6 for the paper's larger patches."""
    area: tuple[float, float] = (0.2, 1.0)
    """Of the crops, as parts of the picture."""
    flip: bool = True
    """Pictures may be mirrored."""
    batch_size: int = 128
    """Images per update, over all devices."""
    seed: int = 0
    """Seed of initialisation, data order, augmentation and noise."""
    data_dir: Path | None = None
    """Folder of the original files; by default the one JAXML_DATA_DIR names."""
    out: Path = Path("runs/image_tokenizer_cifar10")
    """Where everything is written; a run found there is continued."""


SMOKE = Config(
    dataset="digits",
    patch_size=2,
    num_codes=4,
    tokenizer_width=4,
    tokenizer_steps=2,
    batch_size=16,
)


def main(config: Config) -> Mapping[str, float]:
    """Trains, draws, and returns what is known of the test split's codes."""
    model, method, state = masked_images.trained_tokenizer(config, config.out)
    split = data.load_arrays(config.dataset, "test", data_dir=config.data_dir)
    images = split["image"]
    slices = ({"image": images[i : i + 500]} for i in range(0, len(images), 500))
    codes = train.predict(method, state, slices)
    share = np.bincount(codes.ravel(), minlength=config.num_codes) / codes.size
    few = ops.to_float(images[:8])
    rebuilt = model.apply({"params": state.params}, few, method="pictures")
    draw.save_image_sheet(
        config.out / "rebuilt.png",
        np.stack([few, rebuilt], axis=1).reshape(-1, *few.shape[1:]),
        column_titles=["truth", "its codes"],
    )
    used = share[share > 0]
    results = {
        "usage": float(len(used) / config.num_codes),
        "perplexity": float(np.exp(-np.sum(used * np.log(used)))),
        "squared_error": float(np.mean(np.square(rebuilt - few))),
    }
    for name, value in results.items():
        print(f"{name:<14}{value:8.3f}")
    return results


if __name__ == "__main__":
    main(tyro.cli(Config))
