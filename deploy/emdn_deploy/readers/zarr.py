"""Zarr stores, versions 2 and 3: OME-Zarr images with their calibration, or plain arrays."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from emdn_deploy.readers.frames import Axis, Choice, Frames, Offer, array_frames, choose
from emdn_models.errors import library

UNITS = {
    "picometer": "pm", "angstrom": "Å", "nanometer": "nm", "micrometer": "µm", "millimeter": "mm",
    "meter": "m", "microsecond": "µs", "millisecond": "ms", "second": "s",
}  # fmt: skip
"""The short names of OME's units."""


def open_frames(path: Path, choice: Choice) -> Frames:
    """Open an array of a store; of a multiscale image its first level, which has all pixels.

    Raises FormatError if the store holds no frames, or several stacks and ``choice`` does not say
    which, and MissingExtraError without zarr.
    """
    root = library("zarr", "zarr", path).open(path, mode="r")
    nodes = [root]
    if hasattr(root, "members"):
        nodes += [node for _, node in root.members(max_depth=None)]
    found = [one for node in nodes if hasattr(node, "members") for one in _images(node)]
    found = found or [(node, ()) for node in nodes if getattr(node, "ndim", 0) > 1]
    offers = [Offer.of(array.path, array) for array, _ in found]
    index, why, notes = choose(path, "stacks (Zarr)", offers, choice)
    array, axes = found[index]
    letters = [axis.name[:1].lower() for axis in axes]
    order = "".join(letters) if len({*letters}) == array.ndim == len(letters) else None
    if missing := array.nchunks - array.nchunks_initialized:
        notes += (f"{missing} of {array.nchunks} chunks are missing, read as {array.fill_value}",)
    frames = array_frames(
        path, f"Zarr {array.metadata.zarr_format}", array, choice, order=order, axes=axes,
        dataset=array.path, why=why, notes=notes, compressed=bool(array.compressors),
    )  # fmt: skip
    stored = sorted(one for one in (path / array.path).rglob("*") if one.is_file())
    return replace(frames, files=tuple(stored))


def _images(group: Any) -> Iterator[tuple[Any, tuple[Axis, ...]]]:
    """Yield the first level of each multiscale image of a group, and its axes."""
    known = group.attrs.asdict()
    known = known.get("ome", known)  # from OME-Zarr 0.5 on
    for image in known.get("multiscales", []) if "image-label" not in known else []:
        level = image["datasets"][0]
        array = group[level["path"]]
        steps, origins = np.ones(array.ndim), np.zeros(array.ndim)
        for place in (level, image):
            for change in place.get("coordinateTransformations", []):
                factor = change.get("scale", 1.0)
                steps, origins = steps * factor, origins * factor + change.get("translation", 0.0)
        axes = []
        for one, step, origin in zip(image.get("axes", []), steps, origins, strict=False):
            axis = one if isinstance(one, dict) else {"name": one}  # version 0.3
            unit = UNITS.get(unit := str(axis.get("unit", "")), unit)
            size = float(step) if unit or step != 1 else None
            axes.append(Axis(str(axis["name"]), unit, size, float(origin)))
        yield array, tuple(axes)
