"""HDF5 of every convention: choose the dataset, then read it lazily."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from emdn_deploy.readers.frames import (
    Axis,
    Choice,
    Frames,
    check_dtype,
    check_order,
    default_order,
    stack_shape,
)
from emdn_deploy.readers.hdf5_conventions import CONVENTIONS, Candidate
from emdn_models import checkpoint
from emdn_models.errors import FormatError

# Chunks of several frames are decoded once, not once per frame.
_CHUNK_CACHE_BYTES = 64 * 2**20


def open_frames(path: Path, choice: Choice) -> Frames:
    """Open the frames of an HDF5 file.

    Raises
    ------
    FormatError
        If the file is damaged, holds no frames, or holds several stacks and
        ``choice`` does not say which.
    """
    file = open_file(path)
    try:
        candidate, why = choose(path, file, choice)
        return _frames(path, file, candidate, choice, why)
    except BaseException:
        file.close()
        raise


def open_file(path: Path) -> h5py.File:
    """Open an HDF5 file for reading, with its errors in plain words."""
    try:
        return h5py.File(path, "r", rdcc_nbytes=_CHUNK_CACHE_BYTES)
    except OSError as error:
        text = str(error)
        if "signature not found" in text:
            raise FormatError(f"{path}: is not an HDF5 file, whatever its name says") from error
        if "truncated" in text:
            raise FormatError(f"{path}: is a truncated HDF5 file; copy it again") from error
        raise FormatError(f"{path}: cannot be opened as HDF5 ({text})") from error


def candidates(file: h5py.File) -> list[Candidate]:
    """List what could be the frames: all that the first convention to match offers."""
    for find in CONVENTIONS:
        if found := find(file):
            return found
    return []


def choose(path: Path, file: h5py.File, choice: Choice) -> tuple[Candidate, str]:
    """Return the dataset to take and the reason in words."""
    if file.attrs.get("format") == checkpoint.FORMAT:
        raise FormatError(f"{path}: holds weights of models, not frames")
    found = candidates(file)
    if choice.dataset is not None:
        return _asked(path, file, choice.dataset, found), "asked for by --dataset"
    if not found:
        raise FormatError(
            f"{path}: holds no numeric dataset of two or more axes; "
            "name one with --dataset if the frames are somewhere special"
        )
    if len(found) > 1:
        raise FormatError(
            f"{path}: holds {len(found)} stacks ({found[0].convention}): "
            + "; ".join(f"{one.path} {one.dataset.shape} {one.dataset.dtype}" for one in found)
            + "; choose one with --dataset PATH"
        )
    reason = {"plain HDF5": "the only large numeric dataset"}
    convention = found[0].convention
    return found[0], reason.get(convention, f"marked as the frames by the file ({convention})")


def _asked(path: Path, file: h5py.File, name: str, found: list[Candidate]) -> Candidate:
    item = file.get(name)
    if isinstance(item, h5py.Group):
        inside = [one for one in found if one.path.startswith(f"{item.name}/")]
        if len(inside) == 1:
            return inside[0]
    if not isinstance(item, h5py.Dataset):
        offered = ", ".join(one.path for one in found) or "none"
        raise FormatError(f"{path}: has no dataset {name!r}; it offers {offered}")
    for one in found:
        if one.dataset == item:
            return one
    if item.shape is None or item.ndim < 2:
        raise FormatError(f"{path}: {name} has shape {item.shape}, expected two axes or more")
    order, axes = default_order(item.shape), (Axis(),) * item.ndim
    return Candidate("/" + name.strip("/"), item, "plain HDF5", order, axes)


def _frames(path: Path, file: h5py.File, one: Candidate, choice: Choice, why: str) -> Frames:
    data, where = one.dataset, f"{path}: {one.path}"
    check_dtype(where, data.dtype)
    order = choice.axes or one.order
    check_order(where, data.shape, order, said=choice.axes is not None)
    return Frames(
        path=path,
        format=f"HDF5 ({one.convention})" if one.convention != "plain HDF5" else one.convention,
        shape=stack_shape(data.shape, order),
        dtype=data.dtype,
        order=order,
        stored_shape=data.shape,
        axes=one.axes,
        read_block=_block_reader(data, order),
        release=file.close,
        dataset=one.path,
        why=why,
        metadata={"chunks": str(data.chunks or "contiguous")},
    )


def _block_reader(data: h5py.Dataset, order: str) -> Callable[[int, int], NDArray[Any]]:
    """Return ``read(start, stop) -> (k, H, W)`` for any axis order."""
    lead = [axis for axis, letter in enumerate(order) if letter not in "yx"]
    lead_shape = tuple(data.shape[axis] for axis in lead)
    long = [axis for axis in lead if data.shape[axis] > 1]

    def one(number: int) -> NDArray[Any]:
        index = iter(np.unravel_index(number, lead_shape))
        where = tuple(slice(None) if letter in "yx" else int(next(index)) for letter in order)
        frame: NDArray[Any] = data[where]
        return frame

    def several(start: int, stop: int) -> NDArray[Any]:
        # One stack axis: a single selection reads the whole block.
        where: list[Any] = [slice(None) if letter in "yx" else 0 for letter in order]
        where[long[0]] = slice(start, stop)
        before = sum(letter in "yx" for letter in order[: long[0]])
        return np.moveaxis(data[tuple(where)], before, 0)

    def read(start: int, stop: int) -> NDArray[Any]:
        block = (
            several(start, stop)
            if len(long) == 1
            else np.stack([one(number) for number in range(start, stop)])
        )
        return block.swapaxes(1, 2) if order.index("x") < order.index("y") else block

    return read
