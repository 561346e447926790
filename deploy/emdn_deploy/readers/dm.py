"""Gatan DigitalMicrograph DM3 and DM4, through ncempy."""

from pathlib import Path
from typing import Any

import numpy as np
from ncempy.io import dm

from emdn_deploy.readers import mode
from emdn_deploy.readers.arrays import array_frames, unmapped
from emdn_deploy.readers.frames import Axis, Choice, Frames
from emdn_deploy.readers.offers import Offer, SeveralStacks
from emdn_models.errors import FormatError


def open_frames(path: Path, choice: Choice) -> Frames:
    """Open a DM file; ``choice.dataset`` is the number of an image where there are several.

    Raises
    ------
    FormatError
        If it is damaged, holds spectra or colours, or holds several images.
    """
    try:
        file = dm.fileDM(str(path), on_memory=False)
    except Exception as error:  # ncempy raises what its parser stumbles over
        raise FormatError(f"{path}: cannot be read as a DM file ({_words(error)})") from error
    # The thumbnail, always first, is not counted.
    count = max(1, file.numObjects - 1)
    number = _choose(path, file, count, choice)
    try:
        data = file.getMemmap(number)
    except Exception as error:
        raise FormatError(
            f"{path}: image {number} cannot be read ({_words(error)}); "
            "it is a colour picture, or the file is truncated"
        ) from error
    tags = _tags(file, number)
    if "Spectrum" in tags.get("Meta Data.Format", ""):
        raise FormatError(
            f"{path}: holds {tags['Meta Data.Format'].lower()}s, expected frames; "
            "extract an image from them first"
        )
    return array_frames(
        path, f"DigitalMicrograph {path.suffix[1:].upper()}", unmapped(path, data), choice,
        axes=_axes(file, number, data.ndim),
        why="the only image in the file" if count == 1 else "asked for by --dataset",
        metadata={key: tags[key] for key in _SHOWN if tags.get(key)} | _mode(tags),
    )  # fmt: skip


_SHOWN = (
    "Microscope Info.Voltage", "Microscope Info.Indicated Magnification", "Meta Data.Signal",
    "Acquisition.Detector.gain factor", "DataBar.Acquisition Date",
)  # fmt: skip


def _mode(tags: dict[str, str]) -> dict[str, str]:
    kinds = ("Illumination Mode", "Operation Mode", "Imaging Mode")
    return mode.from_words(*(tags.get(f"Microscope Info.{kind}", "") for kind in kinds))


def _choose(path: Path, file: Any, count: int, choice: Choice) -> int:
    if choice.dataset is None:
        if count == 1:
            return 0
        raise SeveralStacks(path, "images", [_offer(file, number) for number in range(count)])
    if not choice.dataset.isdigit() or int(choice.dataset) >= count:
        raise FormatError(f"{path}: has no image {choice.dataset!r}; it has 0 to {count - 1}")
    return int(choice.dataset)


def _offer(file: Any, number: int) -> Offer:
    try:
        return Offer.of(str(number), file.getMemmap(number))
    except Exception as error:  # colours, say: one image must not hide the others
        return Offer(str(number), (), f"not readable ({_words(error)})")


def _axes(file: Any, number: int, ndim: int) -> tuple[Axis, ...]:
    """Read the calibration, stored x first."""
    index = number + (file.numObjects > 1)
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


def _tags(file: Any, number: int) -> dict[str, str]:
    prefix = f".ImageList.{number + 1 + (file.numObjects > 1)}.ImageTags."
    return {
        key[len(prefix) :]: str(value)
        for key, value in file.allTags.items()
        if key.startswith(prefix)
    }


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
