"""What both HDF5 writers share: the frames' space on disk and the record of the run."""

import errno
import os
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from emdn_deploy.readers.hdf5_conventions import SIGMA_OF
from emdn_deploy.writers.layout import SIGMA, Layout, Packing, Provenance, Storage, plain_text

GROUP = "emdn"
# NXdata: FIELDNAME_errors are the standard deviations of FIELDNAME.
ERRORS = "_errors"
# gzip's own default, 6, takes twice the time; of denoised float32 it makes 57 % instead of 60.
LEVEL = 1
# Room for what HDF5 writes besides pixels.
MARGIN = 2**18


def reserve(path: Path, start: int, size: int) -> None:
    """Claim the space of bytes ``start`` to ``start + size`` of a file on its disk.

    HDF5 ends the process where it cannot write what it has in memory. So that space is
    claimed before; what is left over, HDF5 cuts off when it closes the file.

    Raises
    ------
    OSError
        If there is no such space.
    """
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), start, size)
            return
        except AttributeError:  # not on Windows and macOS
            pass
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
    if shutil.disk_usage(path.parent).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def probe(target: Path, size: int) -> None:
    """Make sure that a file of ``size`` bytes and a little more would fit beside ``target``.

    Raises
    ------
    OSError
        If it would not.
    """
    scratch = target.with_name(target.name + ".new")
    try:
        scratch.touch()
        reserve(scratch, 0, max(0, size) + MARGIN)
    finally:
        scratch.unlink(missing_ok=True)


def create_frames(
    parent: h5py.Group, name: str, shape: tuple[int, ...], order: str, storage: Storage
) -> h5py.Dataset:
    """Create the dataset, one frame a chunk, with its space on disk unless compressed.

    Parameters
    ----------
    shape, order
        Stored shape and one letter per axis, ``y`` and ``x`` the frame.
    """
    chunk = tuple(
        length if letter in "yx" else 1 for length, letter in zip(shape, order, strict=True)
    )
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_chunk(chunk)
    if storage.compress:
        settings.set_shuffle()
        settings.set_deflate(LEVEL)
    else:
        settings.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    settings.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    settings.set_attr_creation_order(h5py.h5p.CRT_ORDER_TRACKED | h5py.h5p.CRT_ORDER_INDEXED)
    space = h5py.h5s.create_simple(shape)
    kind = h5py.h5t.py_create(storage.kind)
    return h5py.Dataset(h5py.h5d.create(parent.id, name.encode(), kind, space, dcpl=settings))


def create_sigma(
    parent: h5py.Group, name: str, shape: tuple[int, ...], order: str, storage: Storage
) -> h5py.Dataset:
    """Create the dataset of standard deviations beside the frames ``name``.

    In an NXdata group it is also reachable under the name that NeXus has for uncertainties.
    """
    kept = replace(storage, dtype="float32")
    made = create_frames(parent, name + SIGMA, shape, order, kept)
    # By this readers tell it from the frames.
    made.attrs[SIGMA_OF] = name
    made.attrs["long_name"] = f"standard deviation of {name}"
    if is_nxdata(parent):
        parent[name + ERRORS] = h5py.SoftLink(name + SIGMA)
    return made


def is_nxdata(group: h5py.Group) -> bool:
    """Say whether a group follows NeXus's rules for data."""
    return group.attrs.get("NX_class") in ("NXdata", b"NXdata")


def layout_of(
    path: Path, dataset: str, shape: tuple[int, ...], order: str, storage: Storage
) -> Layout:
    """Say where frames by `create_frames`, and standard deviations by `create_sigma`, belong."""
    layout = _layout_of(path, dataset, shape, order, storage)
    if not storage.sigma:
        return layout
    kept = replace(storage, dtype="float32")
    return replace(layout, sigma=_layout_of(path, dataset + SIGMA, shape, order, kept))


def _layout_of(
    path: Path, dataset: str, shape: tuple[int, ...], order: str, storage: Storage
) -> Layout:
    lead = [axis for axis, letter in enumerate(order) if letter not in "yx"]
    lead_shape = tuple(shape[axis] for axis in lead)
    flip = order.index("x") < order.index("y")
    if not storage.compress:
        offsets = _chunk_offsets(path, dataset, lead, lead_shape)
        return Layout(offsets, storage.kind.str, flip)

    def fill(chunks: Iterator[bytes]) -> None:
        reserve(path, path.stat().st_size, int(offsets[-1]) + MARGIN + 100 * len(offsets))
        with h5py.File(path, "r+") as file:
            data = file[dataset]
            for number, chunk in enumerate(chunks):
                place = [0] * len(shape)
                for axis, index in zip(lead, np.unravel_index(number, lead_shape), strict=True):
                    place[axis] = int(index)
                data.id.write_direct_chunk(tuple(place), chunk)

    offsets = np.zeros(int(np.prod(lead_shape)) + 1, np.int64)
    return Layout(offsets, storage.kind.str, flip, Packing(_encode, fill))


def _encode(pixels: NDArray[Any]) -> bytes:
    """Do what HDF5's shuffle and gzip filters do."""
    size = pixels.dtype.itemsize
    planes = np.ascontiguousarray(pixels.reshape(-1).view(np.uint8).reshape(-1, size).T)
    return zlib.compress(planes.data, LEVEL)


def _chunk_offsets(
    path: Path, dataset: str, lead: list[int], lead_shape: tuple[int, ...]
) -> NDArray[np.int64]:
    """Return the byte at which each frame's chunk begins, (N,)."""
    offsets = np.full(int(np.prod(lead_shape)), -1, np.int64)

    def note(chunk: Any) -> None:
        index = tuple(chunk.chunk_offset[axis] for axis in lead)
        number = int(np.ravel_multi_index(index, lead_shape)) if lead else 0
        offsets[number] = chunk.byte_offset

    with h5py.File(path, "r") as file:
        file[dataset].id.chunk_iter(note)
    return offsets


def record(file: h5py.File, frames: str, provenance: Provenance) -> None:
    """Write the provenance group; an earlier one is kept."""
    number, name = 1, GROUP
    while name in file:
        number += 1
        name = f"{GROUP}_{number}"
    group = file.create_group(name)
    group.attrs["NX_class"] = "NXprocess"
    group.attrs["frames"] = frames
    for key, value in provenance.items():
        group.attrs[key] = plain_text(value) if isinstance(value, str) else value


def finish(path: Path, late: Provenance) -> None:
    """Add what is known at the end only to the newest provenance group."""
    reserve(path, path.stat().st_size, MARGIN)
    with h5py.File(path, "r+") as file:
        number = 1
        while f"{GROUP}_{number + 1}" in file:
            number += 1
        group = file[GROUP if number == 1 else f"{GROUP}_{number}"]
        for key, value in late.items():
            group.attrs[key] = value
