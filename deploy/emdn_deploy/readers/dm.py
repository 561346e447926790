"""Gatan DigitalMicrograph DM3 and DM4, through ncempy."""

from pathlib import Path
from typing import Any

import numpy as np
from ncempy.io import dm

from emdn_deploy.calibration import beam
from emdn_deploy.readers import mode
from emdn_deploy.readers.arrays import array_frames, unmapped
from emdn_deploy.readers.frames import Axis, Choice, Frames
from emdn_deploy.readers.offers import Offer, SeveralStacks, only_stack
from emdn_models.errors import FormatError

_MOST_TAGS = 30_000


class _Tags(dm.fileDM):  # type: ignore[misc]
    """ncempy's parser, with room to count the tags of a group, and an end to all of them."""

    _count = 0

    def parseHeader(self) -> None:
        """Read the tags; ncempy counts those of a group in 8 bits."""
        self._curGroupAtLevelX = np.zeros(self._maxDepth + 1, np.int64)
        self._curTagAtLevelX = np.zeros(self._maxDepth + 1, np.int64)
        super().parseHeader()

    def _readTagEntry(self) -> None:
        self._count += 1
        if self._count > _MOST_TAGS:
            raise ValueError(f"it has more than {_MOST_TAGS} tags")
        super()._readTagEntry()


def open_frames(path: Path, choice: Choice) -> Frames:
    """Open a DM file; ``choice.dataset`` is the number of an image where there are several.

    Raises
    ------
    FormatError
        If it is damaged, holds spectra or colours, or holds several images.
    """
    try:
        file = _Tags(str(path), on_memory=False)
    except Exception as error:  # ncempy raises what its parser stumbles over
        raise FormatError(
            f"{path}: cannot be read as a DM file ({_words(error)}); it is cut short or damaged: "
            "copy it again"
        ) from error
    # A thumbnail, always first where there is one, is not counted.
    thumbnails = int(bool(file.thumbnail) and file.numObjects > 1)
    number, why, notes = _choose(path, file, thumbnails, choice)
    index = number + thumbnails
    try:
        data = _mapped(file, index)
    except Exception as error:
        raise FormatError(
            f"{path}: image {number} cannot be read ({_words(error)}); "
            "it is a colour picture, or the file is truncated"
        ) from error
    tags = _tags(file, index)
    if "Spectrum" in tags.get("Meta Data.Format", ""):
        raise FormatError(
            f"{path}: holds {tags['Meta Data.Format'].lower()}s, expected frames; "
            "extract an image from them first"
        )
    return array_frames(
        path, f"DigitalMicrograph {path.suffix[1:].upper()}", unmapped(path, data), choice,
        axes=_axes(file, index, data.ndim), why=why, notes=notes,
        metadata={key: tags[key] for key in _SHOWN if tags.get(key)} | _microscope(tags),
    )  # fmt: skip


_SHOWN = (
    "Microscope Info.Voltage", "Microscope Info.Indicated Magnification", "Meta Data.Signal",
    "Acquisition.Detector.gain factor", "DataBar.Acquisition Date",
)  # fmt: skip
_EXPOSURES = (
    "Acquisition.Parameters.High Level.Exposure (s)",
    "Acquisition.Parameters.Detector.exposure (s)", "DataBar.Exposure Time (s)",
)  # fmt: skip


def _microscope(tags: dict[str, str]) -> dict[str, str]:
    imaging = _mode(tags)
    scanning = imaging.get(mode.KEY) == "STEM"
    shown = _number(tags.get("Microscope Info.Indicated Magnification"))
    # In diffraction a camera's magnification is the camera length.
    pattern = "DIFFRACTION" in tags.get("Microscope Info.Operation Mode", "").upper()
    length = _number(tags.get("Microscope Info.STEM Camera Length"))
    exposures = (_number(tags.get(name)) for name in _EXPOSURES)
    return imaging | beam(
        volts=_number(tags.get("Microscope Info.Voltage")),
        camera_length_mm=length if scanning else shown if pattern else None,
        magnification=None if pattern and not scanning else shown,
        exposure_s=next((one for one in exposures if one), None),
        mode=imaging.get(mode.KEY),
    )


def _mode(tags: dict[str, str]) -> dict[str, str]:
    kinds = ("Illumination Mode", "Operation Mode", "Imaging Mode")
    return mode.from_words(*(tags.get(f"Microscope Info.{kind}", "") for kind in kinds))


def _choose(
    path: Path, file: Any, thumbnails: int, choice: Choice
) -> tuple[int, str, tuple[str, ...]]:
    """Return the number of an image, why, and what the user must know of it."""
    count = max(1, file.numObjects - thumbnails)
    if choice.dataset is not None:
        if not choice.dataset.isdigit() or int(choice.dataset) >= count:
            raise FormatError(f"{path}: has no image {choice.dataset!r}; it has 0 to {count - 1}")
        return int(choice.dataset), "asked for by --dataset", ()
    if count == 1:
        return 0, "the only image in the file", ()
    offers = [_offer(file, number, thumbnails) for number in range(count)]
    frames = [one for one in offers if len(one.shape) > 1]
    if len(frames) == 1:
        return (
            offers.index(frames[0]),
            "the only image of grey values",
            (),
        )
    taken, why = only_stack(frames)
    if taken is None:
        raise SeveralStacks(path, "images", offers)
    number = offers.index(frames[taken])
    why = f"{why}; --dataset NUMBER takes another"
    return number, why, (f"image {number} is taken: {why}",)


def _offer(file: Any, number: int, thumbnails: int) -> Offer:
    try:
        return Offer.of(str(number), _mapped(file, number + thumbnails))
    except Exception as error:  # colours, say: one image must not hide the others
        return Offer(str(number), (), f"not readable ({_words(error)})")


def _mapped(file: Any, index: int) -> Any:
    """Map the object ``index``, all of them counted."""
    # ncempy skips the first of several objects, be it a thumbnail or not.
    first = int(file.numObjects > 1)
    if index >= first:
        return file.getMemmap(index - first)
    sizes = (file.zSize2[0], file.zSize[0], file.ySize[0], file.xSize[0])
    shape = tuple(int(size) for size in sizes if size > 1)
    dtype = file._DM2NPDataType(file.dataType[0])
    return np.memmap(file.file_path, dtype, "r", file.dataOffset[0], shape)


def _axes(file: Any, index: int, ndim: int) -> tuple[Axis, ...]:
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


def _tags(file: Any, index: int) -> dict[str, str]:
    prefix = f".ImageList.{index + 1}.ImageTags."
    return {
        key[len(prefix) :]: str(value)
        for key, value in file.allTags.items()
        if key.startswith(prefix)
    }


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if np.isfinite(number) and number > 0 else None


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
