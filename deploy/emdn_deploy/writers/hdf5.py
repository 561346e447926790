"""A new HDF5 file that HyperSpy, NeXus readers and EMD readers open calibrated.

``/Experiments`` is a HyperSpy file's list of signals, an NXentry and an EMD 1.0 root
at once; ``/Experiments/<title>`` is the signal, its NXdata and an EMD array. The
vectors ``dim0``, ``dim1``... serve both EMD and NeXus, the groups ``axis-0``... HyperSpy.
Here is also what the mirroring writer shares: the frames' datasets and the record.
"""

import uuid
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from emdn_deploy.readers.frames import Axis, Frames
from emdn_deploy.readers.hdf5 import SIGMA_OF
from emdn_deploy.writers import GROUP, SIGMA, Layout, Provenance, Storage, plain_text
from emdn_models.files import opened

# NXdata: FIELDNAME_errors are the standard deviations of FIELDNAME.
ERRORS = "_errors"
# gzip's own default, 6, takes twice the time; of denoised float32 it makes 57 % instead of 60.
LEVEL = 1
_ROOT = "Experiments"


def lay_out(target: Path, frames: Frames, provenance: Provenance, storage: Storage) -> Layout:
    """Write everything but the pixels, and say where those belong."""
    title = _title(frames)
    shape, axes = stacked(frames)
    order = "tuvwabdefghij"[: len(shape) - 2] + "yx"
    with opened(target, "w") as out:
        file = out.file
        file.attrs.update(
            {
                "file_format": "HyperSpy", "file_format_version": "3.1", "default": _ROOT,
                "emd_group_type": "file", "version_major": 1, "version_minor": 0,
                "UUID": str(uuid.uuid4()), "authoring_program": "emdn",
            }
        )  # fmt: skip
        root = file.create_group(_ROOT)
        root.attrs.update(
            {"NX_class": "NXentry", "default": title, "emd_group_type": "root",
             "python_class": "Root"}
        )  # fmt: skip
        group = root.create_group(title)
        group.attrs.update(
            {"NX_class": "NXdata", "signal": "data", "emd_group_type": "array",
             "python_class": "Array"}
        )  # fmt: skip
        group.attrs["axes"] = [f"dim{i}" for i in range(len(shape))]
        create_frames(group, "data", shape, order, storage).attrs["units"] = ""
        if storage.sigma:
            create_sigma(group, "data", shape, order, storage).attrs["units"] = ""
        for i, (axis, length) in enumerate(zip(axes, shape, strict=True)):
            _write_axis(group, i, axis, length, navigate=i < len(shape) - 2)
        _write_metadata(group, title, frames)
        record(file, dataset_of(frames), provenance)
    return layout_of(target, dataset_of(frames), shape, order, storage)


def dataset_of(frames: Frames) -> str:
    """Return where the frames lie in the new file."""
    return f"/{_ROOT}/{_title(frames)}/data"


def _title(frames: Frames) -> str:
    return plain_text(frames.path.name.split(".")[0].strip("*?[]")) or "frames"


def stacked(frames: Frames) -> tuple[tuple[int, ...], tuple[Axis, ...]]:
    """Return the shape with the frames' own axes last, and its calibration."""
    lead = [i for i, letter in enumerate(frames.order) if letter not in "yxc"]
    places = [*lead, frames.order.index("y"), frames.order.index("x")]
    names = ["frame"] if len(lead) == 1 else [f"scan_{i}" for i in range(len(lead))]
    axes = tuple(
        replace(axis, name=axis.name or name)
        for axis, name in zip((frames.axes[i] for i in places), [*names, "y", "x"], strict=True)
    )
    return tuple(frames.stored_shape[i] for i in places), axes


def _write_axis(group: h5py.Group, i: int, axis: Axis, length: int, *, navigate: bool) -> None:
    step = 1.0 if axis.step is None else axis.step
    vector = group.create_dataset(f"dim{i}", data=axis.origin + step * np.arange(length))
    vector.attrs.update({"name": axis.name, "units": axis.units, "long_name": axis.name})
    notes: dict[str, Any] = {
        "_type": "UniformDataAxis", "name": axis.name, "units": axis.units, "scale": step,
        "offset": axis.origin, "size": length, "navigate": navigate, "is_binned": False,
    }  # fmt: skip
    group.create_group(f"axis-{i}").attrs.update(notes)


def _write_metadata(group: h5py.Group, title: str, frames: Frames) -> None:
    metadata = group.create_group("metadata")
    metadata.create_group("General").attrs.update(
        {"title": title, "original_filename": plain_text(frames.path.name)}
    )
    metadata.create_group("Signal").attrs["signal_type"] = ""
    original = group.create_group("original_metadata")
    for key, value in frames.metadata.items():
        original.attrs[key.replace("/", "_")] = value


def create_frames(
    parent: h5py.Group, name: str, shape: tuple[int, ...], order: str, storage: Storage
) -> h5py.Dataset:
    """Create the dataset, one frame a chunk, with its space on disk unless compressed.

    Where other files hold the pixels of (N, H, W) it is a virtual one: what is missing of them
    reads as NaN, or as 0 of integers. ``shape``, ``order``: stored shape and one letter per axis,
    ``y`` and ``x`` the frame.
    """
    chunk = tuple(
        length if letter in "yx" else 1 for length, letter in zip(shape, order, strict=True)
    )
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    if storage.parts and storage.kind.kind == "f":
        settings.set_fill_value(np.array(np.nan, storage.kind))
    for start, stop, *names in storage.parts:
        own, theirs = (h5py.h5s.create_simple((n, *shape[1:])) for n in (shape[0], stop - start))
        own.select_hyperslab((start, *[0] * (len(shape) - 1)), (stop - start, *shape[1:]))
        # HDF5 counts with %b.
        settings.set_virtual(own, *(name.replace("%", "%%").encode() for name in names), theirs)
    if not storage.parts:
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
    parts = tuple((*part[:3], part[3] + SIGMA) for part in storage.parts)
    own = replace(storage, dtype="float32", parts=parts)
    made = create_frames(parent, name + SIGMA, shape, order, own)
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
    if storage.parts:
        return Layout(np.zeros(0, np.int64), storage.kind.str)
    if storage.sigma:
        frames = replace(storage, sigma=False)
        layout = layout_of(path, dataset, shape, order, frames)
        plain = replace(frames, dtype="float32")
        return replace(layout, sigma=layout_of(path, dataset + SIGMA, shape, order, plain))
    lead = [axis for axis, letter in enumerate(order) if letter not in "yx"]
    lead_shape = tuple(shape[axis] for axis in lead)
    count = int(np.prod(lead_shape))
    flip = order.index("x") < order.index("y")
    if not storage.compress:
        offsets = np.full(count, -1, np.int64)

        def note(chunk: Any) -> None:
            index = tuple(chunk.chunk_offset[axis] for axis in lead)
            offsets[int(np.ravel_multi_index(index, lead_shape)) if lead else 0] = chunk.byte_offset

        with h5py.File(path, "r") as file:
            file[dataset].id.chunk_iter(note)
        return Layout(offsets, storage.kind.str, flip)

    def fill(chunks: Iterator[bytes]) -> None:
        with opened(path, "r+") as out:
            data = out.file[dataset]
            for number, chunk in enumerate(chunks):
                place = [0] * len(shape)
                for axis, index in zip(lead, np.unravel_index(number, lead_shape), strict=True):
                    place[axis] = int(index)
                data.id.write_direct_chunk(tuple(place), chunk)
                out.check()

    offsets = np.zeros(count + 1, np.int64)
    return Layout(offsets, storage.kind.str, flip, _encode, fill)


def _encode(pixels: NDArray[Any]) -> bytes:
    """Do what HDF5's shuffle and gzip filters do."""
    size = pixels.dtype.itemsize
    planes = np.ascontiguousarray(pixels.reshape(-1).view(np.uint8).reshape(-1, size).T)
    return zlib.compress(planes.data, LEVEL)


def _groups(file: h5py.File) -> Iterator[str]:
    """Yield the names of the provenance groups that are there, and the next free one."""
    number, name = 1, GROUP
    while name in file:
        yield name
        number += 1
        name = f"{GROUP}_{number}"
    yield name


def record(file: h5py.File, frames: str, provenance: Provenance) -> None:
    """Write the provenance group; an earlier one is kept."""
    group = file.create_group(list(_groups(file))[-1])
    group.attrs["NX_class"] = "NXprocess"
    group.attrs["frames"] = frames
    for key, value in provenance.items():
        group.attrs[key] = plain_text(value) if isinstance(value, str) else value


def finish(path: Path, late: Provenance) -> None:
    """Add what is known at the end only to the newest provenance group."""
    with opened(path, "r+") as out:
        group = out.file[list(_groups(out.file))[-2]]
        for key, value in late.items():
            group.attrs[key] = value
