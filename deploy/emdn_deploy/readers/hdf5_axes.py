"""How the HDF5 conventions calibrate the axes of their frames."""

import json
from typing import Any

import h5py
import numpy as np

from emdn_deploy.readers.frames import Axis
from emdn_deploy.readers.guarded import read


def velox_axes(group: h5py.Group) -> tuple[Axis, ...]:
    """Read the pixel size, in metres, from the JSON of the first frame."""
    try:
        raw = np.asarray(read(group["Metadata"], np.s_[:, 0]), dtype=np.uint8).tobytes()
        result = json.loads(raw.split(b"\0", 1)[0])["BinaryResult"]
        size, units = result["PixelSize"], str(result.get("PixelUnitX", "m"))
        y, x = float(size["height"]), float(size["width"])
    except (KeyError, ValueError, TypeError, OSError):
        return Axis("y"), Axis("x"), Axis("frame")
    return Axis("y", units, y), Axis("x", units, x), Axis("frame")


def nexus_axes(group: h5py.Group, data: h5py.Dataset) -> tuple[Axis, ...]:
    """Follow the names in an NXdata group's ``axes``."""
    names = group.attrs.get("axes", ())
    names = [names] if isinstance(names, str | bytes) else list(names)
    names = [text_of(name) for name in names][: data.ndim]
    names += ["."] * (data.ndim - len(names))
    return tuple(Axis() if name == "." else vector_axis(group.get(name), name) for name in names)


def scale_axes(data: h5py.Dataset) -> tuple[Axis, ...]:
    """Follow netCDF-style dimension scales where there are any."""
    return tuple(
        vector_axis(dim[0], dim.label) if len(dim) else Axis(dim.label) for dim in data.dims
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
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) else ""
