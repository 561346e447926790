"""TIFF for ImageJ and DigitalMicrograph users; BigTIFF above 4 GB."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from emdn_deploy.readers.frames import Axis, Frames
from emdn_deploy.writers import Layout, Pixels, Provenance, Storage

# zlib's own default takes twice the time for a few percent of size.
_LEVEL = 1
# ImageJ reads one directory and then plain pixels; a classic TIFF ends at 4 GB.
_CLASSIC_BYTES = 2**32 - 2**25
_TIMES = ("s", "sec", "seconds", "ms", "msec", "µs", "us", "ns", "min", "h")
_IMAGEJ_TYPES = ("float32", "uint8", "uint16", "int16")


def lay_out(target: Path, frames: Frames, provenance: Provenance, storage: Storage) -> Layout:
    """Write the headers and the space for the pixels; compressed, pages are written at the end."""
    classic = storage.size(frames.shape) < _CLASSIC_BYTES
    x, y = (_nanometres(frames.axis(letter)) for letter in "xy")
    lead = [frames.axes[i] for i, letter in enumerate(frames.order) if letter not in "yxc"]
    along = lead[0] if len(lead) == 1 else Axis()
    slices = _nanometres(along) if along.step_in("nm") else None
    own = "content" not in provenance and frames.metadata.get("photometric")
    metadata: dict[str, Any] = {"axes": "ZYX" if slices else "TYX", "Info": json.dumps(provenance)}
    options: dict[str, Any] = {
        "shape": frames.shape, "dtype": np.dtype(storage.dtype),
        "photometric": own or "minisblack", "extratags": [], "metadata": metadata,
    }  # fmt: skip
    if slices:
        metadata |= {"spacing": slices.step, "zunit": slices.units}
    elif along.step and along.units.lower() in _TIMES:
        metadata |= {"finterval": along.step, "tunit": along.units}
    if x.step and y.step:
        options["resolution"] = (1 / x.step, 1 / y.step)
        options["extratags"] = _dm_tags(x, y, along)
        metadata |= {"unit": x.units, **({"yunit": y.units} if y.units != x.units else {})}
    if "orientation" in frames.metadata:
        options["extratags"].append((274, "H", 1, int(frames.metadata["orientation"]), True))
    if classic and storage.dtype in _IMAGEJ_TYPES and not storage.compress:
        options["imagej"] = True
        metadata.setdefault("unit", "pixel")
    else:
        options["bigtiff"] = not classic
    if not storage.compress:
        tifffile.imwrite(target, None, **options)
        with tifffile.TiffFile(target) as file:
            kind = storage.kind.newbyteorder(file.byteorder)
            return Layout(kind.str, file.pages.first.dataoffsets[0])
    height, width = frames.shape[1:]

    def fill(read: Pixels) -> None:
        pages = (read(height * width).reshape(height, width) for _ in range(frames.shape[0]))
        tifffile.imwrite(
            target, pages, byteorder="<", compression="zlib", compressionargs={"level": _LEVEL},
            rowsperstrip=height, **options,
        )  # fmt: skip

    target.touch()
    return Layout(storage.kind.str, fill=fill)


def finish(path: Path, late: Provenance) -> None:
    """Add to the record what is known at the end only."""
    with tifffile.TiffFile(path, mode="r+") as file:
        tags, described = file.pages.first.tags, file.imagej_metadata
        if described is None:
            described = json.loads(tags["ImageDescription"].value)
        info = json.dumps({**json.loads(described["Info"]), **late})
        if not file.is_imagej:
            tags["ImageDescription"].overwrite(json.dumps({**described, "Info": info}))
            return
        changed = tifffile.tifffile.imagej_metadata_tag({"Info": info}, file.byteorder)
        for code, dtype, _, value, _ in changed:
            tags[code].overwrite(value, dtype=dtype)


def _nanometres(axis: Axis) -> Axis:
    """Return lengths in nm, which ImageJ shows as they are; others unchanged."""
    step = axis.step_in("nm")
    return axis if step is None else Axis(axis.name, "nm", step)


def _dm_tags(x: Axis, y: Axis, along: Axis) -> list[tuple[int, str, int, Any, bool]]:
    """Return the tags from which HyperSpy and GMS take the calibration.

    ``along``: the axis of the frames.
    """
    tags: list[tuple[int, str, int, Any, bool]] = []
    for number, axis in enumerate((x, y, along)):
        if axis.step and axis.units:
            units = axis.units.encode("ascii", "replace").decode()
            tags += [
                (65003 + number, "s", 0, units, True),
                (65006 + number, "d", 1, 0.0, True),
                (65009 + number, "d", 1, axis.step, True),
            ]
    return sorted(tags)


FORMATS = {"tiff": (lay_out, finish)}
