"""Checksums of the files in a folder: written when it is whole, checked before reading.

Every file is cut into blocks, and the CRC-32 of each block stands in one JSON file beside
them, which carries its own. Any flipped bit, any burst of up to 32 bits and any lost or
missing byte is found with certainty, other damage but for one chance in four billion. The
blocks are read by several threads, and by several processes where there are several.

The trap they close: the arrays' own storage guards its index, not the numbers, so that a
flipped bit in a file of weights is read back as another weight.
"""

import json
import os
import zlib
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

NAME = "CHECKSUMS"
BLOCK = 1 << 26  # bytes: small enough to share among threads, large enough to list
READ = 1 << 20
THREADS = min(8, os.cpu_count() or 1)


class Block(NamedTuple):
    """What a stretch of a file should be."""

    name: str
    start: int
    stop: int
    size: int  # of the whole file
    crc: int


def write(folder: Path, ignore: Collection[str] = ()) -> None:
    """Writes the checksums of all files in `folder` but those named in `ignore`."""
    files = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    cuts = [
        Block(name, start, min(start + BLOCK, size), size, 0)
        for name, size in files.items()
        if name not in ignore
        for start in range(0, max(size, 1), BLOCK)
    ]
    with ThreadPoolExecutor(THREADS) as pool:
        crcs = pool.map(lambda cut: _crc(folder, cut), cuts)
        blocks = [cut._replace(crc=crc) for cut, crc in zip(cuts, crcs, strict=True)]
    (folder / NAME).write_bytes(_text(blocks).encode())


def damages(folder: Path, below: str = "") -> list[str]:
    """What is wrong with the files of such a folder, a line for each; [] if nothing.

    With several processes all must call, and all get the same answer.

    Args:
        folder: as given to `write`.
        below: looks only at files whose names begin so.
    """
    try:
        blocks = _read(folder)
    except FileNotFoundError:
        return [f"{NAME} is missing"]
    except (ValueError, KeyError, TypeError):
        return [f"{NAME} is not what was written"]
    blocks = [block for block in blocks if block.name.startswith(below)]
    rank, count = jax.process_index(), jax.process_count()
    wrong = np.zeros(len(blocks), bool)
    with ThreadPoolExecutor(THREADS) as pool:
        own = pool.map(lambda block: _is_wrong(folder, block), blocks[rank::count])
        wrong[rank::count] = list(own)
    if count > 1:
        wrong = multihost_utils.process_allgather(wrong).any(axis=0)
    bad = [block for block, is_wrong in zip(blocks, wrong, strict=True) if is_wrong]
    return list(dict.fromkeys(_description(folder, block) for block in bad))


def _read(folder: Path) -> list[Block]:
    text = (folder / NAME).read_bytes().decode()
    blocks = [Block(*row) for row in json.loads(text)["blocks"]]
    if text != _text(blocks):
        raise ValueError
    return blocks


def _text(blocks: list[Block]) -> str:
    """JSON with a line for each block; any other text is damaged."""
    rows = ",\n".join(map(json.dumps, blocks))
    crc = zlib.crc32(rows.encode())
    return f'{{"crc32": {crc}, "blocks": [\n{rows}\n]}}\n'


def _crc(folder: Path, block: Block) -> int:
    crc, left = 0, block.stop - block.start
    with open(folder / block.name, "rb", buffering=0) as file:
        file.seek(block.start)
        while left and (piece := file.read(min(left, READ))):
            crc = zlib.crc32(piece, crc)
            left -= len(piece)
    return crc


def _is_wrong(folder: Path, block: Block) -> bool:
    try:
        size = (folder / block.name).stat().st_size
        return size != block.size or _crc(folder, block) != block.crc
    except OSError:
        return True


def _description(folder: Path, block: Block) -> str:
    path = folder / block.name
    if not path.is_file():
        return f"{block.name} is missing"
    if (size := path.stat().st_size) != block.size:
        return f"{block.name} has {size} bytes, not {block.size}"
    return f"{block.name} is not what was written (bytes {block.start} to {block.stop})"
