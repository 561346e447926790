"""MRC, NumPy and OME-Zarr: formats in which pixels lie one after the other behind a header."""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from emdn_deploy.readers import READERS, Frames
from emdn_deploy.writers import Layout, Provenance, Storage, plain_text
from emdn_models.errors import library


def _mrc(target: Path, frames: Frames, provenance: Provenance, storage: Storage) -> Layout:
    """Lay out MRC2014, mode 2 unless integers are asked for, voxel size in angstrom."""
    import mrcfile

    from emdn_deploy.readers.mrc_npy_zarr import opened_header

    mode = mrcfile.utils.mode_from_dtype(np.dtype(storage.dtype))
    with mrcfile.new_mmap(target, frames.shape, mrc_mode=mode, overwrite=True) as file:
        file.set_image_stack()
        steps = [frames.axis(letter).step_in("Å") for letter in "xy"]
        if any(steps):  # 0: not known
            file.voxel_size = (steps[0] or 0, steps[1] or 0, steps[0] or steps[1])
        what = provenance.get("content", f"denoised by {provenance['model']}")
        file.add_label(f"emdn {provenance['version']}: {what}"[:80])
        # What the input says of each frame, such as tilts, where all frames are taken.
        if frames.path.suffix.lower() in READERS["mrc"] and frames.path.is_file():
            with opened_header(frames.path) as original:
                extended = original.extended_header
                if extended is not None and extended.nbytes and frames.numbers is None:
                    file.set_extended_header(extended.copy())
                    file.header.exttyp = original.header.exttyp
                    # Bytes 128 to 132 tell how long SerialEM's and Agard's records are.
                    own = bytearray(file.header.extra2.tobytes())
                    own[16:20] = original.header.extra2.tobytes()[16:20]
                    file.header.extra2 = bytes(own)
        kind = file.data.dtype.newbyteorder("=").str
        return Layout(kind, 1024 + int(file.header.nsymbt))


def _finish_mrc(path: Path, late: Provenance) -> None:
    """Write the statistics of the pixels into the header."""
    import mrcfile

    with mrcfile.mmap(path, "r+", permissive=True) as file:
        for name in ("min", "max", "mean"):
            file.header[f"d{name}"] = late[f"output_{name}"]
        file.header.rms = late["output_std"]
        if file.data.dtype.kind != "f":
            kind, count = file.data.dtype.name, late["saturated_pixels"]
            file.add_label(f"emdn: stored as {kind}, {count} pixels saturated")


def _npy(target: Path, frames: Frames, provenance: Provenance, storage: Storage) -> Layout:
    """Lay out ``.npy``, in the input's shape if frames come last, and a JSON file beside it."""
    last = frames.order.removesuffix("c").endswith("yx")
    same = last and math.prod(frames.stored_shape) == math.prod(frames.shape)
    shape = frames.stored_shape if same else frames.shape
    array = np.lib.format.open_memmap(target, "w+", storage.kind, shape)
    axes = [
        {"name": name, "units": axis.units, "step": axis.step, "origin": axis.origin}
        for name, axis in (("y", frames.axis("y")), ("x", frames.axis("x")))
    ]
    facts = {"axes": axes, "emdn": dict(provenance)}
    _json(target).write_text(json.dumps(facts), encoding="utf-8")
    return Layout(storage.kind.str, int(array.offset))


def _json(partial: Path) -> Path:
    return Path(f"{str(partial).removesuffix('.partial')}.json.partial")


def _zarr(target: Path, frames: Frames, provenance: Provenance, storage: Storage) -> Layout:
    """Lay out OME-Zarr 0.5: a folder whose array is one shard, in which each frame is a chunk.

    So the pixels lie in one file, as in other formats, and each frame can be read alone.
    """
    zarr = library("zarr", "zarr", target)
    from google_crc32c import value as crc32c  # which zarr brings

    from emdn_deploy.readers.mrc_npy_zarr import UNITS
    from emdn_deploy.writers.hdf5 import stacked

    shape, axes = stacked(frames)
    lead = [letter for letter in frames.order if letter not in "yxc"]
    names = [*(["t"] if len(lead) == 1 and lead != ["z"] else lead), "y", "x"]
    units = {short: name for name, short in UNITS.items()}
    described = []
    for name, axis in zip(names, axes, strict=True):
        kind = "time" if name == "t" else "space" if name in "zyx" else ""
        unit = "" if axis.step is None else units.get(axis.units, axis.units)
        known = {"name": name, "type": kind, "unit": unit}
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
    facts = {"ome": {"version": "0.5", "multiscales": [image]}, "emdn": dict(provenance)}
    zarr.create_group(target, zarr_format=3, attributes=facts).create_array(
        "0", shape=shape, chunks=(*[1] * len(lead), *shape[-2:]), shards=shape,
        dtype=storage.kind, compressors=None, fill_value=0, dimension_names=names,
    )  # fmt: skip
    shard = Path("0", "c", *["0"] * len(shape))
    (target / shard).parent.mkdir(parents=True)
    size = storage.size(frames.shape[1:])
    offsets = size * np.arange(frames.shape[0])
    index = np.stack([offsets, np.full_like(offsets, size)], axis=1).astype("<u8").tobytes()
    with (target / shard).open("wb") as file:
        file.seek(storage.size(frames.shape))
        file.write(index + crc32c(index).to_bytes(4, "little"))
    return Layout(storage.kind.str, inside=str(shard))


def _finish_json(path: Path, late: Provenance) -> None:
    """Complete the record in a JSON file: in a Zarr store, or beside an array of NumPy."""
    place = path / "zarr.json" if path.is_dir() else _json(path)
    facts: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
    facts.get("attributes", facts)["emdn"].update(late)
    fresh = Path(f"{place}.new")
    fresh.write_text(json.dumps(facts, indent=1), encoding="utf-8")
    os.replace(fresh, place)


FORMATS = {"mrc": (_mrc, _finish_mrc), "npy": (_npy, _finish_json), "zarr": (_zarr, _finish_json)}
