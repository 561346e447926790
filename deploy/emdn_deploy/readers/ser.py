"""FEI TIA series (SER), one frame at a time through ncempy."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ncempy.io import ser
from numpy.typing import NDArray

from emdn_deploy.calibration import beam
from emdn_deploy.readers import limits, mode
from emdn_deploy.readers.arrays import array_frames
from emdn_deploy.readers.frames import CUT_SHORT, Axis, Choice, Frames
from emdn_deploy.readers.pages import Pages, cut_short
from emdn_models.errors import FormatError

_IMAGES = 0x4122
# No pixel is longer: a larger number is per metre.
_LONGEST_M = 1e-2
# Bytes before the pixels of a frame: two calibrations, type and size.
_HEAD = 2 * 20 + 10


class _Alone(ser.fileSER):  # type: ignore[misc]
    """A SER file without its ``.emi``."""

    def _read_emi(self) -> None:
        self._emi = None


def open_frames(path: Path, choice: Choice) -> Frames:
    """Open a SER file.

    Raises
    ------
    FormatError
        If it is damaged, empty, or holds spectra.
    """
    limits.check_ser(path)
    try:
        file = _opened(path)
    except Exception as error:  # ncempy raises what its parser stumbles over
        raise FormatError(f"{path}: cannot be read as SER ({error})") from error
    # ncempy 1.16 spells this dtype with a space, which numpy refuses.
    file._dictDataType = {**file._dictDataType, 1: "<u1"}
    if file.head["DataTypeID"] != _IMAGES:
        raise FormatError(f"{path}: holds spectra, expected frames")
    if not file.head["ValidNumberElements"]:
        raise FormatError(f"{path}: holds no frames; was the acquisition stopped?")
    try:
        first, note = file.getDataset(0)
        if min(note["ArrayShape"]) < 1:
            raise ValueError(f"frames of {note['ArrayShape']} pixels")
    except (ValueError, IndexError, KeyError) as error:
        raise FormatError(f"{path}: is a truncated SER file ({error})") from error
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

    missing = cut_short(path, there, str(count))
    series = Pages((count, *first.shape), first.dtype, 2, frame, there, missing)
    cut = {CUT_SHORT: "not all frames are there"} if there < count else {}
    axes, notes = [], []
    for name, one in zip("xy", note["Calibration"], strict=True):
        axis, said = _axis(name, float(one["CalibrationDelta"]), float(one["CalibrationOffset"]))
        axes.append(axis)
        notes += said
    x, y = axes
    return array_frames(
        path, "TIA series", series, choice, order="tyx", axes=(Axis("frame"), y, x),
        metadata=_microscope(file._emi or {}) | cut, notes=tuple(notes[:1]),
    )  # fmt: skip


def _opened(path: Path) -> Any:
    try:
        return ser.fileSER(str(path))
    except Exception:
        # The frames do not need the .emi file beside them, which may be damaged.
        return _Alone(str(path))


def _axis(name: str, step: float, origin: float) -> tuple[Axis, list[str]]:
    """Return a calibration in metres; TIA stores that of a diffraction pattern in 1/m."""
    if step == 1 or not (math.isfinite(step) and step):
        return Axis(name), ["not calibrated: the file says 1 m a pixel"] if step == 1 else []
    if abs(step) < _LONGEST_M:
        return Axis(name, "m", step, origin), []
    said = f"{step:g} a pixel cannot be metres; taken as 1/m, of a diffraction pattern"
    return Axis(name, "1/nm", 1e-9 * step, 1e-9 * origin), [said]


def _microscope(emi: Mapping[str, Any]) -> dict[str, str]:
    """Return what the ``.emi`` file beside the frames says."""
    words = str(emi.get("Mode []") or "")
    imaging = mode.from_words(words)
    metres = emi.get("Camera length [m]")
    return imaging | beam(
        volts=_number(emi.get("AcceleratingVoltage")),
        camera_length_mm=None if metres is None else 1000 * (_number(metres) or 0),
        magnification=_number(emi.get("Magnification [x]")),
        exposure_s=None if "STEM" in words else _number(emi.get("DwellTimePath")),
        mode=imaging.get(mode.KEY),
    )


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
