"""HDF5: a new file for HyperSpy, NeXus and EMD readers, or the input's tree with other frames.

In a new file ``/Experiments/<title>`` is a HyperSpy signal, NXdata and an EMD 1.0 array at once:
vectors ``dim0``, ``dim1``... serve both EMD and NeXus, groups ``axis-0``... HyperSpy. HDF5 to
HDF5 keeps every group, dataset, attribute and link, but for standard deviations of an earlier run.
A stack in several parts becomes one dataset, named as the first.
"""

import os
import re
import uuid
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import h5py
import numpy as np

from emdn_deploy.readers.frames import Axis, Frames
from emdn_deploy.readers.hdf5 import SIGMA_OF
from emdn_deploy.writers import SIGMA, Layout, Pixels, Provenance, Storage, plain_text
from emdn_models.errors import FormatError, OutputError
from emdn_models.files import opened

# gzip's own default, 6, takes twice the time; of denoised float32 it makes 57 % instead of 60.
_LEVEL = 1
_ROOT = "Experiments"


def _new(target: Path, frames: Frames, provenance: Provenance, storage: Storage) -> Layout:
    """Write a new file but for its pixels."""
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
        layout = _create(target, group, "data", shape, order, storage)
        group["data"].attrs["units"] = ""
        for i, (axis, length) in enumerate(zip(axes, shape, strict=True)):
            _write_axis(group, i, axis, length, navigate=i < len(shape) - 2)
        _write_metadata(group, title, frames)
        _record(file, dataset_of(frames), provenance)
    return layout


def dataset_of(frames: Frames) -> str:
    """Return where the frames lie in a new file."""
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


def _create(
    path: Path, parent: h5py.Group, name: str, shape: tuple[int, ...], order: str, storage: Storage
) -> Layout:
    """Create the datasets of frames and of their standard deviations, and say how to fill them."""
    layout = _dataset(path, parent, name, shape, order, storage)
    if not storage.sigma:
        return layout
    parts = tuple((*part[:3], part[3] + SIGMA) for part in storage.parts)
    own = replace(storage, dtype="float32", parts=parts)
    sigma = _dataset(path, parent, name + SIGMA, shape, order, own)
    # By this readers tell it from the frames.
    parent[name + SIGMA].attrs[SIGMA_OF] = name
    parent[name + SIGMA].attrs["long_name"] = f"standard deviation of {name}"
    return replace(layout, sigma=sigma)


def _dataset(
    path: Path, parent: h5py.Group, name: str, shape: tuple[int, ...], order: str, storage: Storage
) -> Layout:
    """Create a dataset: in one piece, or one frame a chunk if it is compressed or turned.

    Where other files hold the pixels of (N, H, W) it is a virtual one: what is missing of them
    reads as NaN, or as 0 of integers.
    """
    kind = storage.kind
    if storage.parts:
        virtual = h5py.VirtualLayout(shape, kind)
        for start, stop, file, dataset in storage.parts:
            # HDF5 counts with %b.
            names = (text.replace("%", "%%") for text in (file, dataset))
            virtual[start:stop] = h5py.VirtualSource(*names, (stop - start, *shape[1:]))
        parent.create_virtual_dataset(name, virtual, np.nan if kind.kind == "f" else None)
        return Layout(kind.str, fill=lambda read: None)
    plain = not storage.compress and order.replace("c", "").endswith("yx")
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    settings.set_attr_creation_order(h5py.h5p.CRT_ORDER_TRACKED | h5py.h5p.CRT_ORDER_INDEXED)
    if plain:
        settings.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    else:
        lengths = zip(shape, order, strict=True)
        settings.set_chunk(tuple(length if letter in "yx" else 1 for length, letter in lengths))
    if storage.compress:
        settings.set_shuffle()
        settings.set_deflate(_LEVEL)
    space, numbers = h5py.h5s.create_simple(shape), h5py.h5t.py_create(kind)
    made = h5py.h5d.create(parent.id, name.encode(), numbers, space, dcpl=settings)
    if plain:
        return Layout(kind.str, made.get_offset())
    place = h5py.Dataset(made).name
    lead = [length for length, letter in zip(shape, order, strict=True) if letter not in "yx"]
    height, width = (shape[order.index(letter)] for letter in "yx")
    flip = order.index("x") < order.index("y")

    def fill(read: Pixels) -> None:
        with opened(path, "r+") as out:
            data = out.file[place]
            for index in np.ndindex(*lead):
                numbers = iter(index)
                where = tuple(slice(None) if letter in "yx" else next(numbers) for letter in order)
                frame = read(height * width).reshape(height, width)
                data[where] = frame.T if flip else frame
                out.check()

    return Layout(kind.str, fill=fill)


def _records(file: h5py.File) -> list[str]:
    """Name the records of a file: ``emdn``, ``emdn_2`` of frames that are denoised twice..."""
    names = (name for name in file if re.fullmatch(r"emdn(_\d+)?", name))
    return sorted(names, key=lambda name: int(name[5:] or 1))


def _record(file: h5py.File, frames: str, provenance: Provenance) -> None:
    count = len(_records(file))
    group = file.create_group(f"emdn_{count + 1}" if count else "emdn")
    group.attrs.update({"NX_class": "NXprocess", "frames": frames, **provenance})


def finish(path: Path, late: Provenance) -> None:
    """Add to the newest record what is known at the end only."""
    with opened(path, "r+") as out:
        out.file[_records(out.file)[-1]].attrs.update(late)


def recorded(path: Path) -> dict[str, Any]:
    """Return the newest record of a file, empty where there is none."""
    with h5py.File(path) as file:
        known = dict(file[_records(file)[-1]].attrs) if _records(file) else {}
    return {name: one.item() if isinstance(one, np.generic) else one for name, one in known.items()}


def _mirror(target: Path, frames: Frames, provenance: Provenance, storage: Storage) -> Layout:
    """Write the input's tree but for the frames' pixels; FormatError if it is damaged there."""
    try:
        with h5py.File(frames.path, "r") as source, opened(target, "w") as out:
            layout = _copy_tree(source, out.file, frames, target, storage)
            _copy_references(source, out.file)
            if storage.sigma:
                new = out.file[frames.dataset + SIGMA]
                _copy_dimensions(out.file[frames.dataset], new, out.file)
            _record(out.file, frames.dataset, provenance)
    except (KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk
        raise FormatError(
            f"{frames.path}: is damaged beside its frames ({error}); take --to hspy"
        ) from error
    return layout


def _copy_tree(
    source: h5py.File, copy: h5py.File, frames: Frames, target: Path, storage: Storage
) -> Layout:
    """Walk the links of ``source`` depth first and make each again in ``copy``.

    OutputError if the names for standard deviations are taken.
    """
    chosen = source[frames.dataset]
    made: dict[Any, str] = {_identity(source): "/"}
    layouts: list[Layout] = []
    parent, _, leaf = frames.dataset.rpartition("/")
    beside = source[parent or "/"]
    taken = leaf + SIGMA in beside
    ours = taken and SIGMA_OF in beside[leaf + SIGMA].attrs
    if storage.sigma and taken and not ours:
        raise OutputError(
            f"{frames.path}: holds {frames.dataset}{SIGMA} already, where the standard deviations "
            "would be; choose --to hspy, or leave out --sigma"
        )
    left = {*frames.parts[1:], *([frames.dataset + SIGMA] if ours else [])}
    above_frames = {frames.dataset, *map(str, PurePosixPath(frames.dataset).parents)}

    def walk(group: h5py.Group, into: h5py.Group, above: str) -> None:
        _copy_attributes(group, into)
        for name in group:
            link, path = group.get(name, getlink=True), f"{above}/{name}"
            if path in left:
                continue
            if isinstance(link, h5py.SoftLink):
                into[name] = h5py.SoftLink(link.path)
            elif isinstance(link, h5py.ExternalLink) and path not in above_frames:
                file = (frames.path.parent / link.filename).resolve()
                outside = os.path.relpath(file, target.parent.resolve())
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
            layouts.append(_create(target, into, name, frames.stored_shape, frames.order, storage))
            _copy_attributes(item, into[name])
            if storage.sigma and "units" in item.attrs:
                into[name + SIGMA].attrs["units"] = item.attrs["units"]

    walk(source, copy, "")
    return layouts[0]


def _identity(item: h5py.HLObject) -> tuple[int, ...]:
    info = h5py.h5o.get_info(item.id)
    return int(info.fileno), int(info.addr)


def _copy_attributes(item: h5py.HLObject, into: h5py.HLObject) -> None:
    for name in item.attrs:
        low = item.attrs.get_id(name)
        kind = low.get_type()
        if not kind.detect_class(h5py.h5t.REFERENCE):
            # The stored type, shape and bytes, not what numpy would make of the value.
            new = h5py.h5a.create(into.id, low.name, kind, low.get_space())
            if low.get_space().get_simple_extent_type() != h5py.h5s.NULL:
                buffer = np.zeros(low.shape, f"V{kind.get_size()}")
                low.read(buffer, mtype=kind)
                new.write(buffer, mtype=kind)


def _copy_references(source: h5py.File, copy: h5py.File) -> None:
    """Point dimension scales, and other references, at the copies."""

    def visit(name: str, item: h5py.HLObject) -> None:
        twin = copy.get(name)
        if isinstance(item, h5py.Dataset) and twin is not None and twin.ndim == item.ndim:
            _copy_dimensions(item, twin, copy)
        for key in item.attrs if twin is not None else ():
            refers = item.attrs.get_id(key).get_type().detect_class(h5py.h5t.REFERENCE)
            value = item.attrs[key] if refers else None
            if isinstance(value, h5py.Reference) and value and source[value].name in copy:
                twin.attrs[key] = copy[source[value].name].ref

    source.visititems(visit)


def _copy_dimensions(old: h5py.Dataset, new: h5py.Dataset, copy: h5py.File) -> None:
    """Give a dataset the labels of another one's axes, and the copies of their scales."""
    for axis, own in zip(old.dims, new.dims, strict=True):
        if axis.label:
            own.label = axis.label
        for scale in axis.values():
            if isinstance(copy.get(scale.name), h5py.Dataset) and not len(own):
                own.attach_scale(copy[scale.name])


FORMATS = {"hdf5": (_new, finish), "mirror": (_mirror, finish)}
