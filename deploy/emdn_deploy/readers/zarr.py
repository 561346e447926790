"""Zarr stores, versions 2 and 3: OME-Zarr images with their calibration, or plain arrays."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from emdn_deploy.readers import rechunk
from emdn_deploy.readers.frames import (
    Axis,
    Choice,
    Frames,
    Offer,
    SeveralStacks,
    array_frames,
    check_guess,
    only_stack,
)
from emdn_models.errors import FormatError, MissingExtraError, install

UNITS = {
    "picometer": "pm", "angstrom": "Å", "nanometer": "nm", "micrometer": "µm", "millimeter": "mm",
    "meter": "m", "microsecond": "µs", "millisecond": "ms", "second": "s",
}  # fmt: skip
"""The short names of OME's units."""


def library(path: Path) -> ModuleType:
    """Import zarr, or say how to install it (MissingExtraError)."""
    try:
        import zarr
    except ImportError as error:
        raise MissingExtraError(f"{path}: needs zarr, version 3; {install('zarr')}") from error
    return zarr


def open_frames(path: Path, choice: Choice) -> Frames:
    """Open an array of a store; of a multiscale image its first level, which has all pixels.

    Raises FormatError if the store holds no frames, or several stacks and ``choice`` does not say
    which, and MissingExtraError without zarr.
    """
    root = library(path).open(path, mode="r")
    array, axes, why = _choose(path, list(_stacks(root)), choice)
    letters = [axis.name[:1].lower() for axis in axes]
    order = "".join(letters) if len({*letters}) == array.ndim == len(letters) else None
    notes = () if choice.axes or order else check_guess(str(path), array.shape)
    if missing := array.nchunks - array.nchunks_initialized:
        said = f"{missing} of {array.nchunks} chunks are missing, and read as {array.fill_value}"
        notes += (said,)
    frames = array_frames(
        path, f"Zarr {array.metadata.zarr_format}", array, choice, order=order, axes=axes,
        dataset=array.path, why=why, notes=notes, compressed=bool(array.compressors),
    )  # fmt: skip
    stored = tuple(sorted(one for one in (path / array.path).rglob("*") if one.is_file()))
    return rechunk.remembered(replace(frames, files=stored), array, choice.axes or frames.order)


def _choose(
    path: Path, found: list[tuple[Any, tuple[Axis, ...]]], choice: Choice
) -> tuple[Any, tuple[Axis, ...], str]:
    offers = [Offer.of(array.path, array) for array, _ in found]
    if choice.dataset is not None:
        name = choice.dataset.strip("/")
        asked = [one for one in found if name in (one[0].path, one[0].path.rpartition("/")[0])]
        if len(asked) == 1:
            return *asked[0], "asked for by --dataset"
        names = ", ".join(one.dataset for one in offers) or "none"
        raise FormatError(f"{path}: has no array {choice.dataset!r}; it offers {names}")
    if not found:
        raise FormatError(f"{path}: holds no array of two or more axes")
    if len(found) > 1:
        index, why = only_stack(offers)
        if index is None:
            raise SeveralStacks(path, "stacks (Zarr)", offers)
        return *found[index], why
    return *found[0], "the only image" if found[0][1] else "the only array"


def _stacks(root: Any) -> Iterator[tuple[Any, tuple[Axis, ...]]]:
    """Yield the images of OME-Zarr with their axes; where there are none, all arrays."""
    if not hasattr(root, "members"):
        yield root, ()
        return
    images = list(_images(root))
    nodes = [] if images else [node for _, node in root.members(max_depth=None)]
    images += [one for node in nodes if hasattr(node, "members") for one in _images(node)]
    yield from images
    if not images:
        yield from ((node, ()) for node in nodes if getattr(node, "ndim", 0) > 1)


def _images(group: Any) -> Iterator[tuple[Any, tuple[Axis, ...]]]:
    known = group.attrs.asdict()
    known = known.get("ome", known)  # from OME-Zarr 0.5 on
    for image in known.get("multiscales", []) if "image-label" not in known else []:
        level = image["datasets"][0]
        array = group[level["path"]]
        step, origin = np.ones(array.ndim), np.zeros(array.ndim)
        for change in (*level.get("coordinateTransformations", []),
                       *image.get("coordinateTransformations", [])):  # fmt: skip
            factor = change.get("scale", 1.0)
            step, origin = step * factor, origin * factor + change.get("translation", 0.0)
        axes = [one if isinstance(one, dict) else {"name": one} for one in image.get("axes", [])]
        given = [str(one.get("unit", "")) for one in axes]
        units = [UNITS.get(unit, unit) for unit in given]
        yield (
            array,
            tuple(
                Axis(
                    str(one["name"]), unit, float(size) if unit or size != 1 else None, float(start)
                )
                for one, unit, size, start in zip(axes, units, step, origin, strict=True)
            ),
        )
