"""HDF5 of every convention: which dataset holds the frames, how its axes are named and calibrated.

Each finder lists what a file offers under one convention; `CONVENTIONS` is the order in which they
are asked, and the first that offers anything decides.
"""

import contextlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from emdn_deploy.readers import frames as stacks
from emdn_deploy.readers.frames import (
    Axis,
    Choice,
    Frames,
    Offer,
    Pages,
    array_frames,
    default_order,
    number_of,
)
from emdn_models.errors import FormatError, library
from emdn_models.files import CHECKPOINT

SIGMA_OF = "sigma_of"
"""Attribute of a dataset that holds the standard deviations of the frames that it names."""

# Narrower arrays in a plain file are lists of positions and the like, not pictures.
_SMALLEST = 8
# Older Dectris masters name no signal.
_FIRST_PART = "data_000001"
# Names, in lower case and letters only, that tell what an axis is: of the frame in real (y, x)
# or reciprocal space (q, p), a channel (c), or none of these (t).
_NAMES = {
    "y": "y row rows height ry yaxis ypixel ypixeloffset imageheight",
    "x": "x col cols column columns width rx xaxis xpixel xpixeloffset imagewidth",
    "q": "qy ky dety detectory",
    "p": "qx kx detx detectorx",
    "c": "c ch channel channels detector detectors colour colours color colors",
    "t": "t time times frame frames framenumber image images index n number slice slices section "
    "z depth tilt tilts alpha beta angle angles dose focus defocus run scan repeat position energy",
}
_ROLES = {name: role for role, names in _NAMES.items() for name in names.split()}
_TIMES = {"s", "sec", "secs", "second", "seconds", "ms", "us", "µs", "μs", "ns", "ps", "fs", "min"}
_TIMES |= {"minute", "minutes", "h", "hr", "hour", "hours", "deg", "degree", "degrees", "°"}
_LENGTHS = {"m", "mm", "um", "µm", "μm", "micron", "microns", "nm", "pm", "å", "a", "angstrom"}
_RECIPROCAL = re.compile(r"m?rad|1/.+|.+(\^|\*\*)\(?-1.*|.+⁻¹")


@dataclass(frozen=True)
class Candidate:
    """A dataset that could be the frames.

    ``path``: inside the file that was opened; behind an external link the dataset's own name is
    another. ``axes``, ``order``: calibration and letter (None where the file does not say) of each
    stored axis. ``label``: another name for it, such as the detector's. ``parts``: paths of all
    datasets of a stack that is stored in several, this one first. ``notes``: as of `Frames`.
    """

    path: str
    dataset: h5py.Dataset
    convention: str
    axes: tuple[Axis, ...]
    order: str | None = None
    label: str = ""
    parts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def open_frames(path: Path, choice: Choice) -> Frames:
    """Open the frames of an HDF5 file.

    Raises OSError if the file is damaged, FormatError if it holds no frames, or several stacks and
    ``choice`` does not say which.
    """
    file = h5py.File(path, "r")
    try:
        candidate, why = choose(path, file, choice)
        return frames_of(path, file, candidate, choice, why)
    except BaseException:
        file.close()
        raise


def choose(path: Path, file: h5py.File, choice: Choice) -> tuple[Candidate, str]:
    """Return the dataset to take and the reason in words."""
    if file.attrs.get("format") == CHECKPOINT:
        raise FormatError(f"{path}: holds weights of models, not frames")
    # All that the first convention to match offers.
    found = next(filter(None, (find(file) for find in CONVENTIONS)), [])
    item = file.get(choice.dataset) if choice.dataset else None
    notes, why = tuple[str, ...](), "asked for by --dataset"
    if choice.dataset and isinstance(item, h5py.Dataset):
        own = [replace(one, parts=()) for one in found if one.dataset == item]
        one = own[0] if own else _plain_candidate(f"/{choice.dataset.strip('/')}", item)
    else:
        if not found and choice.dataset is None:
            raise FormatError(
                f"{path}: holds no frames, or only behind links; name them with --dataset PATH"
            )
        offers = [Offer.of(one.path, one.dataset, one.label) for one in found]
        what = f"stacks ({found[0].convention})" if found else "stacks"
        index, why, notes = stacks.choose(path, what, offers, choice)
        one = found[index]
    # An earlier run of emdn has recorded by which order it read what it mirrored.
    record = file.get("emdn")
    if one.order is None and isinstance(record, h5py.Group):
        order = text_of(record.attrs.get("input_axes"))
        if text_of(record.attrs.get("frames")) == one.path and len(order) == one.dataset.ndim:
            one = replace(one, order=order, notes=())
    return replace(one, notes=notes + (() if choice.axes else one.notes)), why


def frames_of(path: Path, file: h5py.File, one: Candidate, choice: Choice, why: str) -> Frames:
    """Wrap a chosen dataset; releasing the frames closes the file."""
    datasets = [one.dataset]
    array: Any = one.dataset
    if one.parts:
        datasets, array = _joined(path, file, one, choice.axes or one.order)
    files = [path]
    for dataset in datasets:
        if not all(h5py.h5z.filter_avail(code) for code in _filters(dataset)):
            library("hdf5plugin", "filters", f"{path}: {dataset.name}")
        files += [each for each in _files_behind(dataset) if not each.samefile(path)]
    chunked = [each for each in datasets if each.chunks]
    total = sum(
        math.prod(-(-n // chunk) for n, chunk in zip(each.shape, each.chunks, strict=True))
        for each in chunked
    )
    notes = one.notes
    if missing := total - sum(each.id.get_num_chunks() for each in chunked):
        notes += (
            f"{missing} of {total} chunks were never written and read as {chunked[0].fillvalue}: "
            "an acquisition that was stopped? --frames takes those before",
        )
    metadata = {"chunks": str(one.dataset.chunks or "contiguous")}
    metadata |= {"detector": one.label} if one.label else {}
    if one.parts:
        metadata["parts"] = f"{one.parts[0]} to {one.parts[-1]}"
    name = one.convention if one.convention == "plain HDF5" else f"HDF5 ({one.convention})"
    frames = array_frames(
        path, name, array, choice, order=one.order, axes=one.axes, dataset=one.path,
        why=why, metadata=metadata, notes=notes, release=file.close,
        compressed=bool(_filters(one.dataset)),
    )  # fmt: skip
    return replace(frames, parts=one.parts, files=tuple(dict.fromkeys(files)))


def _filters(dataset: h5py.Dataset) -> list[int]:
    settings = dataset.id.get_create_plist()
    return [settings.get_filter(i)[0] for i in range(settings.get_nfilters())]


def _files_behind(dataset: h5py.Dataset) -> list[Path]:
    """List the files that pixels come from, behind links and virtual datasets too."""
    own = Path(dataset.file.filename)
    sources = dataset.virtual_sources() if dataset.is_virtual else ()
    names = [own.parent / one.file_name for one in sources if one.file_name != "."]
    # HDF5 takes the names of raw files from the working folder.
    names += [Path(name) for name, _, _ in dataset.external or ()]
    return [own, *(name for name in dict.fromkeys(names) if name.is_file())]


def _joined(
    path: Path, file: h5py.File, one: Candidate, order: str | None
) -> tuple[list[h5py.Dataset], Pages]:
    """Join datasets whose first axis counts frames: parts of a stack, each in a file of its own.

    Raises FormatError if one is missing or they do not fit together.
    """
    first, datasets = one.dataset, list[h5py.Dataset]()
    for name in one.parts:
        data = file.get(name)
        if not isinstance(data, h5py.Dataset):
            place = getattr(file.get(name, getlink=True), "filename", "no dataset")
            raise FormatError(
                f"{path}: {name}, part of the stack, leads to {place}, which is missing or "
                "damaged; put it back, or take a single part with --dataset PATH"
            )
        datasets.append(data)
        same = (data.dtype, data.ndim, data.shape[1:]) == (first.dtype, 3, first.shape[1:])
        if not same or (order or "t")[0] in "yx":
            raise FormatError(
                f"{path}: {name} has shape {data.shape}, {data.dtype}, axes {order}, and "
                f"{one.path} {first.shape}, {first.dtype}; parts of a stack need frames of one "
                "size and type, the frames first: take a single part with --dataset PATH"
            )
    ends = np.cumsum([len(data) for data in datasets]).tolist()

    def page(number: int) -> NDArray[Any]:
        part = int(np.searchsorted(ends, number, side="right"))
        return np.asarray(datasets[part][number - ends[part]])  # counted from its end

    return datasets, Pages((ends[-1], *first.shape[1:]), first.dtype, 2, page)


def velox(file: h5py.File) -> list[Candidate]:
    """Thermo Fisher Velox: ``/Data/Image/<uuid>/Data``, stored (y, x, frame)."""
    images = file.get("Data/Image")
    if not isinstance(images, h5py.Group):
        return []
    found = []
    for name, group in images.items():
        data = group.get("Data") if isinstance(group, h5py.Group) else None
        if data is not None and _is_image(data) and data.ndim == 3:
            path = f"/Data/Image/{name}/Data"
            axes, detector = _velox_facts(group)
            found.append(Candidate(path, data, "Velox", axes, "yxt", detector))
    return found


def hyperspy(file: h5py.File) -> list[Candidate]:
    """HyperSpy: ``/Experiments/<title>/data``, one ``axis-<i>`` group per stored axis."""
    if text_of(file.attrs.get("file_format")) != "HyperSpy":
        return []
    found = []
    for title, group in file.get("Experiments", {}).items():
        data = group.get("data")
        if not _is_image(data):
            continue
        groups = (group.get(f"axis-{i}") for i in range(data.ndim))
        notes = [dict(one.attrs) if isinstance(one, h5py.Group) else {} for one in groups]
        signal = [i for i, note in enumerate(notes) if not bool(note.get("navigate", False))]
        if len(signal) not in (2, data.ndim):
            continue  # spectra
        axes = tuple(map(hyperspy_axis, notes))
        # A BaseSignal does not tell frames from time.
        order = _order_of(axes)
        if len(signal) == 2:
            order = _with_channels(_lettered(data.ndim, *signal), axes)
        found.append(Candidate(f"/Experiments/{title}/data", data, "HyperSpy", axes, order))
    return found


def hyperspy_axis(note: Mapping[str, Any]) -> Axis:
    """Read what HyperSpy's files, and RosettaSciIO, say of an axis."""
    name, units = (text_of(note.get(key)) for key in ("name", "units"))
    return Axis(name, units, number_of(note.get("scale")), number_of(note.get("offset")) or 0.0)


def nexus(file: h5py.File) -> list[Candidate]:
    """NeXus: follow ``default`` to an NXdata group and its ``signal``; else every NXdata."""
    group: Any = file
    for _ in range(9):  # they may lead in a circle
        default = text_of(group.attrs.get("default")) if isinstance(group, h5py.Group) else ""
        group = group.get(default) if default else group
    groups = [group]
    if not isinstance(group, h5py.Group) or not text_of(group.attrs.get("signal")):
        every = _items(file, lambda one: text_of(one.attrs.get("NX_class")) == "NXdata")
        groups = [one for one in every if isinstance(one, h5py.Group)]
    found: list[Candidate] = []
    for item in groups:
        names = _signals(item)
        data = next((item[name] for name in names if _is_image(item.get(name))), None)
        if data is not None and not any(data == other.dataset for other in found):
            paths = tuple(f"{item.name}/{name}" for name in names)
            axes, parts = _nexus_axes(item, data), paths if len(paths) > 1 else ()
            found.append(Candidate(paths[0], data, "NeXus", axes, _order_of(axes), "", parts))
    return found


def emd(file: h5py.File) -> list[Candidate]:
    """EMD (Berkeley 0.x and emdfile 1.0): groups with ``emd_group_type`` and dim vectors."""
    found: list[Candidate] = []
    for group in _items(file, lambda one: "emd_group_type" in one.attrs):
        data = group.get("data") if isinstance(group, h5py.Group) else None
        if data is None or not _is_image(data):
            continue
        first = 0 if "dim0" in group else 1
        axes = tuple(_vector_axis(group.get(f"dim{i + first}")) for i in range(data.ndim))
        # HyperSpy stores the axes of EMD 0.2 in reverse.
        order, notes = _order_of(axes, reverse=first == 1), tuple[str, ...]()
        if data.ndim > 2 and (order is None or order != _order_of(axes)):
            notes = (
                f"its axes do not say which is time: taken as {order or default_order(data.shape)};"
                " if that is wrong, say which with --axes",
            )
        found.append(Candidate(f"{group.name}/data", data, "EMD", axes, order, notes=notes))
    return found


def plain(file: h5py.File) -> list[Candidate]:
    """Any HDF5: the numeric datasets of two or more axes."""
    images = [
        item
        for item in _items(file, _is_image)
        if SIGMA_OF not in item.attrs and sorted(item.shape)[-2] >= _SMALLEST
    ]
    return [_plain_candidate(str(item.name), item) for item in images]


def _plain_candidate(path: str, data: h5py.Dataset) -> Candidate:
    """Describe a dataset of a file that follows no convention."""
    axes = _scale_axes(data)
    order = _order_of(axes)
    if order is None and "MATLAB_class" in data.attrs:
        # MATLAB's first index is HDF5's last.
        order = default_order(data.shape).translate({ord("y"): "x", ord("x"): "y"})
    return Candidate(path, data, "plain HDF5", axes, order)


Finder = Callable[[h5py.File], list[Candidate]]
CONVENTIONS: tuple[Finder, ...] = (velox, hyperspy, nexus, emd, plain)


def _items(file: h5py.File, wanted: Callable[[Any], bool]) -> list[Any]:
    """List the groups and datasets that are wanted, depth first."""
    found: list[Any] = []
    file.visititems(lambda _, item: found.append(item) if wanted(item) else None)
    return found


def _is_image(item: Any) -> bool:
    # Complex and compound data stay in the list: they are refused by name when chosen.
    return (
        isinstance(item, h5py.Dataset)
        and item.shape is not None
        and item.ndim >= 2
        and (item.dtype.kind in "buifc" or bool(item.dtype.names))
        and not h5py.check_dtype(ref=item.dtype)
    )


def _signals(group: h5py.Group) -> list[str]:
    """Return the signal, with its siblings where a detector counts its parts.

    A Dectris master has ``data_000001``, ``data_000002`` and so on, one of them
    marked: together they are the stack.
    """
    signal = text_of(group.attrs.get("signal")) or _FIRST_PART
    part = re.fullmatch(r"(.*_)\d{6}", signal)
    if not part:
        return [signal]
    every = re.compile(re.escape(part.group(1)) + r"\d{6}")
    return sorted(name for name in group if every.fullmatch(name))


def _order_of(axes: tuple[Axis, ...], *, reverse: bool = False) -> str | None:
    """Tell from names and units which axes are those of the frame.

    ``reverse``: whether two axes that are not told apart are (x, y) where all others follow them,
    as in files whose axes are stored the other way round. Returns one letter per stored axis; None
    if names and units do not decide.
    """
    roles = [_role(axis) for axis in axes]
    frame = _frame_axes(roles)
    if frame is None:
        return None
    y, x = frame
    named = roles[y] in "yxqp" or roles[x] in "yxqp"
    swapped = roles[y] in "xp" or roles[x] in "yq"
    if swapped if named else reverse and x == 1 < len(axes) - 1:
        y, x = x, y
    return _with_channels(_lettered(len(axes), y, x), axes)


def _lettered(ndim: int, y: int, x: int) -> str:
    lead = iter(default_order((2,) * ndim)[:-2])
    return "".join("y" if i == y else "x" if i == x else next(lead) for i in range(ndim))


def _with_channels(order: str, axes: tuple[Axis, ...]) -> str:
    """Call the axis ``c`` whose name says that it counts channels or detectors."""
    found = [i for i, one in enumerate(axes) if order[i] not in "yx" and _role(one) == "c"]
    return order if len(found) != 1 else f"{order[: found[0]]}c{order[found[0] + 1 :]}"


def _frame_axes(roles: list[str]) -> tuple[int, int] | None:
    """Return the two axes of the frame, in stored order."""
    for pair in ("qp", "yx", "k", "l"):  # diffraction patterns first: x and y are then the scan
        found = [i for i, role in enumerate(roles) if role in pair]
        if len(found) == 2 and len({roles[i] for i in found}) == len(pair):
            return found[0], found[1]
    free = [i for i, role in enumerate(roles) if role not in "tc"]
    return (free[0], free[1]) if len(free) == 2 < len(roles) else None


def _role(axis: Axis) -> str:
    """Return ``y x q p c t`` by the name; by units ``t``, ``k`` (reciprocal), ``l`` or ``?``."""
    name = re.sub(r"[^a-z]", "", re.split(r"[\[(/,]", axis.name.lower())[0])
    if name in _ROLES:
        return _ROLES[name]
    units = axis.units.strip().lower()
    if units in _TIMES:
        return "t"
    if _RECIPROCAL.fullmatch(units):
        return "k"
    return "l" if units in _LENGTHS else "?"


def _velox_facts(group: h5py.Group) -> tuple[tuple[Axis, ...], str]:
    """Return the axes and the detector's name by the JSON that Velox writes with each frame."""
    axes, detector = (Axis("y"), Axis("x"), Axis("frame")), ""
    with contextlib.suppress(KeyError, ValueError, TypeError, AttributeError, OSError):
        raw = np.asarray(group["Metadata"][:, 0], dtype=np.uint8).tobytes()
        facts = json.loads(raw.split(b"\0", 1)[0])
        result = facts["BinaryResult"]
        own = facts.get("Detectors", {}).get(f"Detector-{result.get('DetectorIndex')}", {})
        detector = str(own.get("DetectorName") or result.get("Detector") or "")
        size, units = result["PixelSize"], str(result.get("PixelUnitX") or "m")
        y, x = float(size["height"]), float(size["width"])
        axes = Axis("y", units, y), Axis("x", units, x), axes[2]
    return axes, detector


def _nexus_axes(group: h5py.Group, data: h5py.Dataset) -> tuple[Axis, ...]:
    """Follow the names in ``axes`` of an NXdata group."""
    value = group.attrs.get("axes", ())
    names = [text_of(name) for name in ([value] if text_of(value) else value)]
    names = (names + ["."] * data.ndim)[: data.ndim]
    return tuple(Axis() if name == "." else _vector_axis(group.get(name), name) for name in names)


def _scale_axes(data: h5py.Dataset) -> tuple[Axis, ...]:
    """Follow netCDF-style dimension scales where there are any."""
    return tuple(
        _vector_axis(dim[0], dim.label or str(dim[0].name).rpartition("/")[2])
        if len(dim)
        else Axis(dim.label)
        for dim in data.dims
    )


def _vector_axis(vector: Any, name: str = "") -> Axis:
    """Turn a vector of coordinates into an axis with a constant step."""
    if not isinstance(vector, h5py.Dataset) or vector.dtype.kind not in "iuf":
        return Axis(name)
    name = name or text_of(vector.attrs.get("name"))
    units = text_of(vector.attrs.get("units")).strip("[]").replace("_", "")
    if vector.ndim != 1 or vector.size < 2:
        return Axis(name, units)
    first, second = (float(value) for value in vector[:2])
    return Axis(name, units, second - first, first)


def text_of(value: Any) -> str:
    """Return an attribute as text, empty where it is none."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()  # MATLAB and others store arrays of one
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) else ""
