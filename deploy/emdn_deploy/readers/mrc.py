"""MRC2014 and its relatives."""

import logging
import warnings
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np

from emdn_deploy.readers.arrays import array_frames, unmapped
from emdn_deploy.readers.frames import Axis, Choice, Frames
from emdn_models.errors import FormatError

_IMOD_STAMP = 1146047817
_log = logging.getLogger(__name__)


def open_frames(path: Path, choice: Choice) -> Frames:
    """Open an MRC stack; its sections are the frames.

    Raises
    ------
    FormatError
        If it is damaged, truncated, or holds transforms.
    """
    try:
        # Many programs write headers with small faults; the data are read all the same.
        with warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("always")
            file = mrcfile.mmap(path, mode="r", permissive=True)
    except (ValueError, OSError) as error:
        raise FormatError(f"{path}: cannot be read as MRC ({error})") from error
    said = "; ".join(str(note.message) for note in notes)
    if file.data is None:
        file.close()
        raise FormatError(f"{path}: is a truncated or damaged MRC file ({said})")
    if said:
        _log.info("%s: %s", path, said)
    data, reading = _data(file)
    size = file.voxel_size
    steps = [float(size[name]) or None for name in ("z", "y", "x")][-data.ndim :]
    axes = tuple(
        Axis(name, "Å", step) for name, step in zip("zyx"[-data.ndim :], steps, strict=True)
    )
    if data.ndim == 3:
        # A section's distance means something in a volume only; these are frames.
        axes = (Axis("frame"), *axes[1:])
    return array_frames(
        path, "MRC", unmapped(path, data), choice, axes=axes if data.ndim < 4 else (),
        metadata={"mode": reading}, release=file.close,
    )  # fmt: skip


def _data(file: Any) -> tuple[Any, str]:
    """Return the data, with mode 0 read as the program that wrote it meant it.

    MRC2014 defines bytes as signed; IMOD and much older software wrote unsigned
    ones. IMOD marks which, and a maximum above 127 in the header settles the rest.
    """
    mode = int(file.header.mode)
    if mode != 0:
        return file.data, str(mode)
    # IMOD's stamp and flags are bytes 152 to 160 of the header, inside extra2.
    words = np.frombuffer(file.header.extra2.tobytes()[40:48], file.header.mode.dtype)
    stamped = words[0] == _IMOD_STAMP
    unsigned = not words[1] & 1 if stamped else float(file.header.dmax) > 127
    if unsigned:
        return file.data.view(np.uint8), "0, bytes read as unsigned"
    return file.data, "0, bytes read as signed"
