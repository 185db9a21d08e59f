"""Small PNG images, many at a time.

Image libraries take about 0.1 ms to open a picture of any size, which is most of the
time that a set of 28 x 28 digits needs. Pictures of one shape can instead be inflated one
by one and then have the filter of each row undone for all of them together:

    pixel = byte + predict(left, up, corner)  mod 256.

Only the plain kind is read here: 8 bits a channel, grey or RGB or RGBA, not interlaced.
`decode` says which of the pictures are not of it, and a real library reads those.

The specification is https://www.w3.org/TR/png-3/ (filters in section 9).
"""

import struct
import zlib
from collections.abc import Sequence

import numpy as np

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPE = {1: 0, 3: 2, 4: 6}  # by number of channels


def encode(images: np.ndarray) -> list[bytes]:
    """PNG files of uint8 images [images, height, width, channels], made quickly: no
    filter, compression level 1.
    """
    count, *shape = images.shape
    rows = np.zeros((count, shape[0], 1 + shape[1] * shape[2]), np.uint8)
    rows[:, :, 1:] = images.reshape(count, shape[0], -1)
    start, end = _start(shape), _chunk(b"IEND", b"")
    return [start + _chunk(b"IDAT", zlib.compress(row, 1)) + end for row in rows]


def decode(
    files: Sequence[bytes], shape: tuple[int, int, int]
) -> tuple[np.ndarray, list[int]]:
    """Decodes PNG files of one shape.

    Args:
        files: the files' bytes.
        shape: (height, width, channels) that every image must have.

    Returns:
        The images, uint8 [len(files), *shape], and the positions of the files that are
        not whole and plain PNG of that shape, whose pixels are undefined.
    """
    height, width, channels = shape
    rows = np.zeros((len(files), height, 1 + width * channels), np.uint8)
    others = []
    if channels not in _COLOUR_TYPE:
        return rows[:, :, 1:].reshape(-1, *shape), list(range(len(files)))
    start = _start(shape)
    for i, file in enumerate(files):
        whole = file.startswith(start)
        data = _inflate(file, len(start), rows[i].size) if whole else b""
        if len(data) == rows[i].size:
            rows[i].ravel()[:] = np.frombuffer(data, np.uint8)
        if len(data) != rows[i].size or rows[i, :, 0].max(initial=0) > 4:
            others.append(i)
    pixels = rows[:, :, 1:].reshape(-1, *shape)
    return _unfilter(rows[:, :, 0], pixels), others


def _start(shape: Sequence[int]) -> bytes:
    """How a plain file of this shape begins: the signature and the header."""
    height, width, channels = shape
    kind = _COLOUR_TYPE[channels]
    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    return _SIGNATURE + _chunk(b"IHDR", header)


def _chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def _inflate(file: bytes, at: int, size: int) -> bytes:
    """The filtered rows in the chunks from `at` on; empty if anything is amiss."""
    parts = []
    while at + 12 <= len(file):
        end = at + 8 + int.from_bytes(file[at : at + 4])
        body = file[at + 4 : end]
        if int.from_bytes(file[end : end + 4]) != zlib.crc32(body):
            break
        if body.startswith(b"IDAT"):
            parts.append(body[4:])
        if body.startswith(b"IEND"):
            try:
                return zlib.decompress(b"".join(parts), bufsize=size)
            except zlib.error:
                break
        at = end + 4
    return b""


def _unfilter(filters: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Undoes the filter of every row [images, height], for all images at once."""
    if not filters.any():
        return pixels
    _, height, width, _ = pixels.shape
    # Images come last but one, so that each step works on neighbouring memory; a border
    # of zeros stands above and to the left.
    values = np.pad(
        pixels.transpose(1, 2, 0, 3).astype(np.int16), ((1, 0), (1, 0), (0, 0), (0, 0))
    )
    for y in range(1, height + 1):
        # Products with zeros and ones: NumPy selects far more slowly than it multiplies.
        by_left, by_up, by_mean, by_paeth = (
            (filters[:, y - 1, None] == kind).astype(np.int16) for kind in (1, 2, 3, 4)
        )
        for x in range(1, width + 1):
            left, up = values[y, x - 1], values[y - 1, x]
            corner = values[y - 1, x - 1]
            value = values[y, x] + by_left * left + by_up * up
            value += by_mean * ((left + up) >> 1) + by_paeth * _paeth(left, up, corner)
            values[y, x] = value & 255
    return values[1:, 1:].transpose(2, 0, 1, 3).astype(np.uint8)


def _paeth(left: np.ndarray, up: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """Whichever of the three is nearest to left + up - corner; ties in that order."""
    to_left, to_up = abs(up - corner), abs(left - corner)
    to_corner = abs(left + up - 2 * corner)
    other = np.where(to_up <= to_corner, up, corner)
    return np.where((to_left <= to_up) & (to_left <= to_corner), left, other)
