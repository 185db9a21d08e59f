"""From a dataset's name to batches, the same ones on any number of processes.

A pipeline is a grain dataset over batch numbers: the sampler says which samples batch t
is made of, one read gathers them, and threads run ahead of the consumer. The state of its
iterator is t and nothing else, so a run goes on exactly where it stood.
"""

import os
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from jaxml.data.catalog import PathLike, open_source
from jaxml.data.sampler import Sampler
from jaxml.data.source import Read, Source, read_slices
from jaxml.data.splits import parse_split
from jaxml.export import export

if TYPE_CHECKING:
    from grain import IterDataset
else:
    IterDataset = Iterable  # importing grain takes half a second


@export("data.Description", since="0.1")
class Description(NamedTuple):
    """What a dataset holds.

    Attributes:
        sizes: samples in each split.
        classes: their names in the order of the labels; empty if there are none.
        features: name -> (shape of one sample, type).
    """

    sizes: Mapping[str, int]
    classes: tuple[str, ...]
    features: Mapping[str, tuple[tuple[int, ...], np.dtype]]


@export("data.load", since="0.1")
def load(
    name: str | Source,
    split: str,
    batch_size: int,
    *,
    seed: int = 0,
    shuffle: bool = True,
    repeat: bool = True,
    drop_remainder: bool | None = None,
    with_index: bool = False,
    process_index: int | None = None,
    process_count: int | None = None,
    num_threads: int | None = None,
    data_dir: PathLike | None = None,
    tfds_dir: PathLike | None = None,
    download: bool | None = None,
    **options: Any,
) -> IterDataset[dict[str, np.ndarray]]:
    """Batches of a dataset, each a dict of NumPy arrays with the sample axis first.

    Pictures are `image`, uint8 NHWC in 0 .. 255 or float32 in [0, 1], with an int32
    `label`; tables are `features` and `target`. Which samples make up which batch depends
    on the arguments alone: see `Sampler`, whose arguments most of these are.

    Args:
        name: one of the names in `jaxml.data`, a set of TFDS, a folder of `data_dir`, or
            `images:<folder or archive>`; or a source.
        split: `train`, `test` ..., slices such as `train[:1000]` or `train[10%:20%]`, and
            sums of them, `train+test`.
        batch_size: samples in a batch over all processes.
        seed: of the order.
        shuffle: False keeps the fixed order.
        repeat: False ends after one epoch.
        drop_remainder: what becomes of an epoch's last samples if they do not fill a
            batch. True drops them. False pads the batch, and all batches have a bool
            `mask` that is False on padding. None lets the next epoch fill it up or, with
            `repeat=False`, pads.
        with_index: adds `index`, each sample's place in the split, as int32.
        process_index: which part of every batch to read; None asks JAX.
        process_count: how many parts there are; None asks JAX.
        num_threads: how many batches are read at the same time, ahead of the consumer;
            None is the number of processors, at most 16. 0 reads when asked.
        data_dir: the folder of original files; None is JAXML_DATA_DIR.
        tfds_dir: where TFDS keeps prepared sets; None is TFDS_DATA_DIR, or else
            `~/tensorflow_datasets`.
        download: whether missing files may be downloaded; None asks whether
            JAXML_DOWNLOAD is 1.
        **options: of the source, such as `image_size` of pictures.

    Returns:
        A `grain.IterDataset`. Its iterators have `get_state` and `set_state`; the state
        can be written as JSON and holds on any number of processes.

    Raises:
        ValueError: if there is no such dataset, split or sample, or if the batch cannot
            be shared evenly.
        FileNotFoundError: if files are missing; the message says which, and where.
        TypeError: if the source has no such option.

    >>> batches = iter(load("digits", "train[:100]", 32))
    >>> batch = next(batches)
    >>> batch["image"].shape, batch["label"].dtype
    ((32, 8, 8, 1), dtype('int32'))
    >>> batches.get_state()
    {'next_index': 1}
    """
    import grain

    if process_index is None:
        process_index = jax.process_index()
    if process_count is None:
        process_count = jax.process_count()
    if num_threads is None:
        num_threads = min(os.cpu_count() or 1, 16)
    source = _source(
        name, data_dir=data_dir, tfds_dir=tfds_dir, download=download, **options
    )
    num_samples, read = _open(source, split)
    sampler = Sampler(
        num_samples,
        batch_size,
        seed=seed,
        shuffle=shuffle,
        repeat=repeat,
        drop_remainder=drop_remainder,
        process_index=process_index,
        process_count=process_count,
    )

    def read_batch(step: int) -> dict[str, np.ndarray]:
        indices, mask = sampler(step)
        batch = read(indices)
        if sampler.pads:
            batch["mask"] = mask
        if with_index:
            batch["index"] = indices.astype(np.int32)
        return batch

    # A number of batches is wanted even where they never end.
    steps = sys.maxsize if sampler.num_batches is None else sampler.num_batches
    ahead = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=num_threads)
    return grain.MapDataset.range(steps).map(read_batch).to_iter_dataset(ahead)


@export("data.load_arrays", since="0.1")
def load_arrays(
    name: str | Source,
    split: str,
    data_dir: PathLike | None = None,
    *,
    tfds_dir: PathLike | None = None,
    download: bool | None = None,
    **options: Any,
) -> dict[str, np.ndarray]:
    """A whole split in its fixed order; the arguments are those of `load`.

    >>> digits = load_arrays("digits", "test")
    >>> digits["image"].shape, digits["label"][:12].tolist()
    ((355, 8, 8, 1), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1])
    """
    source = _source(
        name, data_dir=data_dir, tfds_dir=tfds_dir, download=download, **options
    )
    num_samples, read = _open(source, split)
    parts = np.array_split(np.arange(num_samples), -(-num_samples // 1024))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        batches = list(pool.map(read, parts))
    return {
        key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]
    }


@export("data.describe", since="0.1")
def describe(
    name: str | Source,
    data_dir: PathLike | None = None,
    *,
    tfds_dir: PathLike | None = None,
    download: bool | None = None,
    **options: Any,
) -> Description:
    """Sizes, classes and features of a dataset; the arguments are those of `load`.

    >>> describe("iris").classes
    ('setosa', 'versicolor', 'virginica')
    """
    source = _source(
        name, data_dir=data_dir, tfds_dir=tfds_dir, download=download, **options
    )
    first = source.open(next(iter(source.sizes)))(np.zeros(1, int))
    features = {key: (value.shape[1:], value.dtype) for key, value in first.items()}
    return Description(dict(source.sizes), tuple(source.classes), features)


def _source(name: str | Source, **arguments: Any) -> Source:
    if isinstance(name, str):
        return open_source(name, **arguments)
    given = [key for key, value in arguments.items() if value is not None]
    if given:
        raise TypeError(f"a source takes no more arguments, got {', '.join(given)}")
    return name


def _open(source: Source, split: str) -> tuple[int, Read]:
    slices = parse_split(split, source.sizes, endless=source.endless)
    return read_slices(source, slices)
