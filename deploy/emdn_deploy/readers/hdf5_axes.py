"""How the HDF5 conventions name and calibrate the axes of their frames."""

import json
import re
from typing import Any

import h5py
import numpy as np

from emdn_deploy.readers.frames import Axis, default_order
from emdn_deploy.readers.guarded import read
from emdn_models.errors import FormatError

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


def order_of(axes: tuple[Axis, ...], *, reverse: bool = False) -> str | None:
    """Tell from names and units which axes are those of the frame.

    Parameters
    ----------
    reverse
        Whether two axes that are not told apart are (x, y) where all others follow them,
        as in files whose axes are stored the other way round.

    Returns
    -------
    str or None
        One letter per stored axis; None if names and units do not decide.
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
    lead = iter(default_order((2,) * len(axes))[:-2])
    letters = ["y" if i == y else "x" if i == x else next(lead) for i in range(len(axes))]
    return with_channels("".join(letters), axes)


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


def velox_facts(group: h5py.Group) -> dict[str, Any]:
    """Return the JSON that Velox writes with the first frame, empty where it is damaged."""
    try:
        raw = np.asarray(read(group["Metadata"], np.s_[:, 0]), dtype=np.uint8).tobytes()
        facts = json.loads(raw.split(b"\0", 1)[0])
    except (KeyError, ValueError, TypeError, OSError, RecursionError, FormatError):
        return {}
    return facts if isinstance(facts, dict) else {}


def velox_axes(facts: dict[str, Any]) -> tuple[Axis, ...]:
    """Read the pixel size, in metres."""
    try:
        result = facts["BinaryResult"]
        size, units = result["PixelSize"], str(result.get("PixelUnitX", "m"))
        y, x = float(size["height"]), float(size["width"])
    except (KeyError, ValueError, TypeError, AttributeError):
        return Axis("y"), Axis("x"), Axis("frame")
    return Axis("y", units, y), Axis("x", units, x), Axis("frame")


def velox_detector(facts: dict[str, Any]) -> str:
    """Return the name of the detector that recorded the frames, empty where it is not said."""
    result, detectors = facts.get("BinaryResult"), facts.get("Detectors")
    if not isinstance(result, dict):
        return ""
    if isinstance(detectors, dict):
        own = detectors.get(f"Detector-{result.get('DetectorIndex')}")
        # Where no detector is named there is only one.
        own = next(iter(detectors.values())) if own is None and len(detectors) == 1 else own
        if isinstance(own, dict) and own.get("DetectorName"):
            return str(own["DetectorName"])
    return str(result.get("Detector") or "")


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
    first, second = (float(value) for value in read(vector, slice(2)))
    return Axis(name, units, second - first, first)


def text_of(value: Any) -> str:
    """Return an attribute as text, empty where it is none."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()  # MATLAB and others store arrays of one
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) else ""
