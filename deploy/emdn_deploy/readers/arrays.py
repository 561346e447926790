"""Frames of formats whose data are one array with ``array[index]`` access."""

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
    stack_shape,
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
    """Wrap a memory map, an h5py dataset or anything that is indexed like one.

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
    letters = choice.axes or order or default_order(shape)
    axes = axes if len(axes) == len(shape) else (Axis(),) * len(shape)
    if len(letters) == len(shape) and any(letter in DIGITS for letter in letters):
        array = Taken(where, array, letters)
        axes = tuple(axes[place] for place in array.places)
        letters, shape = "".join(letters[place] for place in array.places), array.shape
    check_order(where, shape, letters, said=choice.axes is not None or order is not None)
    limits.check_frame(where, *stack_shape(shape, letters)[1:])
    return Frames(
        path=path,
        format=name,
        shape=stack_shape(shape, letters),
        dtype=array.dtype,
        order=letters,
        stored_shape=shape,
        axes=axes,
        read_block=block_reader(array, letters),
        release=release,
        dataset=dataset,
        why=why,
        metadata=metadata or {},
        notes=notes,
        compressed=compressed,
    )


class Taken:
    """An array of which single indices of some axes are taken, as digits in ``order`` say."""

    def __init__(self, where: str, array: Any, order: str) -> None:
        self._array, self._order = array, order
        self.places = [i for i, letter in enumerate(order) if letter not in DIGITS]
        self.shape: tuple[int, ...] = tuple(array.shape[i] for i in self.places)
        self.dtype: np.dtype[Any] = array.dtype
        for letter, length in zip(order, array.shape, strict=True):
            if letter in DIGITS and int(letter) >= length:
                raise FormatError(
                    f"{where}: --axes {order} takes index {letter} of an axis of {length} "
                    f"(shape {tuple(array.shape)}), counted from 0"
                )

    def __getitem__(self, where: tuple[Any, ...]) -> NDArray[Any]:
        inner = iter(where)
        full = tuple(int(one) if one in DIGITS else next(inner) for one in self._order)
        part: NDArray[Any] = self._array[full]
        return part


def block_reader(array: Any, order: str) -> Callable[[int, int], NDArray[Any]]:
    """Return ``read(start, stop) -> (k, H, W)`` for any axis order."""
    lead = [axis for axis, letter in enumerate(order) if letter not in "yx"]
    lead_shape = tuple(array.shape[axis] for axis in lead)
    long = [axis for axis in lead if array.shape[axis] > 1]

    def one(number: int) -> NDArray[Any]:
        index = iter(np.unravel_index(number, lead_shape))
        where = tuple(slice(None) if letter in "yx" else int(next(index)) for letter in order)
        frame: NDArray[Any] = array[where]
        return frame

    def several(start: int, stop: int) -> NDArray[Any]:
        # One stack axis: a single selection reads the whole block.
        where: list[Any] = [slice(None) if letter in "yx" else 0 for letter in order]
        where[long[0]] = slice(start, stop)
        before = sum(letter in "yx" for letter in order[: long[0]])
        return np.moveaxis(array[tuple(where)], before, 0)

    def read(start: int, stop: int) -> NDArray[Any]:
        block = (
            several(start, stop)
            if len(long) == 1
            else np.stack([one(number) for number in range(start, stop)])
        )
        return block.swapaxes(1, 2) if order.index("x") < order.index("y") else block

    return read
