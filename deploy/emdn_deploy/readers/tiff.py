"""TIFF and BigTIFF stacks: read in one piece where they are plain, page by page otherwise.

Sizes, times and facts of the microscope come from the tags and texts of each program's own way.
"""

import contextlib
import logging
import math
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile
from numpy.typing import NDArray

from emdn_deploy.readers.frames import (
    WHITE,
    Axis,
    Choice,
    Frames,
    Offer,
    Pages,
    array_frames,
    beam,
    choose,
    cut_short,
)
from emdn_deploy.readers.npy import Plain
from emdn_models.errors import FormatError, MissingExtraError, install

Tags = Mapping[int, Any]
Steps = dict[str, tuple[float, str]]


class _Complaints(logging.Handler):
    """What tifffile logs of a damaged file, for a line of our own."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message."""
        self.said.append(record.getMessage())


_complaints = _Complaints()
tifffile.logger().setLevel(logging.ERROR)
tifffile.logger().propagate = False
tifffile.logger().addHandler(_complaints)

_COLOURS = ("RGB", "YCBCR", "CMYK", "CIELAB", "PALETTE")
_EER = (65000, 65001, 65002)
# DigitalMicrograph's tags along x, y and z: the unit, and six further on the step.
_DM = {"x": 65003, "y": 65004, "t": 65005}
# A printer's resolution is coarser than this, a microscope's finer.
_LARGEST_M = 1e-6


def open_frames(path: Path, choice: Choice) -> Frames:
    """Open a TIFF; ``choice.dataset`` is the number of a series where there are several.

    Raises FormatError if it is damaged, holds colours or electron events, or holds several series.
    """
    _complaints.said.clear()
    file = tifffile.TiffFile(path)
    try:
        return _open(path, file, choice)
    except BaseException:
        file.close()
        raise


def _open(path: Path, file: tifffile.TiffFile, choice: Choice) -> Frames:
    places = _page_places(path, file)
    if int(file.pages[0].compression) in _EER:
        raise FormatError(
            f"{path}: holds electron events (EER), expected frames; sum them into frames first, "
            "such as with relion_convert_to_tiff, and denoise those"
        )
    series, number, why, notes = _choose(path, _series(file), choice)
    key = series.keyframe
    order = _order(series, ours="emdn-deploy" in str((file.imagej_metadata or {}).get("Info", "")))
    if _is_colour(series) and "c" not in order and choice.axes is None:
        raise FormatError(
            f"{path}: holds numbers of colours ({key.photometric.name.lower()}), shape "
            f"{series.shape}; convert it to grey values first, or take the numbers as they are "
            f"with --axes {order}"
        )
    data, order, missing = _stored(path, file, series, order, places)
    tags = {tag.code: tag.value for tag in key.tags}
    metadata = {"pages": str(len(file.pages)), **_microscope(tags)}
    metadata["stored"] = "page by page" if isinstance(data, Pages) else "plain"
    compressed = int(key.compression) > 1
    if compressed:
        metadata["stored"] += f", {key.compression.name.lower()}"
    if _complaints.said and not missing:
        notes += (f"is damaged, some of what it says is lost ({_complaints.said[0][:200]})",)
    if key.photometric.name == "MINISWHITE":
        metadata["photometric"] = "miniswhite"
        if np.dtype(key.dtype).kind == "u":
            metadata[WHITE] = str(2**key.bitspersample - 1)
    if (turned := int(tags.get(274, 1))) != 1:
        metadata["orientation"] = str(turned)
    steps = _steps(file, key, tags, number)
    lead = [letter for letter in order if letter not in "yx"]
    if len(lead) == 1 and "t" in steps:
        steps[lead[0]] = steps["t"]  # ImageJ counts the frames of a movie as slices, too
    axes = tuple(steps.get(letter, Axis(letter)) for letter in order)
    return array_frames(
        path, "TIFF", data, choice, order=order, axes=axes, why=why, release=file.close,
        metadata=metadata, notes=notes, compressed=compressed, missing=missing,
    )  # fmt: skip


def _page_places(path: Path, file: tifffile.TiffFile) -> list[int]:
    """List the bytes of the pages; the last is 0, or where the list leads out of the file."""
    form, size = file.tiff, file.filehandle.size
    place, pages = int(file.pages[0].offset), dict[int, int]()
    with path.open("rb") as opened:

        def number(at: int, kind: str, length: int) -> int:
            opened.seek(at)
            return int(struct.unpack(kind, opened.read(length).ljust(length, b"\0"))[0])

        while 0 < place < size:
            if place in pages:  # which tifffile follows for ever
                raise FormatError(f"{path}: is damaged, its pages form a circle: copy it again")
            pages[place] = len(pages)
            tags = number(place, form.tagnoformat, form.tagnosize)
            after = place + form.tagnosize + tags * form.tagsize
            if after + form.offsetsize > size:  # cut inside its list of tags
                break
            place = number(after, form.offsetformat, form.offsetsize)
    return [*pages, place]


def _series(file: tifffile.TiffFile) -> list[Any]:
    """Return the file's series; of one whose list of pages breaks off, the pages before."""
    try:
        return list(file.series)
    except (tifffile.TiffFileError, struct.error):
        return [_stack(_pages(file))]


def _stack(pages: list[Any]) -> Any:
    """Return one series of pages like the first."""
    first = pages[0]
    return tifffile.TiffPageSeries(pages, (len(pages), *first.shape), first.dtype, "I" + first.axes)


def _pages(file: tifffile.TiffFile) -> list[Any]:
    """Return the pages like the first, up to the end of the file."""
    pages = [file.pages[0]]
    with contextlib.suppress(IndexError, tifffile.TiffFileError, struct.error):
        while (page := file.pages[len(pages)]).shape == pages[0].shape:
            pages.append(page)
    return pages


def _choose(path: Path, series: list[Any], choice: Choice) -> tuple[Any, int, str, tuple[str, ...]]:
    """Return a series, its number, why, and what the user must know of it."""
    # tifffile's ``write`` makes one series a call.
    kinds = {(one.shape, one.dtype, one.keyframe.photometric) for one in series}
    single = len(series) > 1 and len(kinds) == 1 and all(len(one.shape) == 2 for one in series)
    if single and choice.dataset is None and len(choice.axes or "") == 3:
        why = f"all {len(series)} series, of one frame each, as --axes {choice.axes} says"
        return _stack([one.keyframe for one in series]), 0, why, ()
    offers = [
        Offer(str(number), (), "colours")
        if _is_colour(one) and len(series) > 1
        else Offer.of(str(number), one)
        for number, one in enumerate(series)
    ]
    more = ", or take all as the frames of one stack with --axes tyx" if single else ""
    number, why, notes = choose(path, "series", offers, choice, more)
    return series[number], number, why, notes


def _is_colour(series: Any) -> bool:
    """Say whether pixels are colours; a palette of greys, as of Zeiss's, is none."""
    key = series.keyframe
    if key.photometric.name == "PALETTE" and key.colormap is not None:
        # Some entries are colours, for what is written on top.
        ramp = np.linspace(0, key.colormap.max(), key.colormap.shape[1])
        grey = np.abs(key.colormap - ramp).max(axis=0) <= 0.02 * ramp[-1]
        return bool(grey.mean() < 0.8)
    return key.photometric.name in _COLOURS


def _order(series: Any, *, ours: bool) -> str:
    """Turn tifffile's axes (``TZCYX``, ``QYX``, ``YXS``) into one letter each.

    ``c`` are colours, or detectors beside each other. A stack along channels only is one of
    frames, as some libraries write it, unless ImageJ shows the channels at once. So is an
    output of emdn, ``ours``, whose channels were said to be on one scale.
    """
    letters, axes = "", str(series.axes).lower()
    for letter in axes:
        letter = "c" if letter == "s" and "c" not in letters else letter
        letters += letter if letter not in letters else _free(letters)
    lead = {letter for letter, size in zip(letters, series.shape, strict=True) if size > 1}
    page = series.keyframe
    shown_at_once = page.is_imagej and "mode=co" in page.description
    if (ours or lead <= set("cyx")) and "s" not in axes and not shown_at_once:
        letters = letters.replace("c", _free(letters))
    return letters


def _free(letters: str) -> str:
    return next(letter for letter in "tuvwabdefghij" if letter not in letters)


def _stored(
    path: Path, file: tifffile.TiffFile, series: Any, order: str, places: list[int]
) -> tuple[Any, str, str]:
    """Return what is indexed like the array, its axes, and `cut_short` where frames are missing.

    The text of the first page may promise more frames than there are, or the list of pages lead out
    of the file. Where the second page follows the pixels of all frames, it tells how many there
    are; if not, it is one more at least.
    """
    shape, key, size = tuple(series.shape), series.keyframe, file.filehandle.size
    lead, inner = shape[: len(shape) - key.ndim], order[len(order) - key.ndim :]
    start, kind = series.dataoffset, np.dtype(series.dtype).newbyteorder(file.byteorder)
    frame = kind.itemsize * math.prod(key.shape)
    said, sure = _described(key), ""
    if said is not None and math.prod(said[0]) > math.prod(lead):
        lead, order = said[0], said[1] + inner
    elif places[-1] and not (said and math.prod(said[0]) == math.prod(lead)):
        count, order, sure = len(series) + 1, "t" + inner, "at least "
        lead = (count if start is None else max(count, (places[1] - start) // frame),)
    count, pages = math.prod(lead), list[Any]()
    # A plain stack's pages may follow the pixels, and be lost.
    if start is not None:
        there = max(0, min(count, (size - start) // frame))
    else:
        pages = list(series.pages) if len(series) >= count else _pages(file)[:count]
        lost = (number for number, page in enumerate(pages) if not _is_there(page, size))
        there = next(lost, len(pages))
    missing = cut_short(there, f"{sure}{count}") if there < count else ""
    if not there:
        raise FormatError(f"{path}: {missing}")
    if missing:
        lead, order = (there,), "t" + inner
    if start is not None:
        return Plain(path, start, (*lead, *key.shape), kind), order, missing

    def page(number: int) -> NDArray[Any]:
        return _decoded(pages[number], path)

    return Pages((*lead, *key.shape), series.dtype, key.ndim, page), order, missing


def _described(first: Any) -> tuple[tuple[int, ...], str] | None:
    """Return how many frames the text of a series' first page tells, along which axes."""
    if first.is_imagej:
        known = tifffile.tifffile.imagej_description_metadata(first.description)
        counts = [int(known.get(name, 1)) for name in ("frames", "slices", "channels")]
        axes = [(count, letter) for count, letter in zip(counts, "tzc", strict=True) if count > 1]
        if math.prod(counts) != int(known.get("images", 1)):
            axes = [(int(known.get("images", 1)), "t")]
        if len(axes) == 1 and "mode=co" not in first.description:
            axes = [(axes[0][0], axes[0][1].replace("c", "t"))]
        return tuple(count for count, _ in axes), "".join(letter for _, letter in axes)
    if first.is_shaped:
        lead = tifffile.tifffile.shaped_description_metadata(first.description)["shape"]
        lead = tuple(lead[: len(lead) - first.ndim])
        return lead, "tuvwabd"[: len(lead)][::-1]
    return None


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
        if other:
            handle.open()
        pixels: NDArray[Any] = page.asarray()
    except (ImportError, ValueError, RuntimeError) as error:
        if "imagecodecs" in str(error):
            raise MissingExtraError(
                f"{path}: is compressed ({page.compression.name}); to read it: {install('filters')}"
            ) from error
        raise
    finally:
        if other:
            handle.close()
    return pixels


def _steps(file: Any, key: Any, tags: Tags, number: int) -> dict[str, Axis]:
    """Return the calibration of the axes that have one, by their letters.

    The first of several sources that know an axis decides; ``number`` is that of the series.
    """
    fei, tvips, olympus = (
        _mapping(_fei(tags), "Scan"), _mapping(tags, 37706), _mapping(tags, 33560)
    )  # fmt: skip
    printed = _printed(tags)
    sources: tuple[Steps, ...] = (
        _digital_micrograph(tags),
        _ome(file, key, number),
        _imagej(file, key, tags),
        _pair(fei.get("PixelWidth"), fei.get("PixelHeight"), "m"),
        _pair(tvips.get("PixelSizeX"), tvips.get("PixelSizeY"), "nm"),
        _zeiss(tags),
        _pair(olympus.get("pixelsizex"), olympus.get("pixelsizey"), "m"),
        _jeol(tags),
        # The common tags only where they cannot be a printer's.
        {} if any(step > _LARGEST_M for step, _ in printed.values()) else printed,
    )
    found: Steps = {}
    for source in sources:
        found = source | found
    return {
        letter: Axis(letter, known_unit(unit), abs(float(step)))
        for letter, (step, unit) in found.items()
        if step and np.isfinite(step) and unit
    }


def known_unit(text: str) -> str:
    """Return a unit as the field writes it: ``micron`` and its like as µm."""
    text = text.strip("\0 ").replace("\\u00B5", "µ").replace("μ", "µ")
    known = {"micron": "µm", "microns": "µm", "um": "µm", "angstrom": "Å", "sec": "s"}
    return known.get(text.lower(), text)


def _microscope(tags: Tags) -> dict[str, str]:
    """Return the beam's energy and the camera's length, where the microscope wrote them."""
    jeol, zeiss = _jeol_text(tags), _mapping(tags, 34118).get("ap_actualkv")
    kilovolts = _number(zeiss[1]) if isinstance(zeiss, tuple) and len(zeiss) > 1 else None
    volts = (
        _mapping(_fei(tags), "Beam").get("HV"),
        _mapping(tags, 37706).get("TemHighTension"),
        _tagged(jeol, "AccelerationVoltage"),
        1000 * kilovolts if kilovolts else None,
    )
    length = _tagged(jeol, "SelectorValue") if _tagged(jeol, "ModeString") == "DIFF" else None
    return beam(
        volts=next(filter(None, map(_number, volts)), None),
        camera_length=_number(length),
        scanning="SEM" if zeiss or _fei(tags) else "TEM",
    )


def _digital_micrograph(tags: Tags) -> Steps:
    found = {}
    for letter, code in _DM.items():
        if step := _number(tags.get(code + 6)):
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
        if (step := _number(own.get(name)))
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
        if step := _number(known.get("spacing")):
            found["z"] = step, str(known.get("zunit", unit))
    if step := _number(known.get("finterval")):
        found["t"] = step, str(known.get("tunit", "s"))
    return found


def _zeiss(tags: Tags) -> Steps:
    """Read the fourth unnamed value: metres a pixel of the 1024 that the screen is wide."""
    known = _mapping(tags, 34118).get("")
    width = _number(tags.get(256))
    step = _number(known[3]) if isinstance(known, tuple) and len(known) > 3 else None
    return _pair(step * 1024 / width, None, "m") if step and width else {}


def _jeol_text(tags: Tags) -> str:
    text = str(tags.get(270, ""))
    return text if "<TemReporter" in text[:200] else ""


def _jeol(tags: Tags) -> Steps:
    """Divide the camera's pixel, which the resolution tells, by the magnification."""
    text, pixel = _jeol_text(tags), _printed(tags)
    factor = _number(_tagged(text, "SelectorValue"))
    # A camera sees no magnified specimen, nor a calibrated pattern, while the probe scans.
    if not factor or len(pixel) < 2 or _tagged(text, "EosMode") != "eosTEM":
        return {}
    x, y = pixel["x"][0] / factor, pixel["y"][0] / factor
    if _tagged(text, "ModeString") != "DIFF":
        return _pair(x, y, "m")
    volts = _number(_tagged(text, "AccelerationVoltage"))
    if not volts:
        return {}
    # Camera length in mm: the angle of a pixel over the (relativistic) wavelength in nm.
    wavelength = 1.226426 / math.sqrt(volts * (1 + 0.978476e-6 * volts))
    return _pair(1e3 * x / wavelength, 1e3 * y / wavelength, "1/nm")


def _printed(tags: Tags) -> Steps:
    inch_or_cm = {2: 0.0254, 3: 0.01}.get(int(tags.get(296, 2)))
    found = {}
    for letter, code in (("x", 282), ("y", 283)):
        value = tags.get(code)
        if inch_or_cm and isinstance(value, tuple) and len(value) == 2 and all(value):
            found[letter] = inch_or_cm * value[1] / value[0], "m"
    return found


def _pair(x: Any, y: Any, unit: str) -> Steps:
    x = _number(x)
    y = _number(y) or x
    return {"x": (x, unit), "y": (y, unit)} if x and y else {}


def _mapping(known: Any, name: Any) -> Mapping[Any, Any]:
    value = known.get(name) if isinstance(known, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def _fei(tags: Tags) -> Mapping[Any, Any]:
    return _mapping(tags, 34680) or _mapping(tags, 34682)


def _tagged(text: str, name: str) -> str | None:
    """Return what the first element ``name`` holds; JEOL's XML is not always well-formed."""
    found = re.search(rf"<{name}>\s*([^<]+?)\s*</{name}>", text)
    return found[1] if found else None


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None
