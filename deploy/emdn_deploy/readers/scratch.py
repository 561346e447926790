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
from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from emdn_deploy.readers.arrays import DIGITS
from emdn_deploy.readers.frames import Frames
from emdn_deploy.readers.parts import Parts
from emdn_models.errors import FormatError, OutputError

# Bytes of decoded chunks that may be in memory at a time, if they are more than 8 frames.
LIMIT = 2**27
# Bytes of a chunk that only HDF5 can decode, which takes two to three times as many.
LARGEST_CHUNK = 2**29
_READ = 2**16


def cache_bytes(dataset: h5py.Dataset, order: str) -> int | None:
    """Return the size of the chunk cache that reading in order needs; None for HDF5's own.

    Parameters
    ----------
    order
        One letter or digit per stored axis (see `emdn_deploy.readers.frames.Choice`).
    """
    shared = _shared(dataset, order)
    if shared is None or not dataset.chunks or shared <= _frame(dataset, order):
        return None
    if _direct(dataset, order):
        return 0
    return int(1.5 * shared) if shared <= _limit(dataset, order) else None


def unpacked(frames: Frames, array: Any, order: str) -> Frames:
    """Return the frames, read through a scratch file if they are stored too far apart.

    Parameters
    ----------
    array
        What ``frames`` reads: an h5py dataset, `emdn_deploy.readers.parts.Parts`, or any
        other array that is read piece by piece.
    order
        One letter or digit per axis of ``array``.

    Raises
    ------
    FormatError
        If a chunk is too large to be decoded.
    """
    shared = _shared(array, order)
    if shared is None or shared <= _limit(array, order) or _direct(array, order):
        return frames
    chunk = array.dtype.itemsize * math.prod(_chunks(array) or (1,))
    if chunk > LARGEST_CHUNK and not _inflatable(array, order):
        raise FormatError(
            f"{frames.path}: {frames.dataset} has chunks {array.chunks} of {chunk / 1e9:.2g} GB, "
            "which can be decoded only as a whole; rewrite it with one frame a chunk (h5repack -l)"
        )
    scratch = _Scratch(frames, array, order)
    what = f"chunks {array.chunks}" if _chunks(array) else f"axes {order}"
    note = (
        f"{what} of {tuple(array.shape)}: a frame lies all over the file; all frames are first "
        f"copied into a scratch file of {scratch.bytes / 1e9:.2g} GB in {scratch.folder} (slow; "
        "TMPDIR chooses another folder, one frame a chunk avoids it)"
    )

    def release() -> None:
        scratch.close()
        frames.release()

    return replace(frames, read_block=scratch.read, release=release, notes=(*frames.notes, note))


class _Scratch:
    """A file of frames (N, H, W), filled when the first is read."""

    def __init__(self, frames: Frames, array: Any, order: str) -> None:
        self._frames, self._array, self._order = frames, array, order
        self._file: IO[bytes] | None = None
        self._lock = threading.Lock()
        self.bytes = math.prod(frames.shape) * frames.dtype.itemsize
        beside = frames.path.parent
        here = "TMPDIR" not in os.environ and os.access(beside, os.W_OK)
        self.folder = beside if here else Path(tempfile.gettempdir())

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return frames ``start`` to ``stop``, (k, H, W)."""
        _, height, width = self._frames.shape
        count = (stop - start) * height * width
        with self._lock:
            if self._file is None:
                self._file = self._filled()
            self._file.seek(start * height * width * self._frames.dtype.itemsize)
            pixels = np.fromfile(self._file, self._frames.dtype, count)
        return pixels.reshape(stop - start, height, width)

    def close(self) -> None:
        """Remove the file."""
        if self._file is not None:
            self._file.close()

    def _filled(self) -> IO[bytes]:
        file: IO[bytes] = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, self.bytes)
            self._fill(file)
        except OSError as error:
            file.close()
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise OutputError(
                f"{self._frames.path}: needs a scratch file of {self.bytes / 1e9:.2g} GB in "
                f"{self.folder} ({error.strerror}); choose another folder with TMPDIR"
            ) from error
        except BaseException:
            file.close()
            raise
        return file

    def _fill(self, file: IO[bytes]) -> None:
        _, height, width = self._frames.shape
        kept = [letter for letter in self._order if letter not in DIGITS]
        # Other axes first, then y and x.
        places = sorted(range(len(kept)), key=lambda i: (" yx".find(kept[i]), i))
        numbers = np.arange(self._frames.shape[0]).reshape(
            [self._frames.stored_shape[i] for i in places[:-2]]
        )
        size = self._frames.dtype.itemsize
        for block, part in _pieces(self._array, self._order):
            *lead, y, x = (block[i] for i in places)
            # Joined pieces are in the machine's byte order.
            part = part.astype(self._frames.dtype, copy=False)
            frames = part.transpose(places).reshape(-1, y.stop - y.start, x.stop - x.start)
            whole = x.stop - x.start == width
            for number, frame in zip(numbers[tuple(lead)].ravel().tolist(), frames, strict=True):
                for row, pixels in [(0, frame)] if whole else enumerate(frame):
                    file.seek(size * ((number * height + y.start + row) * width + x.start))
                    file.write(pixels.tobytes())


def _pieces(array: Any, order: str) -> Iterator[tuple[tuple[slice, ...], NDArray[Any]]]:
    """Yield a part of an array at a time, decoding each chunk once.

    Yields
    ------
    tuple
        The place, one slice per axis without a digit in ``order``, and the pixels.
    """
    limit = _limit(array, order)
    sizes = list(_chunks(array) or (1, *array.shape[1:]))
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
    # Parts are runs along the first axis whose steps are small enough.
    steps = [itemsize * math.prod(chunk[i + 1 :]) for i in range(len(chunk))]
    along = next(i for i, step in enumerate(steps) if 8 * step <= limit or i == len(chunk) - 1)
    run = max(1, limit // 8 // steps[along])
    with Path(array.file.filename).open("rb") as file:
        streams = [_Inflating(file, info.byte_offset, info.size)]
        if array.shuffle:
            # The first bytes of all pixels come first, then the second ones.
            for _ in range(1, itemsize):
                streams.append(streams[-1].copy())
                streams[-1].skip(math.prod(chunk))
        for outer in np.ndindex(*chunk[:along]):
            for start in range(0, chunk[along], run):
                shape = (min(run, chunk[along] - start), *chunk[along + 1 :])
                count = itemsize * math.prod(shape) // len(streams)
                raw = [np.frombuffer(one.read(count), np.uint8) for one in streams]
                joined = raw[0] if len(raw) == 1 else np.stack(raw, axis=1)
                part = joined.reshape(-1).view(array.dtype).reshape(*(1,) * along, *shape)
                first = (*outer, start, *(0,) * (len(chunk) - along - 1))
                begins = np.add(info.chunk_offset, first)
                block = tuple(
                    slice(min(begin, length), min(begin + many, length))
                    for begin, many, length in zip(
                        begins.tolist(), part.shape, array.shape, strict=True
                    )
                )
                # The last chunks reach beyond the array.
                part = part[tuple(slice(one.stop - one.start) for one in block)]
                if part.size:
                    yield block, part
        streams[-1].finish()


class _Inflating:
    """Decompress a part of a file that is a zlib stream, as it is read."""

    def __init__(self, file: IO[bytes], place: int, size: int) -> None:
        self._file, self._place, self._end = file, place, place + size
        self._engine = zlib.decompressobj()

    def copy(self) -> Self:
        """Return another one that goes on from here."""
        twin = copy(self)
        twin._engine = self._engine.copy()
        return twin

    def skip(self, count: int) -> None:
        """Leave out ``count`` bytes."""
        for start in range(0, count, _READ):
            self.read(min(_READ, count - start))

    def read(self, count: int) -> bytearray:
        """Return exactly ``count`` bytes.

        Raises
        ------
        EOFError
            If there are fewer.
        """
        made = bytearray()
        while len(made) < count:
            made += self._more(count - len(made))
        return made

    def finish(self) -> None:
        """Read to the end, where the checksum is."""
        while not self._engine.eof:
            self._more(1)

    def _more(self, count: int) -> bytes:
        raw = self._engine.unconsumed_tail
        if not raw:
            self._file.seek(self._place)
            raw = self._file.read(min(self._end - self._place, _READ))
            self._place += len(raw)
        more = self._engine.decompress(raw, count)
        if not (raw or more):
            raise EOFError("a chunk ends early")
        return more


def _shared(array: Any, order: str) -> int | None:
    """Return the bytes that reading in order comes back to; None if ``order`` does not fit."""
    if len(order) != len(array.shape) or "y" not in order or "x" not in order:
        return None
    if _chunks(array) is None:
        whole = array.dtype.itemsize * math.prod(array.shape)
        return _frame(array, order) if _frames_first(array, order) else whole
    size = int(array.dtype.itemsize)
    within = False
    for letter, length, chunk in zip(order, array.shape, array.chunks, strict=True):
        # All along the axes that are counted while a chunk's first one stands still.
        size *= length if letter in "yx" or (within and letter not in DIGITS) else chunk
        within |= letter not in "yx" and chunk > 1
    return size


def _chunks(array: Any) -> tuple[int, ...] | None:
    chunks: tuple[int, ...] | None = getattr(array, "chunks", None)
    return chunks


def _frame(array: Any, order: str) -> int:
    pixels = array.shape[order.index("y")] * array.shape[order.index("x")]
    return int(array.dtype.itemsize * pixels)


def _limit(array: Any, order: str) -> int:
    return max(LIMIT, 8 * _frame(array, order))


def _frames_first(array: Any, order: str) -> bool:
    """Say whether the pixels of a frame follow each other, in each chunk."""
    sizes = _chunks(array) or array.shape
    long = [letter in "yx" for letter, size in zip(order, sizes, strict=True) if size > 1]
    return long == sorted(long)


def _direct(array: Any, order: str) -> bool:
    """Say whether HDF5 reads parts of chunks straight from the file."""
    first = array.datasets[0] if isinstance(array, Parts) else array
    plain = not isinstance(first, h5py.Dataset) or not first.id.get_create_plist().get_nfilters()
    return plain and _frames_first(array, order)


def _inflatable(array: Any, order: str) -> bool:
    """Say whether chunks are compressed by gzip, with shuffle or without, and nothing else."""
    if (
        not isinstance(array, h5py.Dataset)
        or array.file.driver != "sec2"
        or set(order) & set(DIGITS)
    ):
        return False
    settings = array.id.get_create_plist()
    filters = [settings.get_filter(i)[0] for i in range(settings.get_nfilters())]
    shuffle, deflate = h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE
    if filters not in ([deflate], [shuffle, deflate]) or array.chunks is None:
        return False
    infos = (array.id.get_chunk_info(i) for i in range(array.id.get_num_chunks()))
    return not any(info.filter_mask for info in infos)
