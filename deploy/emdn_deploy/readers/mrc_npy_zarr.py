"""MRC2014 with its relatives, NumPy's ``.npy``, and Zarr stores of version 2 and 3."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np

from emdn_deploy.readers.frames import (
    Axis,
    Choice,
    Frames,
    Offer,
    Plain,
    array_frames,
    choose,
    cut_short,
)
from emdn_models.errors import FormatError, library

_IMOD_STAMP = 1146047817
_HEADER = 1024
UNITS = {
    "picometer": "pm", "angstrom": "Å", "nanometer": "nm", "micrometer": "µm", "millimeter": "mm",
    "meter": "m", "microsecond": "µs", "millisecond": "ms", "second": "s",
}  # fmt: skip
"""The short names of OME's units."""


def open_frames(path: Path, choice: Choice) -> Frames:
    """Open an array of NumPy or of a Zarr store, or an MRC stack, whose sections are the frames.

    An MRC file that holds more than its header promises gives all. Raises FormatError or ValueError
    if the file is damaged, or holds transforms, objects or numbers of 4 bits, or if a store holds
    no frames, or several stacks and ``choice`` does not say which; MissingExtraError without zarr.
    """
    if path.is_dir():
        return _open_zarr(path, choice)
    if choice.dataset is not None:
        raise FormatError(
            f"{path}: holds one array, found --dataset {choice.dataset}; leave it out"
        )
    if path.suffix.lower() == ".npy":
        return _open_npy(path, choice)
    with opened_header(path) as opened:
        header = opened.header
    dtype, reading = _dtype(path, header)
    columns, rows, promised = (int(header[name]) for name in ("nx", "ny", "nz"))
    if min(columns, rows) < 1:
        raise ValueError(f"frames of {rows} x {columns}")
    start = _HEADER + max(0, int(header.nsymbt))
    there = max(0, (path.stat().st_size - start) // (dtype.itemsize * rows * columns))
    missing = cut_short(there, promised) if there < max(1, promised) else ""
    if not there:
        raise FormatError(f"{path}: {missing}")
    notes = tuple[str, ...]()
    if there > promised:
        notes = (
            f"the header promises {promised} frames, the file holds {there}, which are taken; "
            f"--frames 0:{promised} takes those of the header",
        )
    if min(*header.cella.tolist()[:2], header.mx, header.my) < 0:
        notes += ("its pixel size is negative: the absolute value is taken",)
    data = Plain(path, start, (there, rows, columns), dtype)
    # A section's distance means something in a volume only; these are frames.
    axes = Axis("frame"), _axis(header, "y", "mapr"), _axis(header, "x", "mapc")
    return array_frames(
        path, "MRC", data, choice, axes=axes, metadata={"mode": reading}, notes=notes,
        missing=missing,
    )  # fmt: skip


def _open_npy(path: Path, choice: Choice) -> Frames:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    notes = tuple[str, ...]()
    if rest := path.stat().st_size - array.offset - array.nbytes:
        notes = (f"{rest} bytes after the first array, perhaps more arrays, are not read",)
    last = array.flags.f_contiguous and not array.flags.c_contiguous
    plain = Plain(path, array.offset, array.shape, array.dtype, fortran=last)
    return array_frames(path, "NumPy array", plain, choice, notes=notes)


@contextmanager
def opened_header(path: Path) -> Iterator[Any]:
    """Open an MRC file for its header; small faults, which many programs write, do not matter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opened = mrcfile.open(path, permissive=True, header_only=True)
    with opened:
        yield opened


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


def _axis(header: Any, name: str, along: str) -> Axis:
    """Describe rows or columns, which run ``along`` an axis of the cell: 1, 2, 3 for x, y, z."""
    stored = "xyz"[number - 1] if 1 <= (number := int(header[along])) <= 3 else name
    length, count = float(header.cella[stored]), int(header[f"m{stored}"])
    step = abs(length / count) if count and math.isfinite(length) else 0.0
    return Axis(name, "Å", step) if step else Axis(name)


def _open_zarr(path: Path, choice: Choice) -> Frames:
    """Open an array of a store; of a multiscale image its first level, which has all pixels."""
    root = library("zarr", "zarr", path).open(path, mode="r")
    nodes = [root]
    if hasattr(root, "members"):
        nodes += [node for _, node in root.members(max_depth=None)]
    found = [one for node in nodes if hasattr(node, "members") for one in _images(node)]
    found = found or [(node, ()) for node in nodes if getattr(node, "ndim", 0) > 1]
    offers = [Offer.of(array.path, array) for array, _ in found]
    index, why, notes = choose(path, "stacks (Zarr)", offers, choice)
    array, axes = found[index]
    letters = [axis.name[:1].lower() for axis in axes]
    order = "".join(letters) if len({*letters}) == array.ndim == len(letters) else None
    if missing := array.nchunks - array.nchunks_initialized:
        notes += (f"{missing} of {array.nchunks} chunks are missing, read as {array.fill_value}",)
    frames = array_frames(
        path, f"Zarr {array.metadata.zarr_format}", array, choice, order=order, axes=axes,
        dataset=array.path, why=why, notes=notes, compressed=bool(array.compressors),
    )  # fmt: skip
    stored = sorted(one for one in (path / array.path).rglob("*") if one.is_file())
    return replace(frames, files=tuple(stored))


def _images(group: Any) -> Iterator[tuple[Any, tuple[Axis, ...]]]:
    """Yield the first level of each multiscale image of a group, and its axes."""
    known = group.attrs.asdict()
    known = known.get("ome", known)  # from OME-Zarr 0.5 on
    for image in known.get("multiscales", []) if "image-label" not in known else []:
        level = image["datasets"][0]
        array = group[level["path"]]
        steps, origins = np.ones(array.ndim), np.zeros(array.ndim)
        for place in (level, image):
            for change in place.get("coordinateTransformations", []):
                factor = change.get("scale", 1.0)
                steps, origins = steps * factor, origins * factor + change.get("translation", 0.0)
        axes = []
        for one, step, origin in zip(image.get("axes", []), steps, origins, strict=False):
            axis = one if isinstance(one, dict) else {"name": one}  # version 0.3
            unit = UNITS.get(unit := str(axis.get("unit", "")), unit)
            size = float(step) if unit or step != 1 else None
            axes.append(Axis(str(axis["name"]), unit, size, float(origin)))
        yield array, tuple(axes)
