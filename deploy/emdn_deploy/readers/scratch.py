"""Frames that lie all over their file, copied once into a file with one frame after the other.

To read one frame of a compressed HDF5 chunk decodes the whole chunk. Chunks that all fit
into a small cache are decoded once as the stack is read in order. Larger ones would be decoded
again for every block of frames, or fill the memory; and of an array with frames last, every
block of frames is all of the file. These are read once, chunk by chunk, into a file that
has no name and is gone when the frames are released.
"""

import errno
import itertools
import math
import os
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from emdn_deploy.readers.arrays import DIGITS
from emdn_deploy.readers.frames import Frames
from emdn_models.errors import FormatError, OutputError

# Bytes of decoded chunks that may be in memory at a time, if they are more than 8 frames.
LIMIT = 2**27
# Bytes of a chunk that only HDF5 can decode, which takes two to three times as many.
LARGEST_CHUNK = 2**29
_READ = 2**20


def folder_of(path: Path) -> Path:
    """Return where scratch files go: beside the input, unless TMPDIR says otherwise."""
    beside = path.resolve().parent
    here = "TMPDIR" not in os.environ and os.access(beside, os.W_OK)
    return beside if here else Path(tempfile.gettempdir())


def filled(path: Path, fill: Callable[[IO[bytes]], None], size: int = 0) -> IO[bytes]:
    """Return a file without a name, of ``size`` bytes if that is known, once it is filled.

    Raises OutputError if its disk has no room.
    """
    file: IO[bytes] = tempfile.TemporaryFile(dir=folder_of(path))  # noqa: SIM115
    try:
        if size and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        fill(file)
        file.flush()
    except BaseException as error:
        file.close()
        full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if not isinstance(error, OSError) or error.errno not in full:
            raise
        raise OutputError(
            f"{path}: needs a scratch file{f' of {size / 1e9:.2g} GB' if size else ''} in "
            f"{folder_of(path)} ({error.strerror}); choose another folder with TMPDIR"
        ) from error
    return file


def cache_bytes(dataset: h5py.Dataset, order: str) -> int | None:
    """Return the size of the chunk cache that reading in order needs; None for HDF5's own.

    ``order``: one letter or digit per stored axis (see `emdn_deploy.readers.frames.Choice`).
    """
    shared = _shared(dataset, order)
    if shared is None or not dataset.chunks or shared <= _frame(dataset, order):
        return None
    if _direct(dataset, order):
        return 0
    return int(1.5 * shared) if shared <= _limit(dataset, order) else None


def unpacked(frames: Frames, array: Any, order: str) -> Frames:
    """Return the frames, read through a scratch file if they are stored too far apart.

    ``array``: what ``frames`` reads: an h5py dataset, or any array that is read piece by piece.
    ``order``: one letter or digit per axis of ``array``. Raises FormatError if a chunk is too large
    to be decoded.
    """
    shared = _shared(array, order)
    if shared is None or shared <= _limit(array, order) or _direct(array, order):
        return frames
    chunks = getattr(array, "chunks", None)
    chunk = array.dtype.itemsize * math.prod(chunks or (1,))
    if chunk > LARGEST_CHUNK and not _inflatable(array, order):
        raise FormatError(
            f"{frames.path}: {frames.dataset} has chunks {chunks} of {chunk / 1e9:.2g} GB, "
            "which can be decoded only as a whole; rewrite it with one frame a chunk (h5repack -l)"
        )
    size = math.prod(frames.shape) * frames.dtype.itemsize
    what = f"chunks {chunks}" if chunks else f"axes {order}"
    note = (
        f"{what} of {tuple(array.shape)}: a frame lies all over the file; all frames are first "
        f"copied into a scratch file of {size / 1e9:.2g} GB in {folder_of(frames.path)} (slow; "
        "TMPDIR chooses another folder, one frame a chunk avoids it)"
    )
    _, height, width = frames.shape
    lock, files = threading.Lock(), list[IO[bytes]]()

    def read(start: int, stop: int) -> NDArray[Any]:
        with lock:
            if not files:
                files.append(
                    filled(frames.path, lambda file: _fill(file, frames, array, order), size)
                )
            files[0].seek(start * height * width * frames.dtype.itemsize)
            pixels = np.fromfile(files[0], frames.dtype, (stop - start) * height * width)
        return pixels.reshape(stop - start, height, width)

    def release() -> None:
        for file in files:
            file.close()
        frames.release()

    return replace(frames, read_block=read, release=release, notes=(*frames.notes, note))


def _fill(file: IO[bytes], frames: Frames, array: Any, order: str) -> None:
    """Write the frames one after the other."""
    _, height, width = frames.shape
    # Other axes first, then y and x.
    places = sorted(range(len(frames.order)), key=lambda i: (" yx".find(frames.order[i]), i))
    numbers = np.arange(frames.shape[0]).reshape([frames.stored_shape[i] for i in places[:-2]])
    size = frames.dtype.itemsize
    for block, part in _pieces(array, order):
        *lead, y, x = (block[i] for i in places)
        # Joined pieces are in the machine's byte order.
        part = part.astype(frames.dtype, copy=False)
        pictures = part.transpose(places).reshape(-1, y.stop - y.start, x.stop - x.start)
        whole = x.stop - x.start == width
        for number, frame in zip(numbers[tuple(lead)].ravel().tolist(), pictures, strict=True):
            for row, pixels in [(0, frame)] if whole else enumerate(frame):
                file.seek(size * ((number * height + y.start + row) * width + x.start))
                file.write(pixels.tobytes())


def _pieces(array: Any, order: str) -> Iterator[tuple[tuple[slice, ...], NDArray[Any]]]:
    """Yield a part of an array at a time, decoding each chunk once.

    Yields the place, one slice per axis without a digit in ``order``, and the pixels.
    """
    limit = _limit(array, order)
    sizes = list(getattr(array, "chunks", None) or (1, *array.shape[1:]))
    if array.dtype.itemsize * math.prod(sizes) > limit and _inflatable(array, order):
        for number in range(array.id.get_num_chunks()):
            yield from _inflated(array, array.id.get_chunk_info(number), limit)
        return
    # Blocks of whole chunks, whole rows of pixels first; two are in memory at a time.
    for i in sorted(range(len(sizes)), key=lambda i: "xy".find(order[i]) % 3):
        room = limit // 2 // (array.dtype.itemsize * math.prod(sizes))
        sizes[i] = min(array.shape[i], sizes[i] * max(1, room))
    ranges = [
        [int(letter)] if letter in DIGITS else range(0, length, size)
        for letter, length, size in zip(order, array.shape, sizes, strict=True)
    ]
    for starts in itertools.product(*ranges):
        where = tuple(
            start if letter in DIGITS else slice(start, min(start + size, length))
            for start, size, length, letter in zip(starts, sizes, array.shape, order, strict=True)
        )
        yield tuple(one for one in where if isinstance(one, slice)), array[where]


def _inflated(
    array: h5py.Dataset, info: Any, limit: int
) -> Iterator[tuple[tuple[slice, ...], NDArray[Any]]]:
    """Yield a gzip-compressed chunk in parts of an eighth of ``limit``, without HDF5."""
    chunk, itemsize = array.chunks, array.dtype.itemsize
    total = itemsize * math.prod(chunk)

    def inflate(raw: IO[bytes]) -> None:
        engine, left = zlib.decompressobj(), info.size
        with Path(array.file.filename).open("rb") as file:
            file.seek(info.byte_offset)
            while left and (data := file.read(min(left, _READ))):
                left -= len(data)
                while data and raw.tell() <= total:
                    raw.write(engine.decompress(data, _READ))
                    data = engine.unconsumed_tail
        if not engine.eof or raw.tell() != total:
            raise EOFError(f"a chunk of {total} bytes decodes to {raw.tell()} or is cut")

    # Parts are runs along the first axis whose steps are small enough.
    steps = [math.prod(chunk[i + 1 :]) for i in range(len(chunk))]
    along = next(i for i, step in enumerate(steps) if 8 * step * itemsize <= limit or step == 1)
    run = max(1, limit // 8 // (itemsize * steps[along]))
    # By shuffle, the first bytes of all pixels come first, then the second ones.
    planes = itemsize if array.shuffle else 1
    with filled(Path(array.file.filename), inflate, total) as raw:
        for place in itertools.product(
            *map(range, chunk[:along]),
            range(0, chunk[along], run),
            *[[0]] * len(chunk[along + 1 :]),
        ):
            shape = (*(1,) * along, min(run, chunk[along] - place[along]), *chunk[along + 1 :])
            first, count = int(np.ravel_multi_index(place, chunk)), math.prod(shape)
            read = []
            for plane in range(planes):
                raw.seek(plane * math.prod(chunk) + first * itemsize // planes)
                read.append(np.fromfile(raw, np.uint8, count * itemsize // planes))
            part = np.stack(read, axis=1).reshape(-1).view(array.dtype).reshape(shape)
            begins = np.add(info.chunk_offset, place).tolist()
            # The last chunks reach beyond the array.
            block = tuple(
                slice(min(begin, length), min(begin + many, length))
                for begin, many, length in zip(begins, shape, array.shape, strict=True)
            )
            part = part[tuple(slice(one.stop - one.start) for one in block)]
            if part.size:
                yield block, part


def _shared(array: Any, order: str) -> int | None:
    """Return the bytes that reading in order comes back to; None if ``order`` does not fit."""
    if len(order) != len(array.shape) or "y" not in order or "x" not in order:
        return None
    size = int(array.dtype.itemsize)
    if not getattr(array, "chunks", None):
        return (
            _frame(array, order) if _frames_first(array, order) else size * math.prod(array.shape)
        )
    within = False
    for letter, length, chunk in zip(order, array.shape, array.chunks, strict=True):
        # All along the axes that are counted while a chunk's first one stands still.
        size *= length if letter in "yx" or (within and letter not in DIGITS) else chunk
        within |= letter not in "yx" and chunk > 1
    return size


def _frame(array: Any, order: str) -> int:
    pixels = array.shape[order.index("y")] * array.shape[order.index("x")]
    return int(array.dtype.itemsize * pixels)


def _limit(array: Any, order: str) -> int:
    return max(LIMIT, 8 * _frame(array, order))


def _frames_first(array: Any, order: str) -> bool:
    """Say whether the pixels of a frame follow each other, in each chunk."""
    sizes = getattr(array, "chunks", None) or array.shape
    long = [letter in "yx" for letter, size in zip(order, sizes, strict=True) if size > 1]
    return long == sorted(long)


def _direct(array: Any, order: str) -> bool:
    """Say whether parts of chunks are read straight from the file."""
    return not filters_of(array) and _frames_first(array, order)


def filters_of(array: Any) -> list[int]:
    """List the HDF5 filters of a dataset, or of the first of joined ones, by number."""
    first = getattr(array, "datasets", [array])[0]
    if not isinstance(first, h5py.Dataset):
        return []
    settings = first.id.get_create_plist()
    return [settings.get_filter(i)[0] for i in range(settings.get_nfilters())]


def _inflatable(array: Any, order: str) -> bool:
    """Say whether chunks are compressed by gzip, with shuffle or without, and nothing else."""
    shuffle, deflate = h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE
    plain = isinstance(array, h5py.Dataset) and array.file.driver == "sec2"
    if not plain or set(order) & set(DIGITS) or not array.chunks:
        return False
    infos = (array.id.get_chunk_info(i) for i in range(array.id.get_num_chunks()))
    known = filters_of(array) in ([deflate], [shuffle, deflate])
    return known and not any(info.filter_mask for info in infos)
