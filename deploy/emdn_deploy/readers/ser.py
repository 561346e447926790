"""FEI TIA series (SER), one frame at a time through ncempy."""

from pathlib import Path
from typing import Any

import numpy as np
from ncempy.io import ser
from numpy.typing import NDArray

from emdn_deploy.readers import limits
from emdn_deploy.readers.arrays import array_frames
from emdn_deploy.readers.frames import Axis, Choice, Frames
from emdn_models.errors import FormatError

_IMAGES = 0x4122


class _Series:
    """A SER file, indexed like an array (N, H, W)."""

    def __init__(self, file: Any, path: Path) -> None:
        first, self.note = file.getDataset(0)
        if min(self.note["ArrayShape"]) < 1:
            raise ValueError(f"frames of {self.note['ArrayShape']} pixels")
        self.shape = (int(file.head["ValidNumberElements"]), *first.shape)
        self.dtype: np.dtype[Any] = first.dtype
        self._file, self._path = file, path

    def __getitem__(self, where: Any) -> NDArray[Any]:
        number = where[0]
        if isinstance(number, slice):
            return np.stack([self._frame(i) for i in range(*number.indices(self.shape[0]))])
        return self._frame(int(number))

    def _frame(self, number: int) -> NDArray[Any]:
        frame: NDArray[Any] = self._file.getDataset(number)[0]
        if frame.shape != self.shape[1:]:
            raise FormatError(
                f"{self._path}: frame {number} is {frame.shape}, the first is {self.shape[1:]}"
            )
        return frame


def open_frames(path: Path, choice: Choice) -> Frames:
    """Open a SER file.

    Raises
    ------
    FormatError
        If it is damaged, empty, or holds spectra.
    """
    limits.check_ser(path)
    try:
        file = ser.fileSER(str(path))
    except Exception as error:  # ncempy raises what its parser stumbles over
        raise FormatError(f"{path}: cannot be read as SER ({error})") from error
    # ncempy 1.16 spells this dtype with a space, which numpy refuses.
    file._dictDataType = {**file._dictDataType, 1: "<u1"}
    if file.head["DataTypeID"] != _IMAGES:
        raise FormatError(f"{path}: holds spectra, expected frames")
    if not file.head["ValidNumberElements"]:
        raise FormatError(f"{path}: holds no frames; was the acquisition stopped?")
    try:
        series = _Series(file, path)
    except (ValueError, IndexError, KeyError) as error:
        raise FormatError(f"{path}: is a truncated SER file ({error})") from error
    x, y = (
        Axis(name, "m", float(one["CalibrationDelta"]) or None, float(one["CalibrationOffset"]))
        for name, one in zip("xy", series.note["Calibration"], strict=True)
    )
    return array_frames(path, "TIA series", series, choice, order="tyx", axes=(Axis("frame"), y, x))
