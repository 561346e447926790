"""TIFF for ImageJ and DigitalMicrograph users; BigTIFF above 4 GB."""

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from emdn_deploy.calibration import step_in
from emdn_deploy.readers.frames import Axis, Frames
from emdn_deploy.writers.hdf5_frames import LEVEL
from emdn_deploy.writers.layout import Layout, Packing, Provenance, Storage

# ImageJ reads one directory and then plain pixels; a classic TIFF ends at 4 GB.
_CLASSIC_BYTES = 2**32 - 2**25
_IMAGEJ_TYPES = ("float32", "uint8", "uint16", "int16")
# A TIFF's texts cannot grow in place: room for what is known at the end only.
_ROOM = " " * 1000


def lay_out(target: Path, frames: Frames, provenance: Provenance, storage: Storage) -> Layout:
    """Write the headers and the space for the pixels."""
    classic = storage.size(frames.shape) < _CLASSIC_BYTES
    x, y = (_nanometres(frames.axis(letter)) for letter in "xy")
    options: dict[str, Any] = {"photometric": "minisblack"}
    if x.step and y.step:
        options["resolution"] = (1 / x.step, 1 / y.step)
        options["extratags"] = _dm_tags(x, y)
    metadata: dict[str, Any] = {
        "axes": "TYX",
        "Info": json.dumps(dict(provenance))[:-1] + _ROOM + "}",
    }
    if classic and storage.dtype in _IMAGEJ_TYPES and not storage.compress:
        options["imagej"] = True
        metadata["unit"] = x.units if x.step else "pixel"
    else:
        options["bigtiff"] = not classic
    if storage.compress:
        return _packed(target, frames.shape, storage, metadata, options)
    written = tifffile.imwrite(
        target, None, shape=frames.shape, dtype=np.dtype(storage.dtype), metadata=metadata,
        returnoffset=True, **options,
    )  # fmt: skip
    offset = written[0] if written else 0
    with tifffile.TiffFile(target) as file:
        order = file.byteorder
    offsets = offset + np.arange(frames.shape[0], dtype=np.int64) * storage.size(frames.shape[1:])
    return Layout(offsets, storage.kind.newbyteorder(order).str)


def _packed(
    target: Path,
    shape: tuple[int, int, int],
    storage: Storage,
    metadata: dict[str, Any],
    options: dict[str, Any],
) -> Layout:
    """Leave the file to be written at the end: each page says where its frame lies."""

    def encode(pixels: NDArray[Any]) -> bytes:
        return zlib.compress(pixels.data, LEVEL)

    def fill(chunks: Iterator[bytes]) -> None:
        tifffile.imwrite(
            target, chunks, shape=shape, dtype=np.dtype(storage.dtype), byteorder="<",
            metadata=metadata, compression="zlib", rowsperstrip=shape[1], **options,
        )  # fmt: skip

    target.touch()
    return Layout(np.zeros(shape[0] + 1, np.int64), storage.kind.str, packing=Packing(encode, fill))


def finish(path: Path, late: Provenance) -> None:
    """Put what is known at the end into the room that the record has for it."""
    with tifffile.TiffFile(path) as opened:
        tags = [tag for tag in opened.pages.first.tags if tag.code in (270, 50839)]
        places = [(tag.valueoffset, tag.valuebytecount) for tag in tags]
        imagej, order = opened.is_imagej, opened.byteorder
    encoding = f"utf-16-{'le' if order == '<' else 'be'}" if imagej else "ascii"
    known = dict(late)
    while len(text := _text(known, imagej)) > len(_ROOM):
        del known[max(known, key=lambda name: len(str(known[name])))]  # a list of frames
    with path.open("r+b") as file:
        for offset, count in places:
            file.seek(offset)
            start = file.read(count).find(_ROOM.encode(encoding))
            if start >= 0:
                file.seek(offset + start)
                file.write(text.ljust(len(_ROOM)).encode(encoding))


def _text(known: Provenance, imagej: bool) -> str:
    facts = ", " + json.dumps(dict(known))[1:-1]
    # Outside of ImageJ's tag, the record is a text inside of a JSON text.
    return facts if imagej else json.dumps(facts)[1:-1]


def _nanometres(axis: Axis) -> Axis:
    """Return lengths in nm, which ImageJ shows as they are; others unchanged."""
    step = step_in(axis, "nm")
    return axis if step is None else Axis(axis.name, "nm", step)


def _dm_tags(x: Axis, y: Axis) -> list[tuple[int, str, int, Any, bool]]:
    """Return the tags from which HyperSpy and GMS take the calibration."""
    units = x.units.encode("ascii", "replace").decode()
    return [
        (65003, "s", 0, units, True), (65004, "s", 0, units, True),
        (65006, "d", 1, 0.0, True), (65007, "d", 1, 0.0, True),
        (65009, "d", 1, x.step, True), (65010, "d", 1, y.step, True),
    ]  # fmt: skip
