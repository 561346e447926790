"""TIFF and BigTIFF stacks: read in one piece where they are plain, page by page otherwise."""

import contextlib
import logging
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from emdn_deploy.readers import limits, tiff_calibration
from emdn_deploy.readers.arrays import Plain, array_frames
from emdn_deploy.readers.frames import CUT_SHORT, WHITE, Axis, Choice, Frames
from emdn_deploy.readers.offers import Offer, SeveralStacks, only_stack
from emdn_deploy.readers.pages import Pages, cut_short
from emdn_models.errors import FormatError, MissingExtraError, install


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


def open_frames(path: Path, choice: Choice) -> Frames:
    """Open a TIFF; ``choice.dataset`` is the number of a series where there are several.

    A file that is cut short has the frames that it promises; reading those that are
    missing is an error that says how many are there.

    Raises
    ------
    FormatError
        If it is damaged, holds colours or electron events, or holds several series.
    """
    _complaints.said.clear()
    try:
        file = tifffile.TiffFile(path)
    except (tifffile.TiffFileError, ValueError, OSError, KeyError) as error:
        raise FormatError(f"{path}: cannot be read as TIFF ({error})") from error
    try:
        return _open(path, file, choice)
    except BaseException as error:
        file.close()
        # What tifffile stumbles over in damaged files.
        kinds = (
            tifffile.TiffFileError, ValueError, OSError, KeyError, IndexError, TypeError,
            struct.error,
        )  # fmt: skip
        if isinstance(error, kinds):
            raise FormatError(f"{path}: is a damaged TIFF file ({error})") from error
        raise


def _open(path: Path, file: tifffile.TiffFile, choice: Choice) -> Frames:
    limits.check_pages(path, file)
    if int(file.pages[0].compression) in _EER:
        raise FormatError(
            f"{path}: holds electron events (EER), expected frames; sum them into frames first, "
            "such as with relion_convert_to_tiff, and denoise those"
        )
    series, number, why = _choose(path, file, _series(file), choice)
    limits.check_page(path, series.keyframe)
    ours = "emdn-deploy" in str((file.imagej_metadata or {}).get("Info", ""))
    order = _order(series, ours=ours)
    if _is_colour(series) and "c" not in order and choice.axes is None:
        raise FormatError(
            f"{path}: holds numbers of colours ({series.keyframe.photometric.name.lower()}), shape "
            f"{series.shape}; convert it to grey values first, or take the numbers as they are "
            f"with --axes {order}"
        )
    notes: tuple[str, ...] = (
        () if "--dataset NUMBER" not in why else (f"series {number} is taken: {why}",)
    )
    shape, order = _promised(file, series, order)
    data, cut = _data(path, file, series, shape)
    key = series.keyframe
    metadata = {"pages": str(len(file.pages)), **tiff_calibration.facts(key)}
    metadata["stored"] = "page by page" if isinstance(data, Pages) else "plain"
    compressed = int(key.compression) > 1
    if compressed:
        metadata["stored"] += f", {key.compression.name.lower()}"
    if cut:
        metadata[CUT_SHORT] = "not all frames are there"
    elif _complaints.said:
        notes += (f"is damaged, some of what it says is lost ({_complaints.said[0][:200]})",)
    if key.photometric.name == "MINISWHITE":
        metadata["photometric"] = "miniswhite"
        if np.dtype(key.dtype).kind == "u":
            metadata[WHITE] = str(2**key.bitspersample - 1)
    if (turned := int(key.tags.valueof(274, 1))) != 1:
        metadata["orientation"] = str(turned)
    steps = tiff_calibration.steps(file, series, number)
    lead = [letter for letter in order if letter not in "yx"]
    if len(lead) == 1 and "t" in steps:
        steps[lead[0]] = steps["t"]  # ImageJ counts the frames of a movie as slices, too
    axes = tuple(steps.get(letter, Axis(letter)) for letter in order)
    return array_frames(
        path, "TIFF", data, choice, order=order, axes=axes, why=why, release=file.close,
        metadata=metadata, notes=notes, compressed=compressed,
    )  # fmt: skip


def _series(file: tifffile.TiffFile) -> list[Any]:
    """Return the file's series; of one whose list of pages breaks off, the pages before."""
    try:
        return list(file.series)
    except (tifffile.TiffFileError, struct.error):
        pages = _pages(file)
        first = pages[0]
        shape = (len(pages), *first.shape)
        return [tifffile.TiffPageSeries(pages, shape, first.dtype, "I" + first.axes)]


def _pages(file: tifffile.TiffFile) -> list[Any]:
    """Return the pages like the first, up to the end of the file."""
    first = file.pages[0]
    pages = [first]
    with contextlib.suppress(IndexError, tifffile.TiffFileError, struct.error):
        while (page := file.pages[len(pages)]).shape == first.shape:
            pages.append(page)
    return pages


def _choose(
    path: Path, file: tifffile.TiffFile, series: list[Any], choice: Choice
) -> tuple[Any, int, str]:
    """Return a series, its number and why."""
    if choice.dataset is not None:
        if not choice.dataset.isdigit() or int(choice.dataset) >= len(series):
            raise FormatError(
                f"{path}: has no series {choice.dataset!r}; it has 0 to {len(series) - 1}"
            )
        return series[int(choice.dataset)], int(choice.dataset), "asked for by --dataset"
    if len(series) == 1:
        return series[0], 0, "the only series in the file"
    if not series:
        raise FormatError(f"{path}: holds no pictures")
    grey = [one for one in series if not _is_colour(one)]
    if len(grey) == 1:
        return grey[0], series.index(grey[0]), "the only series without colours"
    offers = [Offer.of(str(number), one) for number, one in enumerate(series)]
    taken, why = only_stack(offers)
    if taken is None:
        largest = sorted(range(len(series)), key=lambda one: -series[one].size)
        # Thumbnails are common, and small.
        if series[largest[0]].size < 8 * series[largest[1]].size:
            single = _single_frames(series)
            if single and choice.axes is not None and len(choice.axes) == 3:
                why = f"all {len(series)} series, of one frame each, as --axes {choice.axes} says"
                return _joined(series), 0, why
            more = ", or take all as the frames of one stack with --axes tyx" if single else ""
            raise SeveralStacks(path, "series", offers, more)
        taken, why = largest[0], "the only large series in the file"
    return series[taken], taken, f"{why}; --dataset NUMBER takes another"


def _single_frames(series: list[Any]) -> bool:
    """Say whether all series are one grey page each, of one size and type."""
    kinds = {(one.shape, one.dtype, one.keyframe.photometric) for one in series}
    return len(kinds) == 1 and all(len(one.shape) == 2 for one in series)


def _joined(series: list[Any]) -> Any:
    """Return one series of the pages of several; tifffile's ``write`` makes one a call."""
    first, pages = series[0], [one.keyframe for one in series]
    return tifffile.TiffPageSeries(pages, (len(pages), *first.shape), first.dtype, "I" + first.axes)


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
    output of emdn, ``ours``, whose channels were told to be on one scale.
    """
    letters = ""
    for letter in str(series.axes).lower():
        letter = "c" if letter == "s" and "c" not in letters else letter
        letters += (
            letter
            if letter not in letters
            else next(other for other in "tuvwabdefghij" if other not in letters)
        )
    lead = {letter for letter, size in zip(letters, series.shape, strict=True) if size > 1}
    if (ours or lead <= set("cyx")) and "s" not in str(series.axes).lower():
        page = series.keyframe
        mode = page.is_imagej and "mode=co" in page.description
        letters = letters if mode else letters.replace("c", "t" if "t" not in letters else "u")
    return letters


def _promised(file: tifffile.TiffFile, series: Any, order: str) -> tuple[tuple[int, ...], str]:
    """Return the shape and axes that the file promises, which may be cut short."""
    shape, key = tuple(series.shape), series.keyframe
    lead, inner = shape[: len(shape) - key.ndim], order[len(order) - key.ndim :]
    told = _told(key)
    if told is not None and math.prod(told[0]) > math.prod(lead):
        return (*told[0], *key.shape), told[1] + inner
    if not _breaks_off(file) or (told is not None and math.prod(told[0]) == math.prod(lead)):
        return shape, order
    # Where the second page follows the pixels of all frames, that tells how many there are; if not,
    # it is one more at least.
    count = len(series) + 1
    if series.dataoffset is not None:
        first = file.pages.first
        count = max(count, (_next(file, first.offset) - series.dataoffset) // _bytes(series))
    return (count, *key.shape), "t" + inner


def _bytes(series: Any) -> int:
    return int(np.dtype(series.dtype).itemsize * math.prod(series.keyframe.shape))


def _breaks_off(file: tifffile.TiffFile) -> bool:
    """Say whether the list of pages leads out of the file."""
    place, form = file.pages.next_page_offset, file.tiff
    if place is None or place + form.offsetsize > file.filehandle.size:
        return True  # cut inside the last page's list of tags
    return _unpacked(file, place, form.offsetformat, form.offsetsize) != 0


def _next(file: tifffile.TiffFile, page: int) -> int:
    """Return where the page after the one at byte ``page`` should lie."""
    form = file.tiff
    tags = _unpacked(file, page, form.tagnoformat, form.tagnosize)
    place = page + form.tagnosize + tags * form.tagsize
    return _unpacked(file, place, form.offsetformat, form.offsetsize)


def _unpacked(file: tifffile.TiffFile, place: int, kind: str, size: int) -> int:
    file.filehandle.seek(place)
    return int(struct.unpack(kind, file.filehandle.read(size))[0])


def _told(first: Any) -> tuple[tuple[int, ...], str] | None:
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


def _data(
    path: Path, file: tifffile.TiffFile, series: Any, shape: tuple[int, ...]
) -> tuple[Any, bool]:
    """Return what is indexed like the promised array, and whether some of it is missing."""
    key, size = series.keyframe, file.filehandle.size
    count = math.prod(shape[: len(shape) - key.ndim])
    start, kind = series.dataoffset, np.dtype(series.dtype).newbyteorder(file.byteorder)
    read: Callable[[int], NDArray[Any]]
    plain: Plain | None = None
    # A plain stack's pages may follow the pixels, and be lost.
    if start is not None:
        there = min(count, (size - start) // _bytes(series))
        if there == count:
            return Plain(path, start, shape, kind), False
        plain = Plain(path, start, (max(there, 0), *key.shape), kind)
        read = plain.__getitem__
    else:
        pages = list(series.pages) if len(series) >= count else _pages(file)[:count]
        lost = (number for number, page in enumerate(pages) if not _is_there(page, size))
        there = next(lost, len(pages))

        def read(number: int) -> NDArray[Any]:
            return _decoded(pages[number], path)

    told = _told(key)
    sure = "" if len(series) == count or (told and math.prod(told[0]) == count) else "at least "
    missing = cut_short(path, there, f"{sure}{count}")
    close = plain.close if plain else lambda: None
    return Pages(shape, series.dtype, key.ndim, read, there, missing, close), there < count


def _is_there(page: Any, size: int) -> bool:
    """Say whether a page, and all of its pixels, lie inside the file."""
    if page is None:
        return False
    ends = [
        start + count for start, count in zip(page.dataoffsets, page.databytecounts, strict=False)
    ]
    # In OME-TIFF the pages may be in other files.
    size = size if page.parent is None else page.parent.filehandle.size
    return max(ends, default=0) <= size


def _decoded(page: Any, path: Path) -> NDArray[Any]:
    limits.check_page(Path(page.parent.filehandle.path), page)
    # Of several files of an OME-TIFF, one is open at a time.
    handle = page.parent.filehandle
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
