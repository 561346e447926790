"""Frames that lie all over their file: a larger cache for HDF5 chunks, or a copy in order.

To read one frame of a compressed HDF5 chunk decodes the whole chunk. Chunks that all fit
into a small cache are decoded once as the stack is read in order. Larger ones would be decoded
again for every block of frames, or fill the memory; and of an array with frames last, every
block of frames is all of the file. These are copied once, chunk by chunk and one frame after
the other, into a scratch file that has no name and is gone when the frames are released.
"""

import errno
import itertools
import math
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from emdn_deploy.readers.frames import Frames
from emdn_models.errors import OutputError

# Bytes of decoded chunks that may be in memory at a time, if they are more than 8 frames.
LIMIT = 2**27


def filters_of(array: Any) -> list[int]:
    """List the HDF5 filters of a dataset, or of the first of joined ones, by number.

    Chunks of Zarr are read as if they had one: never in part.
    """
    first = getattr(array, "datasets", [array])[0]
    if not isinstance(first, h5py.Dataset):
        return [0] if hasattr(array, "compressors") else []
    settings = first.id.get_create_plist()
    return [settings.get_filter(i)[0] for i in range(settings.get_nfilters())]


def scratch_folder(path: Path) -> Path:
    """Return where scratch files go: beside the input, unless TMPDIR says otherwise."""
    beside = path.resolve().parent
    here = "TMPDIR" not in os.environ and os.access(beside, os.W_OK)
    return beside if here else Path(tempfile.gettempdir())


def scratch_file(path: Path, fill: Callable[[IO[bytes]], None], size: int = 0) -> IO[bytes]:
    """Return a file without a name, of ``size`` bytes if that is known, once it is filled.

    Raises OutputError if its disk has no room.
    """
    folder = scratch_folder(path)
    file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
    try:
        if size and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        elif size > shutil.disk_usage(folder).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        file.truncate(size)
        fill(file)
        file.flush()
    except BaseException as error:
        file.close()
        full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if not isinstance(error, OSError) or error.errno not in full:
            raise
        raise OutputError(
            f"{path}: needs a scratch file{f' of {size / 1e9:.2g} GB' if size else ''} in "
            f"{folder} ({error.strerror}); choose another folder with TMPDIR"
        ) from error
    return file


def cache_bytes(dataset: h5py.Dataset, order: str) -> int | None:
    """Return the size of the chunk cache that reading in order needs; None for HDF5's own.

    ``order``: one letter or digit per stored axis (see `emdn_deploy.readers.frames.Choice`).
    """
    need = _working_set(dataset, order)
    if dataset.chunks and need and _frame(dataset, order) < need <= _limit(dataset, order):
        return int(1.5 * need)
    return None


def unpacked(frames: Frames, array: Any, order: str) -> Frames:
    """Return the frames, read through a scratch file if they are stored too far apart.

    ``array``: what ``frames`` reads: an h5py dataset, or any array that is read piece by piece.
    ``order``: one letter or digit per axis of ``array``.
    """
    need = _working_set(array, order)
    if not need or need <= _limit(array, order):
        return frames
    size = math.prod(frames.shape) * frames.dtype.itemsize
    chunks = getattr(array, "chunks", None)
    what = f"chunks {chunks}" if chunks else f"axes {order}"
    note = (
        f"{what} of {tuple(array.shape)}: a frame lies all over the file; all frames are first "
        f"copied into a scratch file of {size / 1e9:.2g} GB in {scratch_folder(frames.path)} "
        "(slow; TMPDIR chooses another folder, one frame a chunk avoids it)"
    )
    pixels = math.prod(frames.shape[1:])
    lock, files = threading.Lock(), list[IO[bytes]]()

    def fill(file: IO[bytes]) -> None:
        # Other axes first, then y and x.
        places = sorted(range(len(frames.order)), key=lambda i: (" yx".find(frames.order[i]), i))
        shape = tuple(frames.stored_shape[i] for i in places)
        for where, part in _pieces(array, order):
            # Mapped anew for each piece, so that no more of it counts as this process' memory.
            copy = np.memmap(file, frames.dtype, "r+", shape=shape)
            copy[tuple(where[i] for i in places)] = part.transpose(places)

    def read(start: int, stop: int) -> NDArray[Any]:
        with lock:
            if not files:
                files.append(scratch_file(frames.path, fill, size))
            files[0].seek(start * pixels * frames.dtype.itemsize)
            block = np.fromfile(files[0], frames.dtype, (stop - start) * pixels)
        return block.reshape(stop - start, *frames.shape[1:])

    def release() -> None:
        for file in files:
            file.close()
        frames.release()

    return replace(frames, read_block=read, release=release, notes=(*frames.notes, note))


def _pieces(array: Any, order: str) -> Iterator[tuple[tuple[slice, ...], NDArray[Any]]]:
    """Yield a part of an array at a time, decoding each chunk once.

    Yields the place, one slice per axis without a digit in ``order``, and the pixels.
    """
    sizes = list(getattr(array, "chunks", None) or (1, *array.shape[1:]))
    # Blocks of whole chunks, whole rows of pixels first; two are in memory at a time.
    for i in sorted(range(len(sizes)), key=lambda i: "xy".find(order[i]) % 3):
        room = _limit(array, order) // 2 // (array.dtype.itemsize * math.prod(sizes))
        sizes[i] = min(array.shape[i], sizes[i] * max(1, room))
    ranges = [
        [int(letter)] if letter.isdigit() else range(0, length, size)
        for letter, length, size in zip(order, array.shape, sizes, strict=True)
    ]
    for starts in itertools.product(*ranges):
        where = tuple(
            start if letter.isdigit() else slice(start, min(start + size, length))
            for start, size, length, letter in zip(starts, sizes, array.shape, order, strict=True)
        )
        yield tuple(one for one in where if isinstance(one, slice)), array[where]


def _working_set(array: Any, order: str) -> int:
    """Return the bytes that reading in order comes back to, 0 where it comes back to none."""
    if len(order) != len(array.shape) or not {"y", "x"} <= set(order):
        return 0  # which `array_frames` refuses
    chunks, size = getattr(array, "chunks", None), int(array.dtype.itemsize)
    # Whether the pixels of a frame follow each other, in each chunk.
    long = [
        letter in "yx"
        for letter, length in zip(order, chunks or array.shape, strict=True)
        if length > 1
    ]
    if long == sorted(long) and not filters_of(array):
        return 0
    if not chunks:
        return size * int(math.prod(array.shape))
    within = False
    for letter, length, chunk in zip(order, map(int, array.shape), chunks, strict=True):
        # All along the axes that are counted while a chunk's first one stands still.
        size *= length if letter in "yx" or (within and not letter.isdigit()) else int(chunk)
        within |= letter not in "yx" and chunk > 1
    return size


def _frame(array: Any, order: str) -> int:
    pixels = array.shape[order.index("y")] * array.shape[order.index("x")]
    return int(array.dtype.itemsize * pixels)


def _limit(array: Any, order: str) -> int:
    return max(LIMIT, 8 * _frame(array, order))
