"""TIFF and BigTIFF stacks: memory-mapped where they are plain, page by page otherwise."""

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from emdn_deploy.readers.arrays import array_frames
from emdn_deploy.readers.frames import Axis, Choice, Frames
from emdn_deploy.readers.offers import Offer, SeveralStacks
from emdn_models.errors import FormatError, MissingExtraError, install

# What it logs of a damaged file is raised here as well, in one line.
tifffile.logger().setLevel(logging.CRITICAL)

# Tags that DigitalMicrograph writes: units and scale along x, y and z.
_DM_UNITS, _DM_SCALE = (65003, 65004, 65005), (65009, 65010, 65011)
_OME = re.compile(r'PhysicalSize([XY])="([^"]+)"')
_OME_UNIT = re.compile(r'PhysicalSizeXUnit="([^"]+)"')


class _Pages:
    """A compressed series, indexed like an array: ``pages[a:b]`` decodes b - a pages."""

    def __init__(self, series: Any, path: Path) -> None:
        self.shape: tuple[int, ...] = tuple(series.shape)
        self.dtype: np.dtype[Any] = np.dtype(series.dtype)
        self._series, self._path = series, path

    def __getitem__(self, where: Any) -> NDArray[Any]:
        where = where if isinstance(where, tuple) else (where,)
        lead = len(self.shape) - self._series.keyframe.ndim
        numbers = np.arange(len(self._series)).reshape(self.shape[:lead])[where[:lead]]
        pages = [self._page(int(number)) for number in np.atleast_1d(numbers).ravel()]
        stack = np.stack(pages).reshape(*numbers.shape, *pages[0].shape)
        inner: NDArray[Any] = stack[(..., *where[lead:])]
        return inner

    def _page(self, number: int) -> NDArray[Any]:
        page = self._series[number]
        if page is None:
            return np.zeros(self._series.keyframe.shape, self.dtype)
        try:
            pixels: NDArray[Any] = page.asarray()
        except (ImportError, ValueError, RuntimeError) as error:
            if "imagecodecs" in str(error):
                raise MissingExtraError(
                    f"{self._path}: is compressed ({page.compression.name}); "
                    f"to read it: {install('filters')}"
                ) from error
            raise
        return pixels


def open_frames(path: Path, choice: Choice) -> Frames:
    """Open a TIFF; ``choice.dataset`` is the number of a series where there are several.

    Raises
    ------
    FormatError
        If it is damaged, holds colours, or holds several series.
    """
    try:
        file = tifffile.TiffFile(path)
    except (tifffile.TiffFileError, ValueError, OSError, KeyError) as error:
        raise FormatError(f"{path}: cannot be read as TIFF ({error})") from error
    try:
        series, why = _choose(path, file, choice)
        if series.keyframe.photometric.name in ("PALETTE", "RGB", "YCBCR", "CMYK"):
            raise FormatError(f"{path}: holds colours; convert it to grey values first")
        order, shape = _order(series)
        plain = series.dataoffset is not None
        data = (
            np.memmap(
                path, np.dtype(series.dtype).newbyteorder(file.byteorder), "r",
                series.dataoffset, shape,
            )
            if plain
            else _Pages(series, path)
        )  # fmt: skip
        return array_frames(
            path, "TIFF", data, choice, order=order if len(order) == len(data.shape) else None,
            axes=_axes(file, series, order), why=why, release=file.close,
            metadata={"pages": str(len(file.pages)), "stored": "plain" if plain else "compressed"},
        )  # fmt: skip
    except BaseException as error:
        file.close()
        if isinstance(error, tifffile.TiffFileError | ValueError | OSError | KeyError):
            raise FormatError(f"{path}: is a damaged TIFF file ({error})") from error
        raise


def _choose(path: Path, file: tifffile.TiffFile, choice: Choice) -> tuple[Any, str]:
    series = list(file.series)
    if choice.dataset is not None:
        if not choice.dataset.isdigit() or int(choice.dataset) >= len(series):
            raise FormatError(
                f"{path}: has no series {choice.dataset!r}; it has 0 to {len(series) - 1}"
            )
        return series[int(choice.dataset)], "asked for by --dataset"
    if len(series) == 1:
        return series[0], "the only series in the file"
    if not series:
        raise FormatError(f"{path}: holds no pictures")
    largest = sorted(series, key=lambda one: one.size, reverse=True)
    # Thumbnails are common, and small.
    if largest[0].size >= 8 * largest[1].size:
        return largest[0], "the only large series in the file"
    raise SeveralStacks(
        path, "series", [Offer.of(str(number), one) for number, one in enumerate(series)]
    )


def _order(series: Any) -> tuple[str, tuple[int, ...]]:
    """Turn tifffile's axes (``TZCYX``, ``QYX``, ``YXS``) into one letter each."""
    letters = ""
    for letter in str(series.axes).lower():
        letter = "c" if letter == "s" and "c" not in letters else letter
        letters += (
            letter
            if letter not in letters
            else next(other for other in "tuvwabdefghij" if other not in letters)
        )
    # Several channels are several detectors, which are frames like any other.
    grey = "s" not in str(series.axes).lower()
    if grey and "c" in letters and series.shape[letters.index("c")] > 1:
        letters = letters.replace("c", next(o for o in "uvwabd" if o not in letters))
    return letters, tuple(series.shape)


def _axes(file: tifffile.TiffFile, series: Any, order: str) -> tuple[Axis, ...]:
    steps, units = _calibration(file, series)
    between = _between_frames(file) if len(order) == 3 else Axis()
    return tuple(
        Axis(letter, units, steps.get(letter)) if letter in "yx" else between for letter in order
    )


def _between_frames(file: tifffile.TiffFile) -> Axis:
    """Return the step from frame to frame, where DigitalMicrograph or ImageJ wrote one."""
    page = file.pages[0]
    tags = {tag.code: tag.value for tag in page.tags} if isinstance(page, tifffile.TiffPage) else {}
    if _DM_SCALE[2] in tags and str(tags.get(_DM_UNITS[2], "")).strip("\0 "):
        return Axis("", _units(str(tags[_DM_UNITS[2]])), float(tags[_DM_SCALE[2]]))
    interval = (file.imagej_metadata or {}).get("finterval") if file.is_imagej else None
    if interval:
        assert file.imagej_metadata is not None
        return Axis("", _units(str(file.imagej_metadata.get("tunit", "s"))), float(interval))
    return Axis()


def _calibration(file: tifffile.TiffFile, series: Any) -> tuple[dict[str, float], str]:
    """Return steps along ``x`` and ``y`` and their units, from the first that has them."""
    page = file.pages[0]
    tags = {tag.code: tag.value for tag in page.tags} if isinstance(page, tifffile.TiffPage) else {}
    if _DM_SCALE[0] in tags and _DM_UNITS[0] in tags:
        steps = {
            "x": float(tags[_DM_SCALE[0]]),
            "y": float(tags.get(_DM_SCALE[1], tags[_DM_SCALE[0]])),
        }
        return steps, _units(str(tags[_DM_UNITS[0]]))
    if file.is_ome and file.ome_metadata:
        sizes = {name.lower(): float(value) for name, value in _OME.findall(file.ome_metadata)}
        unit = _OME_UNIT.search(file.ome_metadata)
        if sizes:
            return sizes, _units(unit.group(1) if unit else "µm")
    unit_text = str((file.imagej_metadata or {}).get("unit", "")) if file.is_imagej else ""
    if unit_text and unit_text not in ("pixel", "pixels"):
        steps = {}
        for letter, code in (("x", 282), ("y", 283)):
            over, under = tags.get(code, (0, 1))
            if over:
                steps[letter] = under / over
        return steps, _units(unit_text)
    return {}, ""


def _units(text: str) -> str:
    known = {"micron": "µm", "microns": "µm", "um": "µm", "\\u00B5m": "µm", "angstrom": "Å"}
    text = text.strip().strip("\0")
    return known.get(text, known.get(text.lower(), text))
