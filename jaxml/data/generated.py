"""Datasets made on the spot: every sample is a function of its index alone.

Nothing is stored, so a split may be as long as a slice asks for (`train[:2000000]`), and
any sample can be made anywhere. Random numbers are a hash of (split, index, which one);
pictures use additions, products, divisions and square roots only, which IEEE arithmetic
rounds alike on every machine, so they are the same bytes everywhere. Classes are dealt
out in turn: sample i is of class i mod k.
"""

from collections.abc import Callable

import numpy as np

from jaxml.data.source import Read, Source
from jaxml.typing import Float, Int

SHAPES = (
    "disk",
    "square",
    "triangle",
    "bar",
    "cross",
    "ring",
    "star",
    "half disk",
    "two dots",
    "corner",
)
_SPLITS = {"train": 50_000, "test": 10_000}


def shapes(size: int = 32, num_classes: int = 10) -> Source:
    """One coloured shape on a patchy ground: `image` uint8 [size, size, 3] and `label`.

    Only the outline tells the class; place, size, turn and all colours are random.

    Raises:
        ValueError: unless `num_classes` is 2 to 10 and `size` at least 8.
    """
    if not 2 <= num_classes <= len(SHAPES) or size < 8:
        raise ValueError(
            "shapes needs num_classes from 2 to 10 and size from 8, "
            f"got {num_classes} and {size}"
        )

    def open_split(split: str) -> Read:
        def read(indices: Int[np.ndarray, " batch"]) -> dict[str, np.ndarray]:
            label, random = indices % num_classes, _uniform(split, indices, 89)
            image = np.empty((len(indices), size, size, 3), np.uint8)
            for start in range(0, len(indices), 32):  # what the cache can hold
                few = slice(start, start + 32)
                image[few] = draw_shapes(random[few], label[few], size)
            return {"image": image, "label": label.astype(np.int32)}

        return read

    return Source(_SPLITS, open_split, SHAPES[:num_classes], endless=True)


def shape_masks(size: int = 64, num_classes: int = 3, max_shapes: int = 4) -> Source:
    """Several coloured shapes on a patchy ground, and what every pixel belongs to.

    Samples are `image` uint8 [size, size, 3]; `label` uint8 [size, size], 0 for the ground
    and 1 to `num_classes` for the first `SHAPES`; and `instance` uint8 [size, size], 0 for
    the ground and else the number of the shape, of which later ones lie on top. Every
    image has one shape at least. A pixel at an outline belongs to what covers its centre.

    Raises:
        ValueError: unless `num_classes` is 1 to 10, `max_shapes` 1 to 254 and `size` at
            least 8.
    """
    if not 1 <= num_classes <= len(SHAPES) or size < 8 or not 1 <= max_shapes <= 254:
        raise ValueError(
            "shape_masks needs num_classes from 1 to 10, max_shapes from 1 to 254 and "
            f"size from 8, got {num_classes}, {max_shapes} and {size}"
        )

    def open_split(split: str) -> Read:
        def read(indices: Int[np.ndarray, " batch"]) -> dict[str, np.ndarray]:
            random = _uniform(f"{split} masks", indices, 42 + 10 * max_shapes)
            parts = [
                draw_shape_masks(random[i : i + 32], size, num_classes)
                for i in range(0, len(random), 32)
            ]
            return {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}

        return read

    return Source(_SPLITS, open_split, ("ground", *SHAPES[:num_classes]), endless=True)


def gaussian_blobs(dim: int = 2, num_classes: int = 5, spread: float = 20.0) -> Source:
    """Normal clusters of variance one: `features` [dim] and the cluster as `target`.

    Their centres are uniform in [-spread, spread] along each axis, and the same in both
    splits.

    Raises:
        ValueError: unless both sizes are positive.
    """
    if dim < 1 or num_classes < 1:
        raise ValueError(
            f"dim and num_classes must be positive, got {dim} and {num_classes}"
        )
    centres = spread * (2 * _uniform("centres", np.arange(num_classes), dim) - 1)

    def open_split(split: str) -> Read:
        def read(indices: Int[np.ndarray, " batch"]) -> dict[str, np.ndarray]:
            target = indices % num_classes
            u = _uniform(split, indices, 2 * dim)
            # Box and Muller; 1 - u is never zero.
            radius = np.sqrt(-2 * np.log(1 - u[:, :dim]))
            features = centres[target] + radius * np.cos(2 * np.pi * u[:, dim:])
            return {
                "features": features.astype(np.float32),
                "target": target.astype(np.int32),
            }

        return read

    classes = tuple(f"cluster {k}" for k in range(num_classes))
    return Source(_SPLITS, open_split, classes, endless=True)


GENERATED: dict[str, Callable[..., Source]] = {
    "gaussian_blobs": gaussian_blobs,
    "shape_masks": shape_masks,
    "shapes": shapes,
}


def draw_shapes(
    random: Float[np.ndarray, "batch 89"], label: Int[np.ndarray, " batch"], size: int
) -> np.ndarray:
    """Pictures uint8 [batch, size, size, 3] of the shapes `SHAPES[label]`.

    Args:
        random: numbers in [0, 1) that decide everything but the class.
        label: which shape.
        size: pixels along each side.
    """
    place, radius, turn, colours, ground, shade = np.split(
        random.astype(np.float32), [2, 3, 5, 17, 53], axis=1
    )
    radius = (0.35 + 0.25 * radius)[:, :, None]
    u, v = _own_axes(0.7 * place - 0.35, radius, turn, size)

    distance = np.empty_like(u)
    for kind in np.unique(label):
        members = label == kind
        distance[members] = _OUTLINES[kind](u[members], v[members])
    inside = np.clip(0.5 - distance * radius * np.float32(size / 2), 0, 1)[:, None]

    # Channels come first until the end: NumPy is slow where the last axis is short.
    colour = colours.reshape(-1, 4, 3, 1, 1)
    # Half way round from the ground's mean colour, so that the shape can be seen.
    front = (colour[:, 0] + colour[:, 1]) / 2 + 0.3 + 0.4 * colour[:, 2]
    front = front - np.floor(front)
    ground = _blend(colour[:, 0], colour[:, 1], _patches(ground, size))
    front = _blend(front, colour[:, 3], 0.3 * _patches(shade, size))
    image = (255 * _blend(ground, front, inside) + 0.5).astype(np.uint8)
    return image.transpose(0, 2, 3, 1)


def draw_shape_masks(
    random: Float[np.ndarray, "batch numbers"], size: int, num_classes: int
) -> dict[str, np.ndarray]:
    """Pictures and masks, as `shape_masks` describes them.

    Args:
        random: numbers in [0, 1): 42 for the ground and 10 for each shape.
        size: pixels along each side.
        num_classes: which shapes there are.
    """
    random = random.astype(np.float32)
    ground, shapes = random[:, 6:42], random[:, 42:].reshape(len(random), -1, 10)
    low, high = random[:, :6].reshape(-1, 2, 3, 1, 1).swapaxes(0, 1)
    image = _blend(low, high, _patches(ground, size))
    label, instance = np.zeros((2, len(random), size, size), np.uint8)
    for number in range(shapes.shape[1]):
        place, radius, turn, chance, colour = np.split(
            shapes[:, number], [2, 3, 5, 7], axis=1
        )
        radius = (0.18 + 0.27 * radius)[:, :, None]
        u, v = _own_axes(1.6 * place - 0.8, radius, turn, size)
        kinds = (chance[:, 0] * num_classes).astype(int)
        distance = np.empty_like(u)
        for kind in np.unique(kinds):
            members = kinds == kind
            distance[members] = _OUTLINES[kind](u[members], v[members])
        # All but the first are left out one time in three.
        there = (chance[:, 1] < 2 / 3) | (number == 0)
        distance = np.where(there[:, None, None], distance, np.float32(9))
        inside = np.clip(0.5 - distance * radius * np.float32(size / 2), 0, 1)
        # Half way round from the ground's mean colour, so that the shape can be seen.
        front = (low + high)[:, :, 0, 0] / 2 + 0.3 + 0.4 * colour
        front = (front - np.floor(front))[:, :, None, None]
        image = _blend(image, front, inside[:, None])
        label = np.where(
            distance < 0, (kinds + 1).astype(np.uint8)[:, None, None], label
        )
        instance = np.where(distance < 0, np.uint8(number + 1), instance)
    image = (255 * image + 0.5).astype(np.uint8).transpose(0, 2, 3, 1)
    return {"image": image, "label": label, "instance": instance}


def _own_axes(
    shift: np.ndarray, radius: np.ndarray, turn: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Where the pixels lie as a shape sees it: from its centre, turned, in its radii."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(2 / size) - 1
    x = (axis[None, None, :] - shift[:, 0, None, None]) / radius
    y = (axis[None, :, None] - shift[:, 1, None, None]) / radius
    # (1 - t^2, 2 t) / (1 + t^2) runs over half a circle, the sign over the other half.
    t = 2 * turn[:, 0, None, None] - 1
    sign = np.where(turn[:, 1, None, None] < 0.5, np.float32(-1), np.float32(1))
    cos, sin = sign * (1 - t * t) / (1 + t * t), sign * 2 * t / (1 + t * t)
    return cos * x + sin * y, cos * y - sin * x


def _blend(a: np.ndarray, b: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return a + (b - a) * weight


def _patches(values: Float[np.ndarray, "batch 36"], size: int) -> np.ndarray:
    """A 6 x 6 grid of values, interpolated linearly to [batch, 1, size, size]."""
    at = np.arange(size, dtype=np.float32) * np.float32(5 / size)
    low = at.astype(int)
    weight = at - low
    grid = values.reshape(-1, 1, 6, 6)
    rows = _blend(grid[:, :, low], grid[:, :, low + 1], weight[:, None])
    return _blend(rows[..., low], rows[..., low + 1], weight)


def _box(u: np.ndarray, v: np.ndarray, width: float, height: float) -> np.ndarray:
    return np.maximum(abs(u) - width, abs(v) - height)


def _disk(u: np.ndarray, v: np.ndarray, radius: float = 1.0) -> np.ndarray:
    return np.sqrt(u * u + v * v) - radius


# Negative inside, positive outside, zero on the outline; sizes in radii.
_OUTLINES: tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], ...] = (
    _disk,
    lambda u, v: _box(u, v, 0.8, 0.8),
    lambda u, v: np.maximum(-v, 0.866 * abs(u) + 0.5 * v) - 0.5,
    lambda u, v: _box(u, v, 1.0, 0.3),
    lambda u, v: np.minimum(_box(u, v, 1.0, 0.3), _box(u, v, 0.3, 1.0)),
    lambda u, v: abs(_disk(u, v, 0.75)) - 0.25,
    lambda u, v: 0.5 * (np.sqrt(abs(u)) + np.sqrt(abs(v)) - 1.1),
    lambda u, v: np.maximum(_disk(u, v), v),
    lambda u, v: _disk(abs(u) - 0.6, v, 0.4),
    lambda u, v: np.minimum(_box(u + 0.55, v, 0.3, 0.85), _box(u, v + 0.55, 0.85, 0.3)),
)


def _uniform(
    stream: str, indices: Int[np.ndarray, " batch"], count: int
) -> Float[np.ndarray, "batch {count}"]:
    """`count` numbers in [0, 1) for every index of a stream, with 53 random bits."""
    start = np.frombuffer(stream.encode().ljust(8, b"\0")[:8], np.uint64)
    row = _mix(_mix(start) + indices.astype(np.uint64))
    column = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    bits = _mix(row[:, None] + column[None, :])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64, on uint64: every bit of the input changes half of the output."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
