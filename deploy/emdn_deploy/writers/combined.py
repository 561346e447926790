"""A new HDF5 file that HyperSpy, NeXus readers and EMD readers open calibrated.

``/Experiments`` is a HyperSpy file's list of signals, an NXentry and an EMD 1.0 root
at once; ``/Experiments/<title>`` is the signal, its NXdata and an EMD array. The
vectors ``dim0``, ``dim1``... serve both EMD and NeXus, the groups ``axis-0``... HyperSpy.
"""

import uuid
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from emdn_deploy.calibration import INSTRUMENT
from emdn_deploy.readers.frames import Axis, Frames
from emdn_deploy.writers.hdf5_frames import (
    create_frames,
    create_sigma,
    finish,
    layout_of,
    probe,
    record,
)
from emdn_deploy.writers.layout import Layout, Provenance, Storage, plain_text

__all__ = ["dataset_of", "finish", "lay_out"]

_ROOT = "Experiments"


def lay_out(target: Path, frames: Frames, provenance: Provenance, storage: Storage) -> Layout:
    """Write everything but the pixels, and say where those belong."""
    title = _title(frames)
    shape, axes = stacked(frames)
    order = "tuvwabdefghij"[: len(shape) - 2] + "yx"
    path = dataset_of(frames)
    probe(target, 0)
    with h5py.File(target, "w") as file:
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
        record(file, path, provenance)
    return layout_of(target, path, shape, order, storage)


def dataset_of(frames: Frames) -> str:
    """Return where the frames lie in the new file."""
    return f"/{_ROOT}/{_title(frames)}/data"


def _title(frames: Frames) -> str:
    return plain_text(frames.path.name.split(".")[0].strip("*?[]")) or "frames"


def stacked(frames: Frames) -> tuple[tuple[int, ...], tuple[Axis, ...]]:
    """Return the shape with the frames' own axes last, and its calibration."""
    lead = [i for i, letter in enumerate(frames.order) if letter not in "yxc"]
    places = [*lead, frames.order.index("y"), frames.order.index("x")]
    names = [*("frame" if len(lead) == 1 else f"scan_{i}" for i in range(len(lead))), "y", "x"]
    axes = tuple(
        Axis(axis.name or name, axis.units, axis.step, axis.origin)
        for axis, name in zip((frames.axes[i] for i in places), names, strict=True)
    )
    return tuple(frames.stored_shape[i] for i in places), axes


def _write_axis(group: h5py.Group, i: int, axis: Axis, length: int, *, navigate: bool) -> None:
    step = 1.0 if axis.step is None else axis.step
    values = axis.origin + step * np.arange(length)
    vector = group.create_dataset(f"dim{i}", data=values)
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
        if key.startswith(f"{INSTRUMENT}."):
            *path, name = key.split(".")
            metadata.require_group("/".join(path)).attrs[name] = _number_or_text(value)
        else:
            original.attrs[key.replace("/", "_")] = value


def _number_or_text(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value
