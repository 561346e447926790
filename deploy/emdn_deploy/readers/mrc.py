"""MRC2014 and its relatives; ``.gz`` and ``.bz2`` through a scratch file."""

import bz2
import errno
import gzip
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import mrcfile
import numpy as np

from emdn_deploy.readers.frames import Axis, Choice, Frames, array_frames, cut_short
from emdn_deploy.readers.npy import Plain
from emdn_models.errors import FormatError, OutputError

_IMOD_STAMP = 1146047817
_HEADER = 1024
_PACKED: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open}


def open_frames(path: Path, choice: Choice) -> Frames:
    """Open an MRC stack; its sections are the frames, all of them if the header promises fewer.

    Raises FormatError if it is damaged, or holds transforms or numbers of 4 bits.
    """
    header, notes = _header(path)
    dtype, reading = _dtype(path, header)
    try:
        shape = mrcfile.utils.data_shape_from_header(header)
    except ZeroDivisionError:  # volumes of no depth
        shape = (int(header.nz), int(header.ny), int(header.nx))
    if min(shape) < 0 or not shape[-1] * shape[-2]:
        raise FormatError(f"{path}: is a damaged MRC file (frames of shape {shape})")
    stored = tuple(int(header[name]) for name in ("mapc", "mapr", "maps"))
    if sorted(stored) == [1, 2, 3] and stored != (1, 2, 3):
        along = ", ".join("xyz"[one - 1] for one in stored)
        notes.append(
            f"its columns, rows and sections run along {along} (mapc, mapr, maps), and are read, "
            "and written, as x, y, z all the same"
        )
    start, frame = _HEADER + max(0, int(header.nsymbt)), dtype.itemsize * shape[-1] * shape[-2]
    promised, packed = math.prod(shape[:-2]), path.suffix.lower() in _PACKED
    with ExitStack() as stack:
        file = None
        if packed:
            file = stack.enter_context(_unpacked(path))
        size = file.seek(0, os.SEEK_END) if file else path.stat().st_size
        if file:
            notes.append(
                f"is unpacked into a scratch file of {size / 1e9:.2g} GB, in its folder or TMPDIR"
            )
        there = max(0, (size - start) // frame)
        missing = cut_short(there, promised) if there < max(1, promised) else ""
        if not there:
            raise FormatError(f"{path}: {missing}")
        if there > promised:
            notes.append(
                f"the header promises {promised} frames, the file holds {there}, which are taken; "
                f"--frames 0:{promised} takes those of the header"
            )
        shape = shape if there == promised else (there, *shape[-2:])
        data: Any = np.memmap(file, dtype, "r", start, shape) if file else None
        data = Plain(path, start, shape, dtype) if data is None else data
        axes, uncalibrated = _axes(header, len(shape), swapped=stored[:2] == (2, 1))
        frames = array_frames(
            path, "MRC", data, choice, axes=axes, metadata={"mode": reading},
            notes=(*notes, *uncalibrated), release=file.close if file else lambda: None,
            compressed=packed, missing=missing,
        )  # fmt: skip
        stack.pop_all()
    return frames


def _header(path: Path) -> tuple[Any, list[str]]:
    """Return the header, and what is odd about it."""
    # Many programs write headers with small faults; the data are read all the same.
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with mrcfile.open(path, permissive=True, header_only=True) as opened:
            header = opened.header
    return header, [str(one.message) for one in said]


def _dtype(path: Path, header: Any) -> tuple[np.dtype[Any], str]:
    """Return the data's type, and in words how mode 0 is read.

    MRC2014 defines bytes as signed; IMOD and much older software wrote unsigned
    ones. IMOD marks which, and a maximum above 127 in the header settles the rest.
    """
    mode = int(header.mode)
    if mode == 101:
        raise FormatError(
            f"{path}: holds numbers of 4 bits (MRC mode 101), which emdn does not unpack; "
            "write it with 8 bits first, such as with IMOD: newstack -mode 0 IN OUT"
        )
    dtype = mrcfile.utils.data_dtype_from_header(header)  # ValueError: an unknown mode
    if mode != 0:
        return dtype, str(mode)
    # IMOD's stamp and flags are bytes 152 to 160 of the header, inside extra2.
    words = np.frombuffer(header.extra2.tobytes()[40:48], header.mode.dtype)
    stamped = words[0] == _IMOD_STAMP
    if not words[1] & 1 if stamped else float(header.dmax) > 127:
        return np.dtype(np.uint8), "0, bytes read as unsigned"
    return dtype, "0, bytes read as signed"


def _axes(header: Any, ndim: int, *, swapped: bool) -> tuple[tuple[Axis, ...], list[str]]:
    """Return the calibration, and what was odd about it."""
    axes, notes, missing = [], [], []
    for name in "yx":
        along = {"x": "y", "y": "x"}[name] if swapped else name
        length, count = float(header.cella[along]), int(header[f"m{along}"])
        step = length / count if count and np.isfinite(length) else None
        if step is None:
            missing.append(f"{length:g} Å over m{along} = {count}")
        elif step < 0:
            notes.append(f"the voxel size {step:g} Å along {name} is taken as {-step:g} Å")
        axes.append(Axis(name, "Å" if step else "", abs(step) if step else None))
    if missing:
        notes.append(f"has no voxel size ({', '.join(missing)}): not calibrated")
    # A section's distance means something in a volume only; these are frames.
    return (*(Axis("frame"),) * (ndim - 2), *axes), notes


def _unpacked(path: Path) -> IO[bytes]:
    """Unpack into a file without a name, beside the input unless TMPDIR says otherwise."""
    here = "TMPDIR" not in os.environ and os.access(path.resolve().parent, os.W_OK)
    folder = path.resolve().parent if here else Path(tempfile.gettempdir())
    file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
    try:
        with _PACKED[path.suffix.lower()](path) as packed:
            shutil.copyfileobj(packed, file)
        file.flush()
    except BaseException as error:
        file.close()
        full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if not isinstance(error, OSError) or error.errno not in full:
            raise
        raise OutputError(
            f"{path}: needs a scratch file in {folder} ({error.strerror}); choose another folder "
            "with TMPDIR"
        ) from error
    return file
