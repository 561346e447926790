"""HDF5 frames whose chunks span many frames, copied into a file with one frame after the other.

To read one frame of a compressed chunk decodes the whole chunk. Chunks that all fit into
a small cache are decoded once as the stack is read in order. Larger ones would be decoded
again for every block of frames, or fill the memory. They are decoded one by one instead,
into a file that has no name and is gone when the frames are released.
"""

import itertools
import os
import tempfile
import threading
import zlib
from collections.abc import Iterator
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


def cache_bytes(dataset: h5py.Dataset, order: str) -> int | None:
    """Return the size of the chunk cache that reading in order needs; None for HDF5's own.

    Parameters
    ----------
    order
        One letter or digit per stored axis (see `emdn_deploy.readers.frames.Choice`).
    """
    shared = _shared(dataset, order)
    if shared is None or dataset.chunks is None or shared <= _frame(dataset, order):
        return None
    if _direct(dataset, order):
        return 0
    return int(1.5 * shared) if shared <= _limit(dataset, order) else None


def unpacked(frames: Frames, array: Any, order: str) -> Frames:
    """Return the frames, read through a scratch file if they are stored too far apart.

    Parameters
    ----------
    array
        What ``frames`` reads: an h5py dataset, or `emdn_deploy.readers.parts.Parts`.
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
    chunk = array.dtype.itemsize * int(np.prod(array.chunks or (1,)))
    if chunk > LARGEST_CHUNK and not _inflatable(array, order):
        raise FormatError(
            f"{frames.path}: {frames.dataset} has chunks {array.chunks} of {chunk / 1e9:.1f} GB, "
            "which can be decoded only as a whole; rewrite it with one frame a chunk (h5repack -l)"
        )
    scratch = _Scratch(frames, array, order)
    what = f"chunks {array.chunks}" if array.chunks else f"axes {order}"
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
        self.bytes = int(np.prod(frames.shape)) * frames.dtype.itemsize
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
            else:
                file.truncate(self.bytes)
        except OSError as error:
            file.close()
            raise OutputError(
                f"{self._frames.path}: needs a scratch file of {self.bytes / 1e9:.2g} GB in "
                f"{self.folder} ({error.strerror}); choose another folder with TMPDIR"
            ) from error
        try:
            self._fill(file)
        except BaseException:
            file.close()
            raise
        return file

    def _fill(self, file: IO[bytes]) -> None:
        kept = [letter for letter in self._order if letter not in DIGITS]
        lead = [i for i, letter in enumerate(kept) if letter not in "yx"]
        # A stack with x before y is handed out transposed, as by every other reader.
        places = [*lead, kept.index("y"), kept.index("x")]
        shape = [self._frames.stored_shape[i] for i in places]
        kind = self._frames.dtype
        for block, plane, part in _pieces(self._array, self._order):
            # Mapped anew each time: pages that were written do not pile up in memory.
            stored = np.memmap(file, np.uint8, "r+", shape=(*shape, kind.itemsize))
            stored = stored.transpose(*np.argsort(places), len(shape))
            into = stored[block] if plane is None else stored[(*block, plane)]
            if plane is None:
                part = np.ascontiguousarray(part).view(np.uint8)
                part = part.reshape(*into.shape)
            into[...] = part


def _pieces(array: Any, order: str) -> Iterator[tuple[tuple[slice, ...], int | None, NDArray[Any]]]:
    """Yield a part of an array at a time, decoding each chunk once.

    Yields
    ------
    tuple
        The place, one slice per axis that is kept; which byte of each pixel, None for all;
        the pixels, or these bytes of them.
    """
    limit = _limit(array, order)
    sizes = list(array.chunks or (1, *array.shape[1:]))
    if array.dtype.itemsize * np.prod(sizes) > limit and _inflatable(array, order):
        yield from _inflated(array, limit)
        return
    # Blocks of whole chunks, whole rows of pixels first.
    growing = sorted(range(len(sizes)), key=lambda i: "xy".find(order[i]) % 3)
    for i in growing:
        room = limit // (array.dtype.itemsize * int(np.prod(sizes)))
        sizes[i] = min(array.shape[i], sizes[i] * max(1, room))
    sizes = [1 if letter in DIGITS else size for letter, size in zip(order, sizes, strict=True)]
    ranges = [
        [int(letter)] if letter in DIGITS else range(0, length, size)
        for letter, length, size in zip(order, array.shape, sizes, strict=True)
    ]
    for starts in itertools.product(*ranges):
        where = tuple(
            start if letter in DIGITS else slice(start, min(start + size, length))
            for start, size, length, letter in zip(starts, sizes, array.shape, order, strict=True)
        )
        block = tuple(one for one in where if isinstance(one, slice))
        yield block, None, array[where]


def _inflated(
    array: h5py.Dataset, limit: int
) -> Iterator[tuple[tuple[slice, ...], int | None, NDArray[Any]]]:
    """Yield the chunks of a gzip-compressed dataset in parts, without HDF5."""
    kind, chunk = array.dtype, array.chunks
    planes = [*range(kind.itemsize)] if array.shuffle and kind.itemsize > 1 else [None]
    kept = kind if planes == [None] else np.dtype(np.uint8)
    inner = next(
        i for i in range(len(chunk)) if kept.itemsize * np.prod(chunk[i + 1 :]) <= limit
        or i == len(chunk) - 1
    )  # fmt: skip
    size = int(np.prod(chunk[inner + 1 :]))
    # A quarter, for the copies on the way.
    step = max(1, limit // 4 // (kept.itemsize * size))
    for number in range(array.id.get_num_chunks()):
        info = array.id.get_chunk_info(number)
        with Path(array.file.filename).open("rb") as file:
            file.seek(info.byte_offset)
            stream = _Inflating(file, info.size)
            for plane in planes:
                for outer in np.ndindex(*chunk[:inner]):
                    for start in range(0, chunk[inner], step):
                        stop = min(start + step, chunk[inner])
                        raw = stream.read((stop - start) * size * kept.itemsize)
                        part = np.frombuffer(raw, kept).reshape(
                            *(1,) * inner, stop - start, *chunk[inner + 1 :]
                        )
                        first = (*outer, start, *(0,) * (len(chunk) - inner - 1))
                        block = tuple(
                            slice(min(at + i, n), min(at + i + k, n))
                            for at, i, k, n in zip(
                                info.chunk_offset, first, part.shape, array.shape, strict=True
                            )
                        )
                        # The last chunks reach beyond the array.
                        part = part[tuple(slice(0, one.stop - one.start) for one in block)]
                        yield block, plane, part


class _Inflating:
    """Decompress a zlib stream as it is read."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._left, self._engine = file, size, zlib.decompressobj()

    def read(self, count: int) -> bytes:
        """Return exactly ``count`` bytes.

        Raises
        ------
        EOFError
            If there are fewer.
        """
        made = bytearray()
        while len(made) < count:
            raw = self._engine.unconsumed_tail or self._file.read(min(self._left, 2**16))
            if not raw:
                raise EOFError("a chunk ends early")
            if not self._engine.unconsumed_tail:
                self._left -= len(raw)
            made += self._engine.decompress(raw, count - len(made))
        return bytes(made)


def _shared(array: Any, order: str) -> int | None:
    """Return the bytes of all chunks that a frame touches; None if ``order`` does not fit."""
    if len(order) != len(array.shape) or "y" not in order or "x" not in order:
        return None
    if array.chunks is None:
        whole = array.dtype.itemsize * int(np.prod(array.shape))
        return _frame(array, order) if _frames_first(array, order) else whole
    sizes = (
        length if letter in "yx" else chunk
        for letter, length, chunk in zip(order, array.shape, array.chunks, strict=True)
    )
    return array.dtype.itemsize * int(np.prod(list(sizes)))


def _frame(array: Any, order: str) -> int:
    pixels = array.shape[order.index("y")] * array.shape[order.index("x")]
    return int(array.dtype.itemsize * pixels)


def _limit(array: Any, order: str) -> int:
    return max(LIMIT, 8 * _frame(array, order))


def _frames_first(array: Any, order: str) -> bool:
    """Say whether the pixels of a frame follow each other, in each chunk."""
    sizes = array.chunks or array.shape
    long = [letter in "yx" for letter, size in zip(order, sizes, strict=True) if size > 1]
    return long == sorted(long)


def _direct(array: Any, order: str) -> bool:
    """Say whether HDF5 reads parts of chunks straight from the file."""
    first = array.datasets[0] if hasattr(array, "datasets") else array
    return _frames_first(array, order) and not first.id.get_create_plist().get_nfilters()


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
