"""TIFF and BigTIFF stacks: read in one piece where they are plain, page by page otherwise.

Sizes and times come from the tags and texts of each program's own way.
"""

import logging
import math
import re
from collections import ChainMap
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile
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
    free,
    number_of,
)
from emdn_models.errors import FormatError, MissingExtraError, install

Tags = Mapping[int, Any]
Steps = dict[str, tuple[float, str]]


_complaints = list[str]()


def _take(record: logging.LogRecord) -> bool:
    """Take what tifffile logs of a damaged file, for a line of our own; nothing else shows it."""
    _complaints.append(record.getMessage())
    return False


tifffile.logger().setLevel(logging.ERROR)
tifffile.logger().addFilter(_take)

_COLOURS = ("RGB", "YCBCR", "CMYK", "CIELAB")
_EER = (65000, 65001, 65002)
# DigitalMicrograph's tags along x, y and z: the unit, and six further on the step.
_DM = {"x": 65003, "y": 65004, "t": 65005}
# A printer's resolution is coarser than this, a microscope's finer.
_LARGEST_M = 1e-6


def open_frames(path: Path, choice: Choice) -> Frames:
    """Open a TIFF; ``choice.dataset`` is the number of a series where there are several.

    Raises FormatError if it is damaged, holds colours or electron events, or holds several series.
    """
    _complaints.clear()
    file = tifffile.TiffFile(path)
    try:
        return _open(path, file, choice)
    except BaseException:
        file.close()
        raise


def _open(path: Path, file: tifffile.TiffFile, choice: Choice) -> Frames:
    if int(file.pages[0].compression) in _EER:
        raise FormatError(
            f"{path}: holds electron events (EER), expected frames; sum them into frames first, "
            "such as with relion_convert_to_tiff, and denoise those"
        )
    series, number, why, notes = _choose(path, list(file.series), choice)
    key = series.keyframe
    order = _order(series, ours="emdn-deploy" in str((file.imagej_metadata or {}).get("Info", "")))
    if key.photometric.name in _COLOURS and "c" not in order and choice.axes is None:
        raise FormatError(
            f"{path}: holds numbers of colours ({key.photometric.name.lower()}), shape "
            f"{series.shape}; convert it to grey values first, or take the numbers as they are "
            f"with --axes {order}"
        )
    if key.photometric.name == "PALETTE":
        notes += ("has a palette, as of Zeiss's greys; its numbers are taken as they are",)
    data, order, missing = _stored(path, file, series, order)
    tags = {tag.code: tag.value for tag in key.tags}
    metadata = {"pages": str(len(file.pages))}
    metadata["stored"] = "page by page" if isinstance(data, Pages) else "plain"
    compressed = int(key.compression) > 1
    if compressed:
        metadata["stored"] += f", {key.compression.name.lower()}"
    if key.photometric.name == "MINISWHITE":
        metadata["photometric"] = "miniswhite"
    if (turned := int(tags.get(274, 1))) != 1:
        metadata["orientation"] = str(turned)
    if _complaints and not missing:
        notes += (f"some of what it says is damaged, and lost ({_complaints[0][:200]})",)
    steps = _steps(file, key, tags, number)
    lead = [letter for letter in order if letter not in "yx"]
    if len(lead) == 1 and "t" in steps:
        steps[lead[0]] = steps["t"]  # ImageJ counts the frames of a movie as slices, too
    axes = tuple(steps.get(letter, Axis(letter)) for letter in order)
    return array_frames(
        path, "TIFF", data, choice, order=order, axes=axes, why=why, release=file.close,
        metadata=metadata, notes=notes, compressed=compressed, missing=missing,
    )  # fmt: skip


def _choose(path: Path, series: list[Any], choice: Choice) -> tuple[Any, int, str, tuple[str, ...]]:
    """Return a series, its number, why, and what the user must know of it."""
    first = series[0]
    # tifffile's ``write`` makes one series a call.
    kinds = {(one.shape, one.dtype, one.keyframe.photometric) for one in series}
    if choice.dataset is None and len(series) > 1 and len(kinds) == 1 and len(first.shape) == 2:
        pages = [one.keyframe for one in series]
        stack = tifffile.TiffPageSeries(pages, (len(pages), *first.shape), first.dtype, "IYX")
        note = f"all {len(pages)} series, of one frame each, are taken as one stack"
        return stack, 0, note, (f"{note}; --dataset NUMBER takes one",)
    offers = [
        Offer(str(number), (), "colours")
        if one.keyframe.photometric.name in _COLOURS and len(series) > 1
        else Offer.of(str(number), one)
        for number, one in enumerate(series)
    ]
    number, why, notes = choose(path, "series", offers, choice)
    return series[number], number, why, notes


def _order(series: Any, *, ours: bool) -> str:
    """Turn tifffile's axes (``TZCYX``, ``QYX``, ``YXS``) into one letter each.

    ``c`` are colours, or detectors beside each other. A stack along channels only is one of
    frames, as some libraries write it, unless ImageJ shows the channels at once. So is an
    output of emdn, ``ours``, whose channels were said to be on one scale.
    """
    letters, axes = "", str(series.axes).lower()
    for letter in axes:
        letter = "c" if letter == "s" and "c" not in letters else letter
        letters += letter if letter not in letters else free(letters)
    lead = {letter for letter, size in zip(letters, series.shape, strict=True) if size > 1}
    page = series.keyframe
    shown_at_once = page.is_imagej and "mode=co" in page.description
    if (ours or lead <= set("cyx")) and "s" not in axes and not shown_at_once:
        letters = letters.replace("c", free(letters))
    return letters


def _stored(path: Path, file: tifffile.TiffFile, series: Any, order: str) -> tuple[Any, str, str]:
    """Return what is indexed like the array, its axes, and `cut_short` where frames are missing."""
    shape, key, size = tuple(series.shape), series.keyframe, file.filehandle.size
    lead, inner = shape[: len(shape) - key.ndim], order[len(order) - key.ndim :]
    count, start = math.prod(lead), series.dataoffset
    kind = np.dtype(series.dtype).newbyteorder(file.byteorder)
    pages = [] if start is not None else list(series.pages)
    if start is not None:
        frame = kind.itemsize * math.prod(key.shape)
        there = max(0, min(count, (size - start) // frame))
    else:
        gone = (number for number, page in enumerate(pages) if not _is_there(page, size))
        there = next(gone, len(pages))
    missing = cut_short(there, count) if there < count else ""
    lost = [one for one in _complaints if "TiffPages" in one or "series" in one]
    if lost and not missing:
        missing = cut_short(there, f"more ({lost[0][:200]})")
    if not there:
        raise FormatError(f"{path}: {missing}")
    if there < count:
        lead, order = (there,), "t" + inner
    if start is not None:
        return Plain(path, start, (*lead, *key.shape), kind), order, missing

    shape = *lead, *key.shape
    stored = Pages(shape, series.dtype, key.ndim, lambda number: _decoded(pages[number], path))
    return stored, order, missing


def _is_there(page: Any, size: int) -> bool:
    """Say whether a page, and all of its pixels, lie inside the file."""
    if page is None:
        return False
    ends = map(sum, zip(page.dataoffsets, page.databytecounts, strict=False))
    # In OME-TIFF the pages may be in other files.
    size = size if page.parent is None else page.parent.filehandle.size
    return max(ends, default=0) <= size


def _decoded(page: Any, path: Path) -> NDArray[Any]:
    handle = page.parent.filehandle
    # Of several files of an OME-TIFF, one is open at a time.
    other = handle.closed
    try:
        handle.open()
        return np.asarray(page.asarray())
    except (ImportError, ValueError, RuntimeError) as error:
        if "imagecodecs" in str(error):
            raise MissingExtraError(
                f"{path}: is compressed ({page.compression.name}); to read it: {install('filters')}"
            ) from error
        raise
    finally:
        if other:
            handle.close()


def _steps(file: Any, key: Any, tags: Tags, number: int) -> dict[str, Axis]:
    """Return the calibration of the axes that have one, by their letters.

    The first of several sources that know an axis decides; ``number`` is that of the series.
    """
    fei = _mapping(tags, 34680) or _mapping(tags, 34682)
    scan, tvips, olympus = _mapping(fei, "Scan"), _mapping(tags, 37706), _mapping(tags, 33560)
    printed = _printed(tags)
    sources: tuple[Steps, ...] = (
        _digital_micrograph(tags),
        _ome(file, key, number),
        _imagej(file, key, tags),
        _pair(scan.get("PixelWidth"), scan.get("PixelHeight"), "m"),
        _pair(tvips.get("PixelSizeX"), tvips.get("PixelSizeY"), "nm"),
        _zeiss(tags),
        _pair(olympus.get("pixelsizex"), olympus.get("pixelsizey"), "m"),
        _jeol(tags),
        # The common tags only where they cannot be a printer's.
        {} if any(step > _LARGEST_M for step, _ in printed.values()) else printed,
    )
    return {
        letter: Axis(letter, _known_unit(unit), abs(float(step)))
        for letter, (step, unit) in ChainMap(*sources).items()
        if step and np.isfinite(step) and unit
    }


def _known_unit(text: str) -> str:
    """Return a unit as the field writes it: ``micron`` and its like as µm."""
    text = text.strip("\0 ").replace("\\u00B5", "µ").replace("μ", "µ")
    known = {"micron": "µm", "microns": "µm", "um": "µm", "angstrom": "Å", "sec": "s"}
    return known.get(text.lower(), text)


def _digital_micrograph(tags: Tags) -> Steps:
    found = {}
    for letter, code in _DM.items():
        if step := number_of(tags.get(code + 6)):
            found[letter] = step, str(tags.get(code, "")).strip("\0 ")
    # Some write the unit of x only.
    if "x" in found:
        found.setdefault("y", found["x"])
        found["y"] = found["y"][0], found["y"][1] or found["x"][1]
    return found


def _ome(file: Any, key: Any, number: int) -> Steps:
    """Read the sizes of the image that is series ``number``."""
    if not file.is_ome or not file.ome_metadata:
        return {}
    try:
        root = ElementTree.fromstring(file.ome_metadata)
    except ElementTree.ParseError:
        return {}
    images = [pixels.attrib for pixels in root.iter() if pixels.tag.rpartition("}")[2] == "Pixels"]
    own = images[number] if number < len(images) else {}
    if (own.get("SizeX"), own.get("SizeY")) != (str(key.imagewidth), str(key.imagelength)):
        return {}
    names = {letter.lower(): (f"PhysicalSize{letter}", "µm") for letter in "XYZ"}
    names["t"] = "TimeIncrement", "s"
    return {
        letter: (step, own.get(f"{name}Unit", unit))
        for letter, (name, unit) in names.items()
        if (step := number_of(own.get(name)))
    }


def _imagej(file: Any, key: Any, tags: Tags) -> Steps:
    """Read what ImageJ writes, and what stands under its names where tifffile wrote the file."""
    known: Mapping[str, Any] = file.imagej_metadata or {}
    if key.is_shaped:
        known = tifffile.tifffile.shaped_description_metadata(key.description)
    found: Steps = {}
    unit = str(known.get("unit", ""))
    if unit not in ("", "pixel", "pixels"):
        for letter, code in (("x", 282), ("y", 283)):
            over, under = tags.get(code, (0, 1))
            if over:
                found[letter] = under / over, str(known.get(f"{letter}unit", unit))
        if step := number_of(known.get("spacing")):
            found["z"] = step, str(known.get("zunit", unit))
    if step := number_of(known.get("finterval")):
        found["t"] = step, str(known.get("tunit", "s"))
    return found


def _zeiss(tags: Tags) -> Steps:
    """Read the fourth unnamed value: metres a pixel of the 1024 that the screen is wide."""
    known = _mapping(tags, 34118).get("")
    width = number_of(tags.get(256))
    step = number_of(known[3]) if isinstance(known, tuple) and len(known) > 3 else None
    return _pair(step * 1024 / width, None, "m") if step and width else {}


def _jeol(tags: Tags) -> Steps:
    """Divide the camera's pixel, which the resolution tells, by the magnification."""
    text, pixel = str(tags.get(270, "")), _printed(tags)
    # JEOL's XML is not always well-formed. In diffraction, or scanning, there is no magnification.
    found = re.search(r"<SelectorValue>\s*([^<]+)", text)
    factor = number_of(found[1]) if found else None
    if not factor or len(pixel) < 2 or "eosTEM" not in text or "<ModeString>DIFF" in text:
        return {}
    return _pair(pixel["x"][0] / factor, pixel["y"][0] / factor, "m")


def _printed(tags: Tags) -> Steps:
    inch_or_cm = {2: 0.0254, 3: 0.01}.get(int(tags.get(296, 2)))
    found = {}
    for letter, code in (("x", 282), ("y", 283)):
        value = tags.get(code)
        if inch_or_cm and isinstance(value, tuple) and len(value) == 2 and all(value):
            found[letter] = inch_or_cm * value[1] / value[0], "m"
    return found


def _pair(x: Any, y: Any, unit: str) -> Steps:
    x = number_of(x)
    y = number_of(y) or x
    return {"x": (x, unit), "y": (y, unit)} if x and y else {}


def _mapping(known: Any, name: Any) -> Mapping[Any, Any]:
    value = known.get(name) if isinstance(known, Mapping) else None
    return value if isinstance(value, Mapping) else {}
