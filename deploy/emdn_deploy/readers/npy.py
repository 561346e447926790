"""NumPy ``.npy`` files, never unpickled, and arrays that lie in any file as they are."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdn_deploy.readers import rechunk
from emdn_deploy.readers.frames import Choice, Frames, array_frames, check_guess
from emdn_models.errors import FormatError

# Bytes read at once where a selection is not in one piece.
_SLAB = 2**23


def open_frames(path: Path, choice: Choice) -> Frames:
    """Open an array of frames; ValueError if it is damaged or holds objects."""
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    notes = () if choice.axes else check_guess(str(path), array.shape)
    if rest := path.stat().st_size - array.offset - array.nbytes:
        notes += (f"{rest} bytes after the first array, perhaps more arrays, are not read",)
    last = array.flags.f_contiguous and not array.flags.c_contiguous
    plain = Plain(path, array.offset, array.shape, array.dtype, fortran=last)
    frames = array_frames(path, "NumPy array", plain, choice, notes=notes)
    return rechunk.remembered(frames, plain, choice.axes or frames.order)


class Plain:
    """An array that lies in a file as it is, indexed like a memory map.

    A mapped file that becomes shorter ends the process (SIGBUS); reading it is an error.
    ``offset``: byte of the first element. ``fortran``: whether the first axis is the fastest.
    Raises ValueError if the file is too short for such an array.
    """

    def __init__(
        self,
        path: Path,
        offset: int,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        *,
        fortran: bool = False,
    ) -> None:
        self.shape, self.dtype = tuple(int(length) for length in shape), np.dtype(dtype)
        self._path, self._offset = path, int(offset)
        need = self._offset + self.dtype.itemsize * math.prod(self.shape)
        if (size := path.stat().st_size) < need:
            raise ValueError(f"it has {size} bytes, its header promises {need}")
        lengths = self.shape if fortran else self.shape[::-1]
        steps = [self.dtype.itemsize * math.prod(lengths[:i]) for i in range(len(lengths))]
        # Never read: its slices tell which bytes of the file are theirs.
        self._map = np.lib.stride_tricks.as_strided(
            np.empty(1, self.dtype), self.shape, steps if fortran else steps[::-1], writeable=False
        )

    def __getitem__(self, where: Any) -> NDArray[Any]:
        return self._read(self._map[(*(where if isinstance(where, tuple) else (where,)), ...)])

    def _read(self, part: NDArray[Any]) -> NDArray[Any]:
        if not part.size:
            return np.empty(part.shape, self.dtype)
        steps = zip(part.shape, part.strides, strict=True)
        span = sum((length - 1) * step for length, step in steps) + self.dtype.itemsize
        if part.ndim > 2 and span > max(_SLAB, 2 * part.nbytes):
            return np.stack([self._read(one) for one in part])
        first = int(part.ctypes.data) - int(self._map.ctypes.data)
        raw = np.fromfile(self._path, np.uint8, span, offset=self._offset + first)
        if raw.size < span:
            raise FormatError(
                f"{self._path}: has become shorter while it was read: it has "
                f"{self._path.stat().st_size} bytes now, frames lie at byte "
                f"{self._offset + first}; restore it, or wait until it is complete"
            )
        read = np.ndarray(part.shape, self.dtype, raw, strides=part.strides)
        return read if span == read.nbytes else read.copy()
