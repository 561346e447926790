"""Frames that lie all over their file: many are read at a time, and remembered.

To read one frame of a compressed HDF5 chunk decodes the whole chunk, and of an array with frames
last every frame is all of the file. So as many frames as such a piece holds are read at once, as
far as they fit into a bounded memory.
"""

import math
from dataclasses import replace
from functools import lru_cache
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from emdn_deploy.readers.frames import Frames

# Bytes of frames that are remembered, if they are more than 8 frames.
LIMIT = 2**29


def filters_of(array: Any) -> list[int]:
    """List the HDF5 filters of a dataset, or of the first of joined ones, by number.

    Chunks of Zarr are read as if they had one: never in part.
    """
    first = getattr(array, "datasets", [array])[0]
    if not isinstance(first, h5py.Dataset):
        return [0] if hasattr(array, "compressors") else []
    settings = first.id.get_create_plist()
    return [settings.get_filter(i)[0] for i in range(settings.get_nfilters())]


def remembered(frames: Frames, array: Any, order: str) -> Frames:
    """Return the frames, many of which are read at a time where they are stored far apart.

    ``array``: what ``frames`` reads: an h5py dataset, or any array that is read piece by piece.
    ``order``: one letter or digit per axis of ``array``.
    """
    together, total = _together(array, order), frames.shape[0]
    most = max(8, LIMIT // (frames.dtype.itemsize * math.prod(frames.shape[1:])))
    if together == 1:
        return frames
    depth, notes = min(together, total), frames.notes
    if depth > most:
        depth = most
        notes += (
            f"a frame lies all over the file (axes {order}, chunks "
            f"{getattr(array, 'chunks', None)}), which is read again for every {depth} frames: "
            "slow; store one frame a chunk, frames first",
        )

    @lru_cache(maxsize=1)
    def part(number: int) -> NDArray[Any]:
        return frames.read_block(number * depth, min(total, (number + 1) * depth))

    def read(start: int, stop: int) -> NDArray[Any]:
        numbers = range(start // depth, -(-stop // depth))
        return np.concatenate(
            [part(n)[max(0, start - n * depth) : stop - n * depth] for n in numbers]
        )

    return replace(frames, read_block=read, notes=notes)


def _together(array: Any, order: str) -> int:
    """Return how many frames are best read at once, 1 where each lies by itself."""
    chunks = getattr(array, "chunks", None)
    # Whether the pixels of a frame follow each other, in each chunk.
    long = [
        letter in "yx"
        for letter, length in zip(order, chunks or array.shape, strict=True)
        if length > 1
    ]
    if long == sorted(long) and not filters_of(array):
        return 1
    count, within = 1, not chunks
    for letter, length, chunk in zip(order, array.shape, chunks or array.shape, strict=True):
        if letter in "yx" or letter.isdigit():
            continue
        # All along the axes that are counted while a chunk's first one stands still.
        count *= int(length if within else chunk)
        within |= chunk > 1
    return count
