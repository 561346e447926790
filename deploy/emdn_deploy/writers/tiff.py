"""TIFF for ImageJ and DigitalMicrograph users; BigTIFF above 4 GB."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from emdn_deploy.calibration import step_in
from emdn_deploy.readers.frames import Axis, Frames
from emdn_deploy.writers.layout import Layout, Provenance

# ImageJ reads one directory and then plain pixels; a classic TIFF ends at 4 GB.
_CLASSIC_BYTES = 2**32 - 2**25


def lay_out(target: Path, frames: Frames, provenance: Provenance) -> Layout:
    """Write the headers and the space for the pixels."""
    count, height, width = frames.shape
    classic = 4 * count * height * width < _CLASSIC_BYTES
    x, y = (_nanometres(frames.axis(letter)) for letter in "xy")
    options: dict[str, Any] = {"photometric": "minisblack"}
    if x.step and y.step:
        options["resolution"] = (1 / x.step, 1 / y.step)
        options["extratags"] = _dm_tags(x, y)
    metadata: dict[str, Any] = {"axes": "TYX", "Info": json.dumps(dict(provenance))}
    if classic:
        options["imagej"] = True
        metadata["unit"] = x.units if x.step else "pixel"
    else:
        options["bigtiff"] = True
    written = tifffile.imwrite(
        target, None, shape=frames.shape, dtype=np.float32, metadata=metadata,
        returnoffset=True, **options,
    )  # fmt: skip
    offset = written[0] if written else 0
    with tifffile.TiffFile(target) as file:
        order = file.byteorder
    offsets = offset + np.arange(count, dtype=np.int64) * height * width * 4
    return Layout(offsets, f"{order}f4")


def finish(path: Path, late: Provenance) -> None:
    """Leave the file as it is: a TIFF's description cannot grow in place."""


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
