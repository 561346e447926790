"""Where each HDF5 convention keeps its frames, and how it names and calibrates their axes.

Each finder lists what a file offers under one convention; `CONVENTIONS` is the
order in which they are asked, and the first that offers anything decides.
"""

import contextlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from emdn_deploy.readers.frames import Axis, default_order
from emdn_models.errors import FormatError

# Narrower arrays in a plain file are lists of positions and the like, not pictures.
_SMALLEST = 8
# Older Dectris masters name no signal.
_FIRST_PART = "data_000001"
# Attribute of a dataset that holds the standard deviations of the frames that it names.
SIGMA_OF = "sigma_of"
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
        axes = tuple(
            Axis(
                text_of(note.get("name")),
                text_of(note.get("units")),
                _number(note.get("scale")),
                _number(note.get("offset")) or 0.0,
            )
            for note in notes
        )
        # A BaseSignal does not tell frames from time.
        order = order_of(axes)
        if len(signal) == 2:
            order = with_channels(_lettered(data.ndim, *signal), axes)
        found.append(Candidate(f"/Experiments/{title}/data", data, "HyperSpy", axes, order))
    return found


def nexus(file: h5py.File) -> list[Candidate]:
    """NeXus: follow ``default`` to an NXdata group and its ``signal``; else every NXdata."""
    group: Any = file
    passed = []
    while isinstance(group, h5py.Group) and (default := text_of(group.attrs.get("default"))):
        if group in passed:
            raise FormatError(
                f"{file.filename}: its 'default' attributes lead in a circle, from {group.name} to "
                f"{default}; name the frames with --dataset"
            )
        passed.append(group)
        group = group.get(default)
    groups = [group] if isinstance(group, h5py.Group) and group != file and _signal(group) else []
    if not groups:
        every = _items(file, lambda one: text_of(one.attrs.get("NX_class")) == "NXdata")
        groups = [one for one in every if isinstance(one, h5py.Group)]
    found: list[Candidate] = []
    for item in groups:
        names = _signals(item)
        data = next((item[name] for name in names if _is_image(item.get(name))), None)
        if data is not None and not any(data == other.dataset for other in found):
            paths = tuple(f"{item.name}/{name}" for name in names)
            axes, parts = nexus_axes(item, data), paths if len(paths) > 1 else ()
            found.append(Candidate(paths[0], data, "NeXus", axes, order_of(axes), "", parts))
    return found


def emd(file: h5py.File) -> list[Candidate]:
    """EMD (Berkeley 0.x and emdfile 1.0): groups with ``emd_group_type`` and dim vectors."""
    found: list[Candidate] = []
    for group in _items(file, lambda one: "emd_group_type" in one.attrs):
        data = group.get("data") if isinstance(group, h5py.Group) else None
        if data is None or not _is_image(data):
            continue
        first = 0 if "dim0" in group else 1
        axes = tuple(vector_axis(group.get(f"dim{i + first}")) for i in range(data.ndim))
        # HyperSpy stores the axes of EMD 0.2 in reverse.
        order, notes = order_of(axes, reverse=first == 1), list[str]()
        if order is None and data.ndim > 2:
            notes.append(
                f"its axes do not say which is time: taken as {default_order(data.shape)}; "
                "if that is wrong, say which with --axes"
            )
        elif order != order_of(axes):
            notes.append(
                f"axes x and y are not named: taken as {order}, in reverse, as HyperSpy "
                "stores them; if that is wrong, say which with --axes"
            )
        found.append(Candidate(f"{group.name}/data", data, "EMD", axes, order, notes=tuple(notes)))
    return found


def benchmark(file: h5py.File) -> list[Candidate]:
    """The em_denoise benchmark's data set: ``/images``, (N, H, W, 1)."""
    data = file.get("images")
    if not _is_image(data) or data.ndim not in (3, 4):
        return []
    order = "tyxc" if data.ndim == 4 else "tyx"
    return [Candidate("/images", data, "em_denoise benchmark", (Axis(),) * data.ndim, order)]


def plain(file: h5py.File) -> list[Candidate]:
    """Any HDF5: the numeric datasets of three or more axes, or else of two.

    When one is at least eight times as large as every other, it alone counts.
    """
    images = [
        item
        for item in _items(file, _is_image)
        if SIGMA_OF not in item.attrs and sorted(item.shape)[-2] >= _SMALLEST
    ]
    stacks = [item for item in images if item.ndim >= 3] or images
    stacks.sort(key=lambda item: item.size, reverse=True)
    if len(stacks) > 1 and stacks[0].size >= 8 * stacks[1].size:
        del stacks[1:]
    return [plain_candidate(str(item.name), item) for item in stacks]


def plain_candidate(path: str, data: h5py.Dataset) -> Candidate:
    """Describe a dataset of a file that follows no convention."""
    axes = scale_axes(data)
    order = order_of(axes)
    if order is None and "MATLAB_class" in data.attrs:
        # MATLAB's first index is HDF5's last.
        order = default_order(data.shape).translate({ord("y"): "x", ord("x"): "y"})
    return Candidate(path, data, "plain HDF5", axes, order)


Finder = Callable[[h5py.File], list[Candidate]]
CONVENTIONS: tuple[Finder, ...] = (velox, hyperspy, nexus, emd, benchmark, plain)


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


def _signal(group: h5py.Group) -> str:
    """Return the name of the signal: the group says it, or once the signal itself did."""
    if name := text_of(group.attrs.get("signal")):
        return name
    for name in group:
        item = group.get(name)
        if isinstance(item, h5py.Dataset) and str(item.attrs.get("signal")) == "1":
            return str(name)
    return ""


def _signals(group: h5py.Group) -> list[str]:
    """Return the signal, with its siblings where a detector counts its parts.

    A Dectris master has ``data_000001``, ``data_000002`` and so on, one of them
    marked: together they are the stack.
    """
    signal = _signal(group) or _FIRST_PART
    part = re.fullmatch(r"(.*_)\d{6}", signal)
    if not part:
        return [signal]
    every = re.compile(re.escape(part.group(1)) + r"\d{6}")
    return sorted(name for name in group if every.fullmatch(name))


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def order_of(axes: tuple[Axis, ...], *, reverse: bool = False) -> str | None:
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
    return with_channels(_lettered(len(axes), y, x), axes)


def _lettered(ndim: int, y: int, x: int) -> str:
    lead = iter(default_order((2,) * ndim)[:-2])
    return "".join("y" if i == y else "x" if i == x else next(lead) for i in range(ndim))


def with_channels(order: str, axes: tuple[Axis, ...]) -> str:
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
        detectors, index = facts.get("Detectors") or {}, facts["BinaryResult"].get("DetectorIndex")
        # Where no detector is named there is only one.
        only = next(iter(detectors.values())) if len(detectors) == 1 else {}
        own = detectors.get(f"Detector-{index}", only)
        detector = str(own.get("DetectorName") or facts["BinaryResult"].get("Detector") or "")
        size, units = facts["BinaryResult"]["PixelSize"], facts["BinaryResult"].get("PixelUnitX")
        y, x = (float(size[side]) for side in ("height", "width"))
        axes = Axis("y", str(units or "m"), y), Axis("x", str(units or "m"), x), axes[2]
    return axes, detector


def nexus_axes(group: h5py.Group, data: h5py.Dataset) -> tuple[Axis, ...]:
    """Follow the names in ``axes`` of an NXdata group, or, as they once were, of its signal."""
    value = group.attrs.get("axes", data.attrs.get("axes", ()))
    names = re.split("[:,]", text_of(value).strip("[]")) if text_of(value) else list(value)
    names = [text_of(name) for name in names][: data.ndim]
    names += ["."] * (data.ndim - len(names))
    return tuple(Axis() if name == "." else vector_axis(group.get(name), name) for name in names)


def scale_axes(data: h5py.Dataset) -> tuple[Axis, ...]:
    """Follow netCDF-style dimension scales where there are any."""
    return tuple(
        vector_axis(dim[0], dim.label or str(dim[0].name).rpartition("/")[2])
        if len(dim)
        else Axis(dim.label)
        for dim in data.dims
    )


def vector_axis(vector: Any, name: str = "") -> Axis:
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
