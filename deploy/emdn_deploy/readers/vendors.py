"""Files of microscopes: DigitalMicrograph, TIA series, and all that RosettaSciIO reads.

DM3, DM4 and SER come through ncempy. RosettaSciIO (MIB, TVIPS, BLO, EMPAD and others) is GPL-3,
so it is never required: the extra ``rsciio`` is the user's choice.
"""

import importlib
import math
from pathlib import Path
from typing import Any

import numpy as np
from ncempy.io import dm, ser
from numpy.typing import NDArray

from emdn_deploy.readers.frames import (
    Axis,
    Choice,
    Frames,
    Offer,
    Pages,
    Plain,
    array_frames,
    choose,
    cut_short,
    default_order,
)
from emdn_deploy.readers.hdf5 import hyperspy_axis
from emdn_models.errors import FormatError, MissingExtraError, install

# Tags of DM that go along as text.
_SHOWN = (
    "Microscope Info.Voltage", "Microscope Info.Indicated Magnification",
    "Microscope Info.STEM Camera Length", "Microscope Info.Operation Mode",
    "Microscope Info.Illumination Mode", "Meta Data.Signal", "Acquisition.Detector.gain factor",
    "Acquisition.Parameters.High Level.Exposure (s)",
    "Acquisition.Parameters.Detector.exposure (s)", "DataBar.Exposure Time (s)",
    "DataBar.Acquisition Date",
)  # fmt: skip
# SER: a series of images; no pixel is longer than this in m (a larger number is per metre); and
# bytes before the pixels of a frame: two calibrations, type and size.
_IMAGES = 0x4122
_LONGEST_M = 1e-2
_HEAD = 2 * 20 + 10


def open_frames(path: Path, choice: Choice) -> Frames:
    """Open a file; ``choice.dataset`` is the number of an image or signal where there are several.

    Raises FormatError if it is damaged, holds spectra, colours or no frames, or holds several
    images. Raises MissingExtraError if RosettaSciIO is needed and not installed.
    """
    readers = {".dm3": _open_dm, ".dm4": _open_dm, ".ser": _open_ser}
    return readers.get(path.suffix.lower(), _open_rsciio)(path, choice)


class _Tags(dm.fileDM):  # type: ignore[misc]
    """ncempy's parser, which counts the tags of a group in 8 bits, with more room."""

    def parseHeader(self) -> None:
        """Read the tags."""
        self._curGroupAtLevelX = np.zeros(self._maxDepth + 1, np.int64)
        self._curTagAtLevelX = np.zeros(self._maxDepth + 1, np.int64)
        super().parseHeader()


def _open_dm(path: Path, choice: Choice) -> Frames:
    file = _Tags(str(path), on_memory=False)
    # A thumbnail, always first where there is one, is not counted.
    thumbnails = int(bool(file.thumbnail) and file.numObjects > 1)
    count = max(1, file.numObjects - thumbnails)
    images = [_dm_data(file, number + thumbnails) for number in range(count)]
    offers = [
        Offer.of(str(number), one) if isinstance(one, Plain) else Offer(str(number), (), one)
        for number, one in enumerate(images)
    ]
    number, why, notes = choose(path, "images", offers, choice)
    index, data = number + thumbnails, images[number]
    prefix = f".ImageList.{index + 1}.ImageTags."
    tags = {
        key.removeprefix(prefix): str(value)
        for key, value in file.allTags.items()
        if key.startswith(prefix)
    }
    kind = tags.get("Meta Data.Format", "")
    if not isinstance(data, Plain) or "Spectrum" in kind:
        raise FormatError(
            f"{path}: image {number} is {data if isinstance(data, str) else kind.lower()}, "
            "expected frames: extract an image first, or copy the file again if it is cut short"
        )
    return array_frames(
        path, f"DigitalMicrograph {path.suffix[1:].upper()}", data, choice,
        axes=_dm_axes(file, index, len(data.shape)), why=why, notes=notes,
        metadata={key: tags[key] for key in _SHOWN if tags.get(key)},
    )  # fmt: skip


def _dm_data(file: Any, index: int) -> Plain | str:
    """Return the object ``index``, all of them counted, without axes of one; or why it is none."""
    sizes = (file.zSize2[index], file.zSize[index], file.ySize[index], file.xSize[index])
    shape = tuple(int(size) for size in sizes if size > 1)
    try:
        dtype = np.dtype(file._DM2NPDataType(file.dataType[index]))
        return Plain(Path(file.file_path), file.dataOffset[index], shape, dtype)
    except Exception as error:  # colours, say: one image must not hide the others
        return f"not readable ({str(error) or type(error).__name__})"


def _dm_axes(file: Any, index: int, ndim: int) -> tuple[Axis, ...]:
    """Read the calibration, stored x first."""
    first = int(np.sum(file.dataShape[:index]))
    own = slice(first, first + int(file.dataShape[index]))
    steps, units, origins = (
        list(values[own])[::-1] for values in (file.scale, file.scaleUnit, file.origin)
    )
    # DM counts its origin in pixels, towards the other side.
    known = tuple(
        Axis("", unit, float(step) if unit else None, 0.0 - float(step * origin))
        for step, unit, origin in zip(steps, units, origins, strict=True)
    )
    # A stack put together from frames may be calibrated along x and y only.
    if len(known) == 2 and ndim == 3:
        return (Axis(), *known)
    return known if len(known) == ndim else ()


class _Series(ser.fileSER):  # type: ignore[misc]
    """ncempy's parser, without the ``.emi`` file beside the frames, which may be damaged."""

    def _read_emi(self) -> None:
        self._emi = None


def _open_ser(path: Path, choice: Choice) -> Frames:
    file: Any = _Series(str(path))
    # ncempy 1.16 spells this dtype with a space, which numpy refuses.
    file._dictDataType = {**file._dictDataType, 1: "<u1"}
    count, size = int(file.head["ValidNumberElements"]), path.stat().st_size
    if file.head["DataTypeID"] != _IMAGES or not count:
        raise FormatError(f"{path}: holds {count} spectra or frames, expected one frame or more")
    first, note = file.getDataset(0)
    if min(note["ArrayShape"]) < 1:
        raise ValueError(f"frames of {note['ArrayShape']} pixels")
    ends = (int(start) + _HEAD + first.nbytes for start in file.head["DataOffsetArray"])
    there = next((number for number, end in enumerate(ends) if end > size), count)
    missing = cut_short(there, count) if there < count else ""
    if not there:
        raise FormatError(f"{path}: {missing}")
    stack = Pages((there, *first.shape), first.dtype, 2, lambda number: file.getDataset(number)[0])
    steps = {
        name: (float(one["CalibrationDelta"]), float(one["CalibrationOffset"]))
        for name, one in zip("xy", note["Calibration"], strict=True)
    }
    notes = tuple[str, ...]()
    if abs(step := steps["x"][0]) >= _LONGEST_M and step != 1:
        notes = (f"{step:g} a pixel cannot be metres; taken as 1/m, of a diffraction pattern",)
    return array_frames(
        path, "TIA series", stack, choice, order="tyx", notes=notes, missing=missing,
        axes=(Axis("frame"), *(_ser_axis(name, *steps[name]) for name in "yx")),
    )  # fmt: skip


def _ser_axis(name: str, step: float, origin: float) -> Axis:
    """Return a calibration in metres; TIA stores that of a diffraction pattern in 1/m."""
    if step in (0, 1) or not math.isfinite(step):  # TIA's 1 m is of what is not calibrated
        return Axis(name)
    if abs(step) < _LONGEST_M:
        return Axis(name, "m", step, origin)
    return Axis(name, "1/nm", 1e-9 * step, 1e-9 * origin)


class _Lazy:
    """A dask array, indexed like a numpy array."""

    def __init__(self, array: Any) -> None:
        self.shape: tuple[int, ...] = tuple(array.shape)
        self.dtype: np.dtype[Any] = np.dtype(array.dtype)
        self._array = array

    def __getitem__(self, where: Any) -> NDArray[Any]:
        return np.asarray(self._array[where])


def _open_rsciio(path: Path, choice: Choice) -> Frames:
    try:
        from rsciio import IO_PLUGINS
    except ImportError as error:
        raise MissingExtraError(
            f"{path}: emdn itself does not read {path.suffix or 'such'} files; "
            f"RosettaSciIO may: {install('rsciio')}"
        ) from error
    suffix = path.suffix[1:].lower()
    plugins = [one for one in IO_PLUGINS if suffix in map(str.lower, one["file_extensions"])]
    if not plugins:
        raise FormatError(f"{path}: unknown kind of file {path.suffix!r}")
    failed = []
    for plugin in plugins:
        try:
            reader = importlib.import_module(plugin["api"]).file_reader
            signals = reader(str(path), lazy=True)
        except Exception as error:  # its readers raise what they stumble over
            failed.append(f"{plugin['name']}: {error}")
            continue
        return _choose_signal(path, plugin["name"], signals, choice)
    raise FormatError(f"{path}: RosettaSciIO cannot read it ({'; '.join(failed)})")


def _choose_signal(path: Path, name: str, signals: list[dict[str, Any]], choice: Choice) -> Frames:
    found = [one for one in signals if sum(not axis["navigate"] for axis in one["axes"]) == 2]
    offers = [Offer.of(str(number), one["data"]) for number, one in enumerate(found)]
    number, why, said = choose(path, f"stacks of frames ({name})", offers, choice)
    signal = found[number]
    notes = sorted(signal["axes"], key=lambda axis: int(axis["index_in_array"]))
    lead, frame = iter(default_order((2,) * len(notes))), iter("yx")
    order = "".join(next(lead) if axis["navigate"] else next(frame) for axis in notes)
    return array_frames(
        path, f"{name} (RosettaSciIO)", _Lazy(signal["data"]), choice, order=order,
        axes=tuple(map(hyperspy_axis, notes)), why=why, notes=said,
    )  # fmt: skip
