"""TIFF for ImageJ and DigitalMicrograph users; BigTIFF above 4 GB."""

import json
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from emdn_deploy.readers.frames import Axis, Frames
from emdn_deploy.writers import Layout, Provenance, Storage

# zlib's own default takes twice the time for a few percent of size.
_LEVEL = 1
# ImageJ reads one directory and then plain pixels; a classic TIFF ends at 4 GB.
_CLASSIC_BYTES = 2**32 - 2**25
_TIMES = ("s", "sec", "seconds", "ms", "msec", "µs", "us", "ns", "min", "h")
_IMAGEJ_TYPES = ("float32", "uint8", "uint16", "int16")
# A TIFF's texts cannot grow in place: room for what is known at the end only.
_ROOM = " " * 1000


def lay_out(target: Path, frames: Frames, provenance: Provenance, storage: Storage) -> Layout:
    """Write the headers and the space for the pixels."""
    classic = storage.size(frames.shape) < _CLASSIC_BYTES
    x, y = (_nanometres(frames.axis(letter)) for letter in "xy")
    own = "content" not in provenance and frames.metadata.get("photometric")
    options: dict[str, Any] = {"photometric": own or "minisblack", "extratags": []}
    letters, shape = _lead(frames)
    metadata: dict[str, Any] = {
        "axes": letters.upper() + "YX",
        "Info": json.dumps(dict(provenance))[:-1] + _ROOM + "}",
        **_steps(frames, letters, x.units),
    }
    if x.step and y.step:
        options["resolution"] = (1 / x.step, 1 / y.step)
        options["extratags"] = _dm_tags(x, y, frames.axes[0] if len(letters) == 1 else Axis())
        metadata |= {"unit": x.units, **({"yunit": y.units} if y.units != x.units else {})}
    if "orientation" in frames.metadata:
        options["extratags"].append((274, "H", 1, int(frames.metadata["orientation"]), True))
    if classic and storage.dtype in _IMAGEJ_TYPES and not storage.compress:
        options["imagej"] = True
        metadata.setdefault("unit", "pixel")
    else:
        options["bigtiff"] = not classic
    shape = (*shape, *frames.shape[1:])
    if storage.compress:
        return _packed(target, shape, storage, metadata, options)
    written = tifffile.imwrite(
        target, None, shape=shape, dtype=np.dtype(storage.dtype), metadata=metadata,
        returnoffset=True, **options,
    )  # fmt: skip
    with tifffile.TiffFile(target) as file:
        kind = storage.kind.newbyteorder(file.byteorder)
    return Layout.contiguous(written[0] if written else 0, frames, storage, kind.str)


def _packed(
    target: Path,
    shape: tuple[int, ...],
    storage: Storage,
    metadata: dict[str, Any],
    options: dict[str, Any],
) -> Layout:
    """Leave the file to be written at the end: each page says where its frame lies."""

    def encode(pixels: NDArray[Any]) -> bytes:
        return zlib.compress(pixels.data, _LEVEL)

    def fill(chunks: Iterator[bytes]) -> None:
        tifffile.imwrite(
            target, chunks, shape=shape, dtype=np.dtype(storage.dtype), byteorder="<",
            metadata=metadata, compression="zlib", rowsperstrip=shape[-2], **options,
        )  # fmt: skip

    target.touch()
    count = math.prod(shape[:-2])
    return Layout(np.zeros(count + 1, np.int64), storage.kind.str, encode=encode, fill=fill)


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
    step = axis.step_in("nm")
    return axis if step is None else Axis(axis.name, "nm", step)


def _lead(frames: Frames) -> tuple[str, tuple[int, ...]]:
    """Return ImageJ's letters of the axes before the frame's own, and their lengths."""
    lead = [i for i, letter in enumerate(frames.order) if letter not in "yxc"]
    shape = tuple(frames.stored_shape[i] for i in lead)
    letters = "".join(frames.axes[i].name.lower()[:1] or "-" for i in lead)
    known = [letter for letter in "tzc" if letter in letters]
    if len(lead) > 1 and letters == "".join(known):
        return letters, shape
    slices = len(lead) == 1 and frames.axes[lead[0]].step_in("nm") is not None
    return "z" if slices else "t", frames.shape[:1]


def _steps(frames: Frames, letters: str, unit: str) -> dict[str, Any]:
    """Return the time between frames and the distance of slices, under ImageJ's names."""
    lead = [i for i, letter in enumerate(frames.order) if letter not in "yxc"]
    known: dict[str, Any] = {}
    for letter, i in zip(letters, lead, strict=False):
        axis = frames.axes[i]
        if letter == "z" and axis.step:
            slices = _nanometres(axis)
            known |= {"spacing": slices.step}
            known |= {"zunit": slices.units} if slices.units != unit else {}
        elif letter == "t" and axis.step and axis.units.lower() in _TIMES:
            known |= {"finterval": axis.step, "tunit": axis.units}
    return known


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
