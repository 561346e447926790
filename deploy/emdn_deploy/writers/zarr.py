"""OME-Zarr 0.5 (Zarr 3): a folder whose array is one shard, in which each frame is a chunk.

So the pixels lie in one file, as in other formats, and each frame can be read alone.
"""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from emdn_deploy.readers.frames import Axis, Frames
from emdn_deploy.readers.zarr import UNITS, library
from emdn_deploy.writers import Layout, Provenance, Storage, plain_text
from emdn_deploy.writers.hdf5 import stacked

_NAMES = {short: name for name, short in UNITS.items()}
_TYPES = {"t": "time", "z": "space", "y": "space", "x": "space"}


def lay_out(target: Path, frames: Frames, provenance: Provenance, storage: Storage) -> Layout:
    """Write the metadata, the space for the pixels, and the index of the shard behind it."""
    zarr = library(target)
    from google_crc32c import value as crc32c  # which zarr brings

    shape, axes = stacked(frames)
    lead = [letter for letter in frames.order if letter not in "yxc"]
    names = [*(["t"] if len(lead) == 1 and lead != ["z"] else lead), "y", "x"]
    scale: dict[str, Any] = {"type": "scale", "scale": [axis.step or 1.0 for axis in axes]}
    origin = {"type": "translation", "translation": [axis.origin for axis in axes]}
    image = {
        "name": plain_text(frames.path.name),
        "axes": [_axis(name, axis) for name, axis in zip(names, axes, strict=True)],
        "datasets": [{"path": "0", "coordinateTransformations": [scale, origin]}],
    }
    record = {name: plain_text(one) if isinstance(one, str) else one
              for name, one in provenance.items()}  # fmt: skip
    known = {"ome": {"version": "0.5", "multiscales": [image]}, "emdn": record}
    zarr.create_group(target, zarr_format=3, attributes=known).create_array(
        "0", shape=shape, chunks=(*[1] * len(lead), *shape[-2:]), shards=shape,
        dtype=storage.kind, compressors=None, fill_value=0, dimension_names=names,
    )  # fmt: skip
    inside = "/".join(["0", "c", *["0"] * len(shape)])
    (target / inside).parent.mkdir(parents=True)
    layout = Layout.contiguous(0, frames, storage, storage.kind.str)
    sizes = np.full(len(layout.offsets), storage.size(frames.shape[1:]))
    index = np.stack([layout.offsets, sizes], axis=1).astype("<u8").tobytes()
    with (target / inside).open("wb") as file:
        file.seek(storage.size(frames.shape))
        file.write(index + crc32c(index).to_bytes(4, "little"))
    return replace(layout, inside=inside)


def _axis(name: str, axis: Axis) -> dict[str, str]:
    known = {"name": name, "type": _TYPES.get(name, ""), "unit": ""}
    if axis.step is not None:
        known["unit"] = _NAMES.get(axis.units, axis.units)
    return {key: text for key, text in known.items() if text}


def finish(path: Path, late: Provenance) -> None:
    """Complete the record."""
    file, fresh = path / "zarr.json", path / "zarr.json.new"
    known = json.loads(file.read_text(encoding="utf-8"))
    known["attributes"]["emdn"].update(late)
    fresh.write_text(json.dumps(known, indent=1), encoding="utf-8")
    os.replace(fresh, file)
