"""Files of microscopes: DigitalMicrograph, TIA series, and all that RosettaSciIO reads.

DM3, DM4 and SER come through ncempy. RosettaSciIO (MIB, TVIPS, BLO, EMPAD and others) is GPL-3,
so it is never required: the extra ``rsciio`` is the user's choice.
"""

import importlib
import math
import re
from collections.abc import Mapping
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
    array_frames,
    beam,
    choose,
    cut_short,
    default_order,
)
from emdn_deploy.readers.npy import Plain
from emdn_models.errors import FormatError, MissingExtraError, install

_SHOWN = (
    "Microscope Info.Voltage", "Microscope Info.Indicated Magnification", "Meta Data.Signal",
    "Acquisition.Detector.gain factor", "DataBar.Acquisition Date",
)  # fmt: skip
_EXPOSURES = (
    "Acquisition.Parameters.High Level.Exposure (s)",
    "Acquisition.Parameters.Detector.exposure (s)", "DataBar.Exposure Time (s)",
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
    if not isinstance(data, Plain):
        raise FormatError(
            f"{path}: image {number} is {data}; is it colours, or the file cut short?"
        )
    prefix = f".ImageList.{index + 1}.ImageTags."
    tags = {
        key[len(prefix) :]: str(value)
        for key, value in file.allTags.items()
        if key.startswith(prefix)
    }
    if "Spectrum" in tags.get("Meta Data.Format", ""):
        raise FormatError(
            f"{path}: holds {tags['Meta Data.Format'].lower()}s, expected frames; "
            "extract an image from them first"
        )
    return array_frames(
        path, f"DigitalMicrograph {path.suffix[1:].upper()}", data, choice,
        axes=_dm_axes(file, index, len(data.shape)), why=why, notes=notes,
        metadata={key: tags[key] for key in _SHOWN if tags.get(key)} | _dm_microscope(tags),
    )  # fmt: skip


def _dm_microscope(tags: Mapping[str, str]) -> dict[str, str]:
    def known(name: str) -> float | None:
        number = _number(tags.get(name))
        return number if number is not None and math.isfinite(number) and number > 0 else None

    words = ("Illumination Mode", "Operation Mode", "Imaging Mode")
    mode = imaging_mode(*(tags.get(f"Microscope Info.{one}", "") for one in words))
    scanning = mode == "STEM"
    shown = known("Microscope Info.Indicated Magnification")
    # In diffraction a camera's magnification is the camera length.
    pattern = "DIFFRACTION" in tags.get("Microscope Info.Operation Mode", "").upper()
    length = known("Microscope Info.STEM Camera Length")
    return beam(
        volts=known("Microscope Info.Voltage"),
        camera_length=length if scanning else shown if pattern else None,
        magnification=None if pattern and not scanning else shown,
        exposure=next(filter(None, map(known, _EXPOSURES)), None),
        acquisition_mode=mode,
    )


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


class _Alone(ser.fileSER):  # type: ignore[misc]
    """A SER file without its ``.emi``."""

    def _read_emi(self) -> None:
        self._emi = None


def _open_ser(path: Path, choice: Choice) -> Frames:
    try:
        file: Any = ser.fileSER(str(path))
    except Exception:
        # The frames do not need the .emi file beside them, which may be damaged.
        file = _Alone(str(path))
    # ncempy 1.16 spells this dtype with a space, which numpy refuses.
    file._dictDataType = {**file._dictDataType, 1: "<u1"}
    if file.head["DataTypeID"] != _IMAGES:
        raise FormatError(f"{path}: holds spectra, expected frames")
    if not file.head["ValidNumberElements"]:
        raise FormatError(f"{path}: holds no frames; was the acquisition stopped?")
    first, note = file.getDataset(0)
    if min(note["ArrayShape"]) < 1:
        raise ValueError(f"frames of {note['ArrayShape']} pixels")
    count, size = int(file.head["ValidNumberElements"]), path.stat().st_size
    ends = (int(start) + _HEAD + first.nbytes for start in file.head["DataOffsetArray"])
    there = next((number for number, end in enumerate(ends) if end > size), count)

    def frame(number: int) -> NDArray[Any]:
        pixels: NDArray[Any] = file.getDataset(number)[0]
        if pixels.shape != first.shape:
            raise FormatError(
                f"{path}: frame {number} is {pixels.shape}, the first is {first.shape}"
            )
        return pixels

    missing = cut_short(there, count) if there < count else ""
    if not there:
        raise FormatError(f"{path}: {missing}")
    series = Pages((there, *first.shape), first.dtype, 2, frame)
    found = [
        _ser_axis(name, float(one["CalibrationDelta"]), float(one["CalibrationOffset"]))
        for name, one in zip("xy", note["Calibration"], strict=True)
    ]
    axes = (Axis("frame"), *(axis for axis, _ in reversed(found)))
    notes = tuple(said for _, said in found if said)[:1]
    return array_frames(
        path, "TIA series", series, choice, order="tyx", axes=axes,
        metadata=_ser_microscope(file._emi or {}), notes=notes, missing=missing,
    )  # fmt: skip


def _ser_axis(name: str, step: float, origin: float) -> tuple[Axis, str]:
    """Return a calibration in metres; TIA stores that of a diffraction pattern in 1/m."""
    if step == 1 or not (math.isfinite(step) and step):
        return Axis(name), "not calibrated: the file says 1 m a pixel" if step == 1 else ""
    if abs(step) < _LONGEST_M:
        return Axis(name, "m", step, origin), ""
    said = f"{step:g} a pixel cannot be metres; taken as 1/m, of a diffraction pattern"
    return Axis(name, "1/nm", 1e-9 * step, 1e-9 * origin), said


def _ser_microscope(emi: Mapping[str, Any]) -> dict[str, str]:
    """Return what the ``.emi`` file beside the frames says."""
    words = str(emi.get("Mode []") or "")
    metres = _number(emi.get("Camera length [m]"))
    return beam(
        volts=_number(emi.get("AcceleratingVoltage")),
        camera_length=None if metres is None else 1000 * metres,
        magnification=_number(emi.get("Magnification [x]")),
        exposure=None if "STEM" in words else _number(emi.get("DwellTimePath")),
        acquisition_mode=imaging_mode(words),
    )


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

    def text(value: Any) -> str:
        return value if isinstance(value, str) else ""

    notes = sorted(signal["axes"], key=lambda axis: int(axis["index_in_array"]))
    lead, frame = iter(default_order((2,) * len(notes))), iter("yx")
    order = "".join(next(lead) if axis["navigate"] else next(frame) for axis in notes)
    axes = tuple(
        Axis(text(axis.get("name")), text(axis.get("units")), axis.get("scale"),
             float(axis.get("offset") or 0.0))
        for axis in notes
    )  # fmt: skip
    return array_frames(
        path, f"{name} (RosettaSciIO)", _Lazy(signal["data"]), choice, order=order, axes=axes,
        why=why, notes=said,
    )  # fmt: skip


def imaging_mode(*words: str) -> str | None:
    """Return ``STEM`` or ``TEM`` by a file's words; None for diffraction, SEM or contradiction."""
    said = set(re.findall("[A-Z]+", " ".join(words).upper()))
    stem, tem = not said.isdisjoint({"STEM", "SCANNING"}), not said.isdisjoint({"TEM", "IMAGING"})
    # A scanning microscope's projector is in diffraction whatever is recorded.
    if stem == tem or "SEM" in said or (tem and "DIFFRACTION" in said):
        return None
    return "STEM" if stem else "TEM"


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
