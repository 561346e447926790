"""HDF5 to HDF5: the input's tree again, with one dataset replaced.

Every group, dataset, attribute, soft, hard and external link is kept; the frames are
in the same axis order, one frame a chunk. A stack in several parts becomes one dataset
under the name of the first, and the links to the others are left out. Standard deviations
that an earlier run left are not those of the new frames and are left out as well.
"""

import logging
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from emdn_deploy.readers.frames import Frames
from emdn_deploy.readers.hdf5 import SIGMA_OF, open_file
from emdn_deploy.writers import SIGMA, Layout, Provenance, Storage
from emdn_deploy.writers.hdf5 import (
    ERRORS,
    create_frames,
    create_sigma,
    finish,
    is_nxdata,
    layout_of,
    record,
)
from emdn_models.errors import FormatError, OutputError
from emdn_models.files import opened

_log = logging.getLogger(__name__)

__all__ = ["check_sigma", "dataset_of", "finish", "lay_out"]


def lay_out(target: Path, frames: Frames, provenance: Provenance, storage: Storage) -> Layout:
    """Write everything but the pixels, and say where those belong.

    Raises FormatError if the input is damaged beside its frames.
    """
    try:
        with open_file(frames.path) as source, opened(target, "w") as out:
            copy = out.file
            _copy_tree(source, copy, frames, Path(target).parent, storage)
            _copy_references(source, copy)
            if storage.sigma:
                _copy_dimensions(copy[frames.dataset], copy[frames.dataset + SIGMA], copy)
            record(copy, frames.dataset, provenance)
    except (KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk
        raise FormatError(
            f"{frames.path}: what it holds beside the frames is damaged and cannot be copied "
            f"({error}); --to hspy writes the frames alone"
        ) from error
    return layout_of(target, frames.dataset, frames.stored_shape, frames.order, storage)


def dataset_of(frames: Frames) -> str:
    """Return where the frames lie in the output: where they were."""
    return frames.dataset


def check_sigma(frames: Frames) -> None:
    """Refuse a file in which the names for standard deviations are taken.

    Raises OutputError, naming what has them.
    """
    parent, _, name = frames.dataset.rpartition("/")
    with open_file(frames.path) as source:
        group = source[parent or "/"]
        names = (name + SIGMA, name + ERRORS) if is_nxdata(group) else (name + SIGMA,)
        for taken in names:
            if group.get(taken, getlink=True) is not None and not _is_sigma(group, taken, name):
                raise OutputError(
                    f"{frames.path}: holds {parent}/{taken} already, where the mirrored output "
                    "would have its standard deviations; choose --to hspy, or leave out --sigma"
                )


def _is_sigma(group: h5py.Group, name: str, frames: str) -> bool:
    """Say whether an earlier run of emdn wrote ``name`` as the standard deviations of frames."""
    item = group.get(frames + SIGMA)
    if not isinstance(item, h5py.Dataset) or item.attrs.get(SIGMA_OF) != frames:
        return False
    linked = isinstance(group.get(name, getlink=True), h5py.SoftLink)
    return name == frames + SIGMA or (name == frames + ERRORS and linked)


def _copy_dimensions(old: h5py.Dataset, new: h5py.Dataset, copy: h5py.File) -> None:
    """Give a dataset the labels of another one's axes, and the copies of their scales."""
    for axis, own in zip(old.dims, new.dims, strict=True):
        if axis.label:
            own.label = axis.label
        for scale in axis.values():
            if isinstance(copy.get(scale.name), h5py.Dataset) and not len(own):
                own.attach_scale(copy[scale.name])


def _copy_tree(
    source: h5py.File, copy: h5py.File, frames: Frames, folder: Path, storage: Storage
) -> None:
    """Walk the links of ``source`` depth first and make each again in ``copy``."""
    chosen = source[frames.dataset]
    made: dict[Any, str] = {_identity(source): "/"}
    parent, _, leaf = frames.dataset.rpartition("/")

    def walk(group: h5py.Group, into: h5py.Group, above: str) -> None:
        _copy_attributes(group, into)
        for name in group:
            if isinstance(name, bytes):  # not UTF-8, which h5py cannot follow
                if group.id.links.get_info(name).type == h5py.h5l.TYPE_HARD:
                    h5py.h5o.copy(group.id, name, into.id, name)
                else:
                    _log.warning("warning: the link %r is left out: its name is not UTF-8", name)
                continue
            link, path = group.get(name, getlink=True), f"{above}/{name}"
            # The frames of other parts are in the first; those of an earlier sigma do not fit.
            if path in frames.parts[1:] or (above == parent and _is_sigma(group, name, leaf)):
                continue
            leads_to_frames = f"{frames.dataset}/".startswith(f"{path}/")
            if isinstance(link, h5py.SoftLink):
                into[name] = h5py.SoftLink(link.path)
            elif isinstance(link, h5py.ExternalLink) and not leads_to_frames:
                beside = (frames.path.parent / link.filename).resolve()
                outside = os.path.relpath(beside, folder.resolve())
                into[name] = h5py.ExternalLink(outside, link.path)
            elif _identity(group[name]) in made and isinstance(link, h5py.HardLink):
                into[name] = copy[made[_identity(group[name])]]
            else:
                make(group, into, name, path)

    def make(group: h5py.Group, into: h5py.Group, name: str, path: str) -> None:
        item = group[name]
        made[_identity(item)] = path
        if isinstance(item, h5py.Group):
            walk(item, into.create_group(name, track_order=True), path)
        elif item != chosen:
            group.copy(name, into, name=name)
        else:
            shape, order = frames.stored_shape, frames.order
            new = create_frames(into, name, shape, order, storage)
            _copy_attributes(item, new)
            # Dectris counts images in attributes: the first part ends where the last did.
            last = source[frames.parts[-1]].attrs.get("image_nr_high") if frames.parts else None
            if last is not None and "image_nr_high" in new.attrs:
                new.attrs.modify("image_nr_high", last)
            if storage.sigma:
                sigma = create_sigma(into, name, shape, order, storage)
                _copy_attributes(new, sigma, leave=("signal", *sigma.attrs))

    walk(source, copy, "")


def _identity(item: h5py.Group | h5py.Dataset) -> tuple[int, ...]:
    info = h5py.h5o.get_info(item.id)
    return int(info.fileno), int(info.addr)


def _copy_attributes(
    item: h5py.Group | h5py.Dataset,
    into: h5py.Group | h5py.Dataset,
    leave: tuple[str, ...] = (),
) -> None:
    for name in item.attrs:
        low = item.attrs.get_id(name)
        kind = low.get_type()
        if name not in leave and not _refers(kind):
            # The stored type, shape and bytes, not what numpy would make of the value.
            new = h5py.h5a.create(into.id, low.name, kind, low.get_space())
            if low.get_space().get_simple_extent_type() != h5py.h5s.NULL:
                buffer = np.zeros(low.shape, f"V{kind.get_size()}")
                low.read(buffer, mtype=kind)
                new.write(buffer, mtype=kind)


def _copy_references(source: h5py.File, copy: h5py.File) -> None:
    """Point dimension scales, and other references, at the copies."""

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        twin = copy.get(name) if isinstance(name, str) else None
        if twin is None:
            return
        if isinstance(item, h5py.Dataset) and twin.ndim == item.ndim:
            _copy_dimensions(item, twin, copy)
        for key in item.attrs:
            value = item.attrs[key] if _refers(item.attrs.get_id(key).get_type()) else None
            if isinstance(value, h5py.Reference) and value and source[value].name in copy:
                twin.attrs[key] = copy[source[value].name].ref

    source.visititems(visit)


def _refers(kind: h5py.h5t.TypeID) -> bool:
    """Say whether an attribute holds references: alone, in lists or in compounds."""
    if isinstance(kind, h5py.h5t.TypeVlenID | h5py.h5t.TypeArrayID):
        return _refers(kind.get_super())
    if isinstance(kind, h5py.h5t.TypeCompoundID):
        return any(_refers(kind.get_member_type(i)) for i in range(kind.get_nmembers()))
    return isinstance(kind, h5py.h5t.TypeReferenceID)
