"""HDF5 to HDF5: the input's tree again, with one dataset replaced.

Every group, dataset, attribute, soft, hard and external link is kept; the frames are
float32 in the same axis order, one frame a chunk.
"""

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from emdn_deploy.readers.frames import Frames
from emdn_deploy.readers.hdf5 import open_file
from emdn_deploy.writers.layout import Layout, Provenance

GROUP = "emdn"


def lay_out(target: Path, frames: Frames, provenance: Provenance) -> Layout:
    """Write everything but the pixels, and say where those belong."""
    with open_file(frames.path) as source, h5py.File(target, "w") as copy:
        _copy_tree(source, copy, frames, Path(target).parent)
        _copy_references(source, copy)
        group = copy.create_group(_free_name(copy))
        group.attrs["NX_class"] = "NXprocess"
        group.attrs["frames"] = frames.dataset
        for name, value in provenance.items():
            group.attrs[name] = value
        where = group.name
    offsets = chunk_offsets(target, frames)

    def finish(late: Provenance) -> None:
        with h5py.File(target, "r+") as file:
            for name, value in late.items():
                file[where].attrs[name] = value

    flip = frames.order.index("x") < frames.order.index("y")
    return Layout(offsets, transposed=flip, finish=finish)


def create_frames(parent: h5py.Group, name: str, frames: Frames) -> h5py.Dataset:
    """Create the float32 dataset with its space on disk, one frame a chunk."""
    chunk = tuple(
        length if letter in "yx" else 1
        for length, letter in zip(frames.stored_shape, frames.order, strict=True)
    )
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_chunk(chunk)
    settings.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    settings.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    settings.set_attr_creation_order(h5py.h5p.CRT_ORDER_TRACKED | h5py.h5p.CRT_ORDER_INDEXED)
    space = h5py.h5s.create_simple(frames.stored_shape)
    kind = h5py.h5t.IEEE_F32LE
    return h5py.Dataset(h5py.h5d.create(parent.id, name.encode(), kind, space, dcpl=settings))


def chunk_offsets(path: Path, frames: Frames) -> Any:
    """Return the byte at which each frame's chunk begins, (N,)."""
    lead = [axis for axis, letter in enumerate(frames.order) if letter not in "yx"]
    lead_shape = tuple(frames.stored_shape[axis] for axis in lead)
    offsets = np.full(frames.shape[0], -1, np.int64)

    def note(chunk: Any) -> None:
        index = tuple(chunk.chunk_offset[axis] for axis in lead)
        number = int(np.ravel_multi_index(index, lead_shape)) if lead else 0
        offsets[number] = chunk.byte_offset

    with h5py.File(path, "r") as file:
        file[frames.dataset].id.chunk_iter(note)
    return offsets


def _copy_tree(source: h5py.File, copy: h5py.File, frames: Frames, folder: Path) -> None:
    """Walk the links of ``source`` depth first and make each again in ``copy``."""
    chosen = source[frames.dataset]
    made: dict[Any, str] = {_identity(source): "/"}
    base = frames.path.parent

    def walk(group: h5py.Group, into: h5py.Group) -> None:
        _copy_attributes(group, into)
        for name in group:
            link = group.get(name, getlink=True)
            path = f"{into.name.rstrip('/')}/{name}"
            if isinstance(link, h5py.SoftLink):
                into[name] = h5py.SoftLink(link.path)
                continue
            if isinstance(link, h5py.ExternalLink) and not _leads_to(path, frames.dataset):
                outside = os.path.relpath((base / link.filename).resolve(), folder.resolve())
                into[name] = h5py.ExternalLink(outside, link.path)
                continue
            item = group[name]
            if _identity(item) in made and isinstance(link, h5py.HardLink):
                into[name] = copy[made[_identity(item)]]
                continue
            made[_identity(item)] = path
            if isinstance(item, h5py.Group):
                walk(item, into.create_group(name, track_order=True))
            elif item == chosen:
                _copy_attributes(item, create_frames(into, name, frames))
            else:
                group.copy(name, into, name=name)

    walk(source, copy)


def _leads_to(path: str, dataset: str) -> bool:
    """Say whether the chosen dataset lies behind an external link at ``path``."""
    return dataset == path or dataset.startswith(f"{path}/")


def _identity(item: h5py.Group | h5py.Dataset) -> tuple[int, ...]:
    info = h5py.h5o.get_info(item.id)
    return int(info.fileno), int(info.addr)


def _copy_attributes(item: h5py.Group | h5py.Dataset, into: h5py.Group | h5py.Dataset) -> None:
    for name in item.attrs:
        kind = item.attrs.get_id(name).get_type()
        if not _refers(item, name):
            # The stored type and shape, not what numpy would make of the value.
            low = h5py.h5a.open(item.id, name.encode())
            new = h5py.h5a.create(into.id, name.encode(), kind, low.get_space())
            if low.get_space().get_simple_extent_type() != h5py.h5s.NULL:
                buffer = np.empty(low.shape, dtype=low.dtype)
                low.read(buffer)
                new.write(buffer)


def _copy_references(source: h5py.File, copy: h5py.File) -> None:
    """Point references (dimension scales, HDF5 regions of interest) at the copies."""

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        twin = copy.get(name)
        if twin is None:
            return
        if isinstance(item, h5py.Dataset) and twin.ndim == item.ndim:
            for old, new in zip(item.dims, twin.dims, strict=True):
                if old.label:
                    new.label = old.label
                for scale in old.values():
                    if isinstance(copy.get(scale.name), h5py.Dataset) and not len(new):
                        new.attach_scale(copy[scale.name])
        for key in item.attrs:
            if _refers(item, key) and key not in ("DIMENSION_LIST", "REFERENCE_LIST"):
                _copy_reference(source, copy, item, twin, key)

    source.visititems(visit)


def _copy_reference(source: h5py.File, copy: h5py.File, item: Any, twin: Any, key: str) -> None:
    value = item.attrs[key]
    if isinstance(value, h5py.Reference) and value:
        place = source[value].name
        if place in copy:
            twin.attrs[key] = copy[place].ref


def _refers(item: h5py.Group | h5py.Dataset, name: str) -> bool:
    kind = item.attrs.get_id(name).get_type()
    while isinstance(kind, h5py.h5t.TypeVlenID | h5py.h5t.TypeArrayID):
        kind = kind.get_super()
    if isinstance(kind, h5py.h5t.TypeCompoundID):
        return any(
            isinstance(kind.get_member_type(i), h5py.h5t.TypeReferenceID)
            for i in range(kind.get_nmembers())
        )
    return isinstance(kind, h5py.h5t.TypeReferenceID)


def _free_name(file: h5py.File) -> str:
    number, name = 1, GROUP
    while name in file:
        number, name = number + 1, f"{GROUP}_{number + 1}"
    return name
