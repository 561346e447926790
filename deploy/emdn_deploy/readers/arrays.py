"""Frames of formats whose data are one array with ``array[index]`` access."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdn_deploy.readers import limits
from emdn_deploy.readers.frames import (
    Axis,
    Choice,
    Frames,
    check_dtype,
    check_order,
    default_order,
)
from emdn_models.errors import FormatError

# In an axis order: the index that is taken of that axis.
DIGITS = "0123456789"


def array_frames(
    path: Path,
    name: str,
    array: Any,
    choice: Choice,
    *,
    order: str | None = None,
    axes: tuple[Axis, ...] = (),
    dataset: str = "",
    why: str = "the only stack in the file",
    metadata: Mapping[str, str] | None = None,
    notes: tuple[str, ...] = (),
    release: Callable[[], None] = lambda: None,
    compressed: bool = False,
) -> Frames:
    """Wrap an h5py dataset, a `Plain` array or anything that is indexed like one.

    Parameters
    ----------
    array
        Has ``shape``, ``dtype`` and basic indexing; at least two axes.
    order
        The format's own axis order; None where it has none.
    axes
        Calibration, one per axis, or empty.
    notes
        See `Frames.notes`.

    Raises
    ------
    FormatError
        If the data are not frames, or ``choice`` does not fit them.
    """
    where = f"{path}: {dataset}" if dataset else str(path)
    shape: tuple[int, ...] = tuple(array.shape)
    check_dtype(where, array.dtype)
    if len(shape) < 2:
        raise FormatError(f"{where}: has shape {shape}, expected two axes or more")
    given = choice.axes or order or default_order(shape)
    axes = axes if len(axes) == len(shape) else (Axis(),) * len(shape)
    letters = given
    if len(given) == len(shape) and any(letter in DIGITS for letter in given):
        for letter, length in zip(given, shape, strict=True):
            if letter in DIGITS and int(letter) >= length:
                raise FormatError(
                    f"{where}: --axes {given} takes index {letter} of an axis of {length} "
                    f"(shape {shape}), counted from 0"
                )
        places = [i for i, letter in enumerate(given) if letter not in DIGITS]
        axes, shape = tuple(axes[i] for i in places), tuple(shape[i] for i in places)
        letters = "".join(given[i] for i in places)
    check_order(where, shape, letters, said=choice.axes is not None or order is not None)
    lengths = dict(zip(letters, shape, strict=True))
    height, width = lengths.pop("y"), lengths.pop("x")
    limits.check_frame(where, height, width)

    return Frames(
        path=path,
        format=name,
        shape=(math.prod(lengths.values()), height, width),
        dtype=array.dtype,
        order=letters,
        stored_shape=shape,
        axes=axes,
        read_block=block_reader(array, given),
        release=release,
        dataset=dataset,
        why=why,
        metadata=metadata or {},
        notes=notes,
        compressed=compressed,
    )


def block_reader(array: Any, order: str) -> Callable[[int, int], NDArray[Any]]:
    """Return ``read(start, stop) -> (k, H, W)`` for any axis order, with digits as in `Choice`."""
    lead = [i for i, letter in enumerate(order) if letter not in "yx" + DIGITS]
    lead_shape = tuple(array.shape[i] for i in lead)
    long = [i for i in lead if array.shape[i] > 1]
    fixed = [
        slice(None) if letter in "yx" else int(letter) if letter in DIGITS else 0
        for letter in order
    ]

    def one(number: int) -> NDArray[Any]:
        where = fixed.copy()
        for axis, index in zip(lead, np.unravel_index(number, lead_shape), strict=True):
            where[axis] = int(index)
        frame: NDArray[Any] = array[tuple(where)]
        return frame

    def read(start: int, stop: int) -> NDArray[Any]:
        if len(long) == 1:  # a single selection reads the whole block
            where = fixed.copy()
            where[long[0]] = slice(start, stop)
            before = sum(letter in "yx" for letter in order[: long[0]])
            block: NDArray[Any] = np.moveaxis(array[tuple(where)], before, 0)
        else:
            block = np.stack([one(number) for number in range(start, stop)])
        return block.swapaxes(1, 2) if order.index("x") < order.index("y") else block

    return read


class Plain:
    """An array that lies in a file as it is, read piece by piece and indexed like a memory map.

    A mapped file that becomes shorter ends the process (SIGBUS); reading it is an error.
    ``offset``: byte of the first element. ``fortran``: whether the first axis is the fastest.
    Raises ValueError if the file is too short for such an array.
    """

    # Bytes read at once where a selection is not in one piece, as of frames that come last.
    _SLAB = 2**23

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
        self._path, self._offset, self._fortran = path, int(offset), fortran
        need, size = self._offset + self._bytes(self.shape), path.stat().st_size
        if size < need:
            raise ValueError(f"it has {size} bytes, its header promises {need}")

    def __getitem__(self, where: Any) -> NDArray[Any]:
        where = where if isinstance(where, tuple) else (where,)
        where += (slice(None),) * (len(self.shape) - len(where))
        if self._fortran:
            return self._take(self.shape[::-1], where[::-1], self._offset).T
        return self._take(self.shape, where, self._offset)

    def _bytes(self, shape: tuple[int, ...]) -> int:
        return self.dtype.itemsize * math.prod(shape)

    def _take(self, shape: tuple[int, ...], where: tuple[Any, ...], start: int) -> NDArray[Any]:
        """Select from an array of rows that begins at byte ``start``."""
        if not shape:
            return self._read(start, ())
        rows, rest, inner, size = where[0], where[1:], shape[1:], self._bytes(shape[1:])
        if not isinstance(rows, slice):
            return self._take(inner, rest, start + range(shape[0])[rows] * size)
        first, stop, step = rows.indices(shape[0])
        if all(isinstance(one, slice) and one == slice(None) for one in rest):
            return self._read(start + first * size, (max(0, stop - first), *inner))[::step]
        slab = max(1, self._SLAB // size)
        pieces = []
        for row in range(first, stop, slab):
            read = self._read(start + row * size, (min(slab, stop - row), *inner))
            pieces.append(read[(slice(None), *rest)].copy())  # a view would hold the slab
        return np.concatenate(pieces)[::step]

    def _read(self, start: int, shape: tuple[int, ...]) -> NDArray[Any]:
        count = math.prod(shape)
        made = np.fromfile(self._path, self.dtype, count, offset=start)
        if made.size < count:
            raise FormatError(
                f"{self._path}: has become shorter while it was read: it has "
                f"{self._path.stat().st_size} bytes now, frames lie at byte {start}; restore it, "
                "or wait until it is complete"
            )
        return made.reshape(shape)


class Pages:
    """Frames that are read one by one, and of which some may be missing, indexed like an array.

    ``shape``: stored shape as the file promises it; the last ``inner`` axes are those of a page.
    ``there``: how many pages the file holds; reading one beyond raises ``missing``.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        inner: int,
        page: Callable[[int], NDArray[Any]],
        there: int,
        missing: str,
    ) -> None:
        self.shape, self.dtype = shape, dtype
        self._lead = len(shape) - inner
        self._page, self._there, self._missing = page, there, missing

    def __getitem__(self, where: Any) -> NDArray[Any]:
        where = where if isinstance(where, tuple) else (where,)
        lead = self.shape[: self._lead]
        taken = np.arange(math.prod(lead)).reshape(lead)[where[: self._lead]]
        if taken.size and taken.max() >= self._there:
            raise FormatError(self._missing)
        pages = [self._page(int(number)) for number in np.atleast_1d(taken).ravel()]
        stack = np.stack(pages).reshape(*taken.shape, *self.shape[self._lead :])
        inner: NDArray[Any] = stack[(..., *where[self._lead :])]
        return inner


def cut_short(path: Path, there: int, promised: str) -> str:
    """Say that a file holds fewer frames than it promises, and what to do."""
    said = f"{path}: is cut short: {there} of {promised} frames are there; copy it again"
    return said + (f", or take these with --frames 0:{there}" if there > 0 else "")
