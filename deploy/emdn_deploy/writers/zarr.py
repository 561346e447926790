"""OME-Zarr 0.5 (Zarr 3): a folder whose array is one shard, in which each frame is a chunk.

So the pixels lie in one file, as in other formats, and each frame can be read alone.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from emdn_deploy.readers.frames import Frames
from emdn_deploy.readers.zarr import UNITS
from emdn_deploy.writers import Layout, Provenance, Storage, plain_text
from emdn_deploy.writers.hdf5 import stacked
from emdn_models.errors import library
from emdn_models.files import renamed

_NAMES = {short: name for name, short in UNITS.items()}
_TYPES = {"t": "time", "z": "space", "y": "space", "x": "space"}


def lay_out(target: Path, frames: Frames, provenance: Provenance, storage: Storage) -> Layout:
    """Write the metadata, the space for the pixels, and the index of the shard behind it."""
    zarr = library("zarr", "zarr", target)
    from google_crc32c import value as crc32c  # which zarr brings

    shape, axes = stacked(frames)
    lead = [letter for letter in frames.order if letter not in "yxc"]
    names = [*(["t"] if len(lead) == 1 and lead != ["z"] else lead), "y", "x"]
    described = []
    for name, axis in zip(names, axes, strict=True):
        unit = "" if axis.step is None else _NAMES.get(axis.units, axis.units)
        known = {"name": name, "type": _TYPES.get(name, ""), "unit": unit}
        described.append({key: text for key, text in known.items() if text})
    places = [
        {"type": "scale", "scale": [axis.step or 1.0 for axis in axes]},
        {"type": "translation", "translation": [axis.origin for axis in axes]},
    ]
    image = {
        "name": plain_text(frames.path.name),
        "axes": described,
        "datasets": [{"path": "0", "coordinateTransformations": places}],
    }
    record = {key: plain_text(one) if isinstance(one, str) else one
              for key, one in provenance.items()}  # fmt: skip
    facts = {"ome": {"version": "0.5", "multiscales": [image]}, "emdn": record}
    zarr.create_group(target, zarr_format=3, attributes=facts).create_array(
        "0", shape=shape, chunks=(*[1] * len(lead), *shape[-2:]), shards=shape,
        dtype=storage.kind, compressors=None, fill_value=0, dimension_names=names,
    )  # fmt: skip
    shard = Path("0", "c", *["0"] * len(shape))
    (target / shard).parent.mkdir(parents=True)
    layout = Layout.contiguous(0, frames, storage, storage.kind.str)
    sizes = np.full(len(layout.offsets), storage.size(frames.shape[1:]))
    index = np.stack([layout.offsets, sizes], axis=1).astype("<u8").tobytes()
    with (target / shard).open("wb") as file:
        file.seek(storage.size(frames.shape))
        file.write(index + crc32c(index).to_bytes(4, "little"))
    return replace(layout, inside=str(shard))


def finish(path: Path, late: Provenance) -> None:
    """Complete the record."""
    facts = json.loads((path / "zarr.json").read_text(encoding="utf-8"))
    facts["attributes"]["emdn"].update(late)
    with renamed(path / "zarr.json") as partial:
        partial.write_text(json.dumps(facts, indent=1), encoding="utf-8")
