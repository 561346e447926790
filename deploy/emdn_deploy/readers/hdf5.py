"""HDF5 of every convention: choose the dataset, then read it lazily."""

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np

from emdn_deploy.readers import mode, parts
from emdn_deploy.readers.arrays import array_frames
from emdn_deploy.readers.frames import Axis, Choice, Frames, default_order
from emdn_deploy.readers.hdf5_conventions import CONVENTIONS, Candidate
from emdn_deploy.readers.offers import Offer, SeveralStacks
from emdn_models import checkpoint
from emdn_models.errors import FormatError, MissingExtraError, install


def open_frames(path: Path, choice: Choice) -> Frames:
    """Open the frames of an HDF5 file.

    Raises
    ------
    FormatError
        If the file is damaged, holds no frames, or holds several stacks and
        ``choice`` does not say which.
    """
    file = open_file(path)
    try:
        candidate, why = choose(path, file, choice)
        need = _cache_bytes(candidate)
        if need:
            # HDF5 sizes its chunk cache when a file is opened.
            file.close()
            file = open_file(path, need)
            candidate, why = choose(path, file, choice)
        return frames_of(path, file, candidate, choice, why)
    except BaseException:
        file.close()
        raise


def open_file(path: Path, cache_bytes: int = 0) -> h5py.File:
    """Open an HDF5 file for reading, with its errors in plain words."""
    slots = {"rdcc_nbytes": cache_bytes, "rdcc_nslots": 100_003} if cache_bytes else {}
    try:
        return h5py.File(path, "r", **slots)
    except OSError as error:
        text = str(error)
        if "signature not found" in text:
            raise FormatError(f"{path}: is not an HDF5 file, whatever its name says") from error
        if "truncated" in text:
            raise FormatError(f"{path}: is a truncated HDF5 file; copy it again") from error
        raise FormatError(f"{path}: cannot be opened as HDF5 ({text})") from error


def candidates(file: h5py.File) -> list[Candidate]:
    """List what could be the frames: all that the first convention to match offers."""
    for find in CONVENTIONS:
        if found := find(file):
            return found
    return []


def choose(path: Path, file: h5py.File, choice: Choice) -> tuple[Candidate, str]:
    """Return the dataset to take and the reason in words."""
    if file.attrs.get("format") == checkpoint.FORMAT:
        raise FormatError(f"{path}: holds weights of models, not frames")
    found = candidates(file)
    if choice.dataset is not None:
        return _asked(path, file, choice.dataset, found), "asked for by --dataset"
    if not found:
        raise FormatError(
            f"{path}: holds no numeric dataset of two or more axes; "
            "name one with --dataset if the frames are somewhere special"
        )
    if len(found) > 1:
        offers = [Offer.of(one.path, one.dataset) for one in found]
        raise SeveralStacks(path, f"stacks ({found[0].convention})", offers)
    reason = {"plain HDF5": "the only large numeric dataset"}
    convention = found[0].convention
    why = reason.get(convention, f"marked as the frames by the file ({convention})")
    return found[0], f"{why}, {len(found[0].parts)} parts in order" if found[0].parts else why


def _asked(path: Path, file: h5py.File, name: str, found: list[Candidate]) -> Candidate:
    item = file.get(name)
    if isinstance(item, h5py.Group):
        inside = [one for one in found if one.path.startswith(f"{item.name}/")]
        if len(inside) == 1:
            return inside[0]
    if not isinstance(item, h5py.Dataset):
        offered = ", ".join(one.path for one in found) or "none"
        raise FormatError(f"{path}: has no dataset {name!r}; it offers {offered}")
    for one in found:
        if one.dataset == item:
            return replace(one, parts=())
    if item.shape is None or item.ndim < 2:
        raise FormatError(f"{path}: {name} has shape {item.shape}, expected two axes or more")
    order, axes = default_order(item.shape), (Axis(),) * item.ndim
    return Candidate("/" + name.strip("/"), item, "plain HDF5", order, axes)


def _cache_bytes(one: Candidate) -> int:
    """Return room for the chunks that a frame shares with the next ones, 0 if it shares none.

    They are then decoded once, not once per block of frames.
    """
    data = one.dataset
    shared = [
        chunk
        for chunk, letter in zip(data.chunks or (), one.order, strict=False)
        if letter not in "yx" and chunk > 1
    ]
    if not shared:
        return 0
    height, width = (data.shape[one.order.index(letter)] for letter in "yx")
    return int(1.5 * np.prod(shared) * height * width * data.dtype.itemsize)


def _load_filters(path: Path, dataset: h5py.Dataset) -> None:
    """Import hdf5plugin (bitshuffle, LZ4, Blosc, zstd) only where a dataset needs it."""
    settings = dataset.id.get_create_plist()
    filters = [settings.get_filter(i) for i in range(settings.get_nfilters())]
    if all(h5py.h5z.filter_avail(code) for code, *_ in filters):
        return
    try:
        import hdf5plugin  # noqa: F401
    except ImportError as error:
        missing = [
            f"{code} ({name.decode()})" if name else f"{code}"
            for code, *_, name in filters
            if not h5py.h5z.filter_avail(code)
        ]
        raise MissingExtraError(
            f"{path}: {dataset.name} is compressed by HDF5 filter {' and '.join(missing)}; "
            f"to read it: {install('filters')}"
        ) from error
    for code, *_, name in filters:
        if not h5py.h5z.filter_avail(code):
            raise FormatError(
                f"{path}: {dataset.name} is compressed by filter {code} ({name.decode()}), "
                "which hdf5plugin does not have; store it with gzip, LZ4 or zstd"
            )


def frames_of(path: Path, file: h5py.File, one: Candidate, choice: Choice, why: str) -> Frames:
    """Wrap a chosen dataset; releasing the frames closes the file."""
    array = (
        parts.join(path, file, one.parts, choice.axes or one.order) if one.parts else one.dataset
    )
    for dataset in array.datasets if one.parts else [array]:
        _load_filters(path, dataset)
    metadata = {"chunks": str(array.chunks or "contiguous")}
    metadata |= mode.from_hdf5(file, one.path, one.convention)
    if one.parts:
        metadata["parts"] = f"{one.parts[0]} to {one.parts[-1]}"
    order = None if one.order == default_order(one.dataset.shape) else one.order
    name = one.convention if one.convention == "plain HDF5" else f"HDF5 ({one.convention})"
    frames = array_frames(
        path, name, array, choice, order=order, axes=one.axes, dataset=one.path,
        why=why, metadata=metadata, release=file.close,
    )  # fmt: skip
    return replace(frames, parts=one.parts)
