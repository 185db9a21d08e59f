"""Which samples make up which batch, as a pure function of the batch's number.

The epochs follow one another in an endless stream, each a permutation of the n samples.
Batch number t holds positions t B to (t + 1) B - 1 of the stream, and process p of P
reads the p-th of P equal parts of it, b = B / P positions:

    epoch, offset = divmod(t B + p b + i, L),    i = 0 .. b - 1
    index = permutation(n, seed, epoch)[offset mod n],    mask = (offset < n).

The length L that an epoch takes up in the stream is all there is to the remainder of
n / B: L = n carries it over into the next epoch, L = floor(n / B) B drops it, and
L = ceil(n / B) B pads it. So the whole state of a run is the number t, and the batches do
not depend on how many processes share them.

The trap: a batch that is carried over an epoch's end may hold one sample twice. Contrast
within a batch of a very small set wants `drop_remainder=True`.
"""

import dataclasses
import functools

import numpy as np

from jaxml.export import export
from jaxml.typing import Bool, Int


@export("data.permutation", since="0.1")
@functools.lru_cache(maxsize=4)  # the batches of two epochs at once, twice over
def permutation(num_samples: int, seed: int, epoch: int) -> Int[np.ndarray, " samples"]:
    """A random order of `num_samples` samples; read-only.

    Each sample draws a number, and the numbers are sorted. They are the raw output of
    the counter-based generator Philox under the key (seed, epoch), which no version of
    NumPy changes; a sample's own number in the low bits breaks ties.

    >>> permutation(6, seed=0, epoch=0).tolist()
    [4, 0, 5, 3, 2, 1]
    """
    bits = np.uint64(num_samples.bit_length())
    draws = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(
        num_samples
    )
    draws = draws << bits | np.arange(num_samples, dtype=np.uint64)
    draws.sort()
    draws &= (np.uint64(1) << bits) - np.uint64(1)
    order = draws.view(np.int64)
    order.setflags(write=False)
    return order


@export("data.Sampler", since="0.1")
@dataclasses.dataclass(frozen=True)
class Sampler:
    """Batch number -> (indices, mask) of this process's part of that batch.

    Attributes:
        num_samples: samples per epoch.
        batch_size: samples per batch over all processes.
        seed: of the order of every epoch, in [0, 2**64).
        shuffle: False reads in the fixed order 0, 1, 2 ...
        repeat: False ends after one epoch.
        drop_remainder: what becomes of an epoch's last batch if it is not full. True
            drops it, False pads it with samples whose mask is False. None carries it
            over into the next epoch, so that all batches are full and no sample is lost;
            where there is no next epoch it pads.
        process_index: which part of a batch is ours.
        process_count: into how many parts a batch is cut.

    Raises:
        ValueError: if the batch cannot be cut evenly, if there is no sample, or if the
            remainder is dropped and nothing is left.

    >>> indices, mask = Sampler(5, batch_size=4, shuffle=False, repeat=False)(1)
    >>> indices[mask].tolist(), mask.tolist()
    ([4], [True, False, False, False])
    """

    num_samples: int
    batch_size: int
    seed: int = 0
    shuffle: bool = True
    repeat: bool = True
    drop_remainder: bool | None = None
    process_index: int = 0
    process_count: int = 1

    def __post_init__(self) -> None:
        for name in ("num_samples", "batch_size", "process_count"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.batch_size % self.process_count:
            raise ValueError(
                "batch_size, the global one, must divide by the number of processes, "
                f"got {self.batch_size} and {self.process_count}"
            )
        if not 0 <= self.process_index < self.process_count:
            raise ValueError(
                f"process_index must lie in [0, {self.process_count}), "
                f"got {self.process_index}"
            )
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must lie in [0, 2**64), got {self.seed}")
        if not self.epoch_length:
            raise ValueError(
                "drop_remainder needs one full batch in an epoch, "
                f"got {self.num_samples} samples and batch_size {self.batch_size}"
            )

    @property
    def pads(self) -> bool:
        """Whether a mask is needed: some batch may not be full."""
        if self.drop_remainder is None:
            return not self.repeat
        return not self.drop_remainder

    @property
    def epoch_length(self) -> int:
        """How many positions of the stream an epoch takes up, padding included."""
        if self.pads:
            return -(-self.num_samples // self.batch_size) * self.batch_size
        if self.drop_remainder:
            return self.num_samples // self.batch_size * self.batch_size
        return self.num_samples

    @property
    def num_batches(self) -> int | None:
        """How many batches there are; None if they never end."""
        return None if self.repeat else self.epoch_length // self.batch_size

    def __call__(
        self, step: int
    ) -> tuple[Int[np.ndarray, " local"], Bool[np.ndarray, " local"]]:
        """The samples that this process reads for batch number `step`.

        Returns:
            `indices` into the samples, and `mask`: False where the batch is padded.

        Raises:
            IndexError: if there is no such batch.
        """
        if step < 0 or (self.num_batches is not None and step >= self.num_batches):
            raise IndexError(f"step must lie in [0, {self.num_batches}), got {step}")
        local = self.batch_size // self.process_count
        first = step * self.batch_size + self.process_index * local
        epochs, offsets = np.divmod(first + np.arange(local), self.epoch_length)
        mask = offsets < self.num_samples
        indices = offsets % self.num_samples
        if self.shuffle:
            for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
                order = permutation(self.num_samples, self.seed, epoch)
                now = epochs == epoch
                indices[now] = order[indices[now]]
        return indices, mask
