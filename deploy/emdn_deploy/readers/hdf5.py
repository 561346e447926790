"""HDF5 of every convention: choose the dataset, then read it lazily."""

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from emdn_deploy.readers import rechunk
from emdn_deploy.readers.frames import (
    Choice,
    Frames,
    Offer,
    SeveralStacks,
    array_frames,
    check_guess,
    default_order,
)
from emdn_deploy.readers.hdf5_conventions import CONVENTIONS, Candidate, plain_candidate, text_of
from emdn_models import hdf5
from emdn_models.errors import FormatError, MissingExtraError, install


def open_frames(path: Path, choice: Choice) -> Frames:
    """Open the frames of an HDF5 file.

    Raises FormatError if the file is damaged, holds no frames, or holds several stacks and
    ``choice`` does not say which.
    """
    file = open_file(path)
    try:
        candidate, why = choose(path, file, choice)
        return frames_of(path, file, candidate, choice, why, complete=True)
    except BaseException:
        file.close()
        raise


def open_file(path: Path) -> h5py.File:
    """Open an HDF5 file for reading, with its errors in plain words."""
    try:
        return h5py.File(path, "r")
    except OSError as error:
        text = str(error)
        if "signature not found" in text:
            raise FormatError(f"{path}: is not an HDF5 file, whatever its name says") from error
        if "truncated" in text:
            raise FormatError(f"{path}: is a truncated HDF5 file; copy it again") from error
        raise FormatError(f"{path}: cannot be opened as HDF5 ({text})") from error


def choose(path: Path, file: h5py.File, choice: Choice) -> tuple[Candidate, str]:
    """Return the dataset to take and the reason in words."""
    if file.attrs.get("format") == hdf5.CHECKPOINT:
        raise FormatError(f"{path}: holds weights of models, not frames")
    _check_damage(path, file)
    try:
        # All that the first convention to match offers.
        found = next(filter(None, (find(file) for find in CONVENTIONS)), [])
    except FormatError:
        if choice.dataset is None:
            raise
        found = []
    if choice.dataset is not None:
        return _asked(path, file, choice.dataset, found), "asked for by --dataset"
    if not found:
        raise FormatError(
            f"{path}: holds no numeric dataset of two or more axes; "
            "name one with --dataset if the frames are somewhere special"
        )
    convention = found[0].convention
    if len(found) > 1:
        offers = [Offer.of(one.path, one.dataset, one.label) for one in found]
        raise SeveralStacks(path, f"stacks ({convention})", offers)
    why = f"marked as the frames by the file ({convention})"
    if convention == "plain HDF5":
        why = "the only large numeric dataset"
    return found[0], f"{why}, {len(found[0].parts)} parts in order" if found[0].parts else why


def _check_damage(path: Path, file: h5py.File) -> None:
    """Refuse damage on which libhdf5 crashes or goes round for ever (FormatError)."""
    try:
        hdf5.check_heaps(path)
        hdf5.check_attributes(file.id)
        h5py.h5o.visit(file.id, lambda name: hdf5.check_attributes(h5py.h5o.open(file.id, name)))
    except ValueError as error:
        raise FormatError(f"{path}: is damaged: {error}; copy it again") from error


def _asked(path: Path, file: h5py.File, name: str, found: list[Candidate]) -> Candidate:
    """Find a dataset by its path, the group around it, a part of either, or its label."""
    item = file.get(name)
    if not isinstance(item, h5py.Dataset):
        within = f"/{name.strip('/')}/"
        inside = [one for one in found if within in one.path or one.label.lower() == name.lower()]
        if len(inside) == 1:
            return inside[0]
        names = [Offer.of(one.path, one.dataset, one.label).name for one in found]
        offered = ", ".join([*names[:8], *(["..."] if names[8:] else [])])
        what = f"{len(inside)} datasets in or called" if inside else "no dataset"
        raise FormatError(f"{path}: has {what} {name!r}; it offers {offered or 'none'}")
    for one in found:
        if one.dataset == item:
            return replace(one, parts=())
    if item.shape is None or item.ndim < 2:
        raise FormatError(f"{path}: {name} has shape {item.shape}, expected two axes or more")
    return plain_candidate("/" + name.strip("/"), item)


def order_in(file: h5py.File, one: Candidate) -> str:
    """Return one letter per stored axis: what the file says, or the default."""
    return one.order or _recorded(file, one) or default_order(one.dataset.shape)


def _recorded(file: h5py.File, one: Candidate) -> str | None:
    """Return the order by which an earlier run of emdn read the frames that it mirrored."""
    record = file.get("emdn")
    if not isinstance(record, h5py.Group) or text_of(record.attrs.get("frames")) != one.path:
        return None
    order = text_of(record.attrs.get("input_axes"))
    return order if len(order) == one.dataset.ndim else None


def _load_filters(path: Path, dataset: h5py.Dataset) -> None:
    """Import hdf5plugin (bitshuffle, LZ4, Blosc, zstd) only where a dataset needs it."""

    def missing() -> str:
        codes = [code for code in rechunk.filters_of(dataset) if not h5py.h5z.filter_avail(code)]
        known = {32001: "Blosc", 32004: "LZ4", 32008: "bitshuffle", 32015: "Zstandard"}
        return " and ".join(f"{code} ({known.get(code, 'unknown')})" for code in codes)

    if not (lacking := missing()):
        return
    try:
        import hdf5plugin  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f"{path}: {dataset.name} is compressed by HDF5 filter {lacking}; "
            f"to read it: {install('filters')}"
        ) from error
    if lacking := missing():
        raise FormatError(
            f"{path}: {dataset.name} is compressed by filter {lacking}, "
            "which hdf5plugin does not have; store it with gzip, LZ4 or zstd"
        )


def _unwritten(datasets: list[h5py.Dataset]) -> tuple[str, ...]:
    """Say how much of a stack was never written, and reads as the file's fill value."""
    chunked = [one for one in datasets if one.chunks]
    there = sum(one.id.get_num_chunks() for one in chunked)
    all_of_it = sum(
        math.prod(np.ceil(np.divide(one.shape, one.chunks)).astype(int).tolist()) for one in chunked
    )
    if there == all_of_it:
        return ()
    return (
        f"{all_of_it - there} of {all_of_it} chunks were never written and read as "
        f"{chunked[0].fillvalue}: an acquisition that was stopped? --frames takes those before",
    )


def _files_behind(path: Path, dataset: h5py.Dataset) -> set[Path]:
    """List the files that pixels come from, behind links and virtual datasets too.

    A source that is missing is of no concern here: HDF5 reads fill values for it. Raises
    FormatError if a virtual dataset leads back to itself, in which libhdf5 crashes.
    """
    found, known = set[Path](), set[tuple[str, int]]()

    def walk(one: h5py.Dataset, above: tuple[tuple[str, int], ...]) -> None:
        folder = Path(one.file.filename).parent
        own = os.path.realpath(one.file.filename), int(h5py.h5o.get_info(one.id).addr)
        if own in above:
            raise FormatError(
                f"{path}: the virtual dataset {dataset.name} leads back to itself; it holds "
                "no frames: write it again with the right sources"
            )
        if own in known:
            return
        known.add(own)
        found.add(Path(one.file.filename))
        # HDF5 takes the names of raw files from the working folder.
        found.update(Path(name) for name, _, _ in one.external or () if Path(name).is_file())
        sources = one.virtual_sources() if one.is_virtual else ()
        for name, inside in {(source.file_name, source.dset_name) for source in sources}:
            if name == ".":
                item = one.file.get(inside)
                if isinstance(item, h5py.Dataset):
                    walk(item, (*above, own))
            elif (folder / name).is_file():
                found.add(folder / name)
                try:
                    with h5py.File(folder / name) as file:
                        if isinstance(item := file.get(inside), h5py.Dataset):
                            walk(item, (*above, own))
                except OSError:
                    continue

    walk(dataset, ())
    return found


def frames_of(
    path: Path,
    file: h5py.File,
    one: Candidate,
    choice: Choice,
    why: str,
    *,
    complete: bool = False,
) -> Frames:
    """Wrap a chosen dataset; releasing the frames closes the file.

    ``complete``: whether nothing more is appended: the shape is judged, and frames that are stored
    far apart are remembered.
    """
    order = one.order or _recorded(file, one)
    letters = choice.axes or order or default_order(one.dataset.shape)
    array = _joined(path, file, one.parts, letters) if one.parts else one.dataset
    datasets = array.datasets if isinstance(array, Parts) else [array]
    sources: set[Path] = set()
    for dataset in datasets:
        _load_filters(path, dataset)
        sources |= _files_behind(path, dataset)
    metadata = {"chunks": str(array.chunks or "contiguous")}
    metadata |= {"detector": one.label} if one.label else {}
    if one.parts:
        metadata["parts"] = f"{one.parts[0]} to {one.parts[-1]}"
    notes = () if choice.axes or order != one.order else one.notes
    if complete:
        if not (choice.axes or order):
            notes += check_guess(f"{path}: {one.path}", array.shape)
        notes += _unwritten(datasets)
    name = one.convention if one.convention == "plain HDF5" else f"HDF5 ({one.convention})"
    frames = array_frames(
        path, name, array, choice, order=order, axes=one.axes, dataset=one.path,
        why=why, metadata=metadata, notes=notes, release=file.close,
        compressed=bool(rechunk.filters_of(one.dataset)),
    )  # fmt: skip
    # All files that pixels come from, the one that was opened first.
    names = {os.path.realpath(place): place for place in sources}
    names.pop(os.path.realpath(path), None)
    files = (path, *(names[real] for real in sorted(names)))
    frames = replace(frames, parts=one.parts, files=files)
    return rechunk.remembered(frames, array, letters) if complete else frames


class Parts:
    """A stack in several datasets, joined along their first axis and indexed like one.

    A Dectris master links to ``data_000001``, ``data_000002``..., each in a file of its own.
    Nothing is read before it is asked for.
    """

    def __init__(self, datasets: list[h5py.Dataset]) -> None:
        first = datasets[0]
        self.datasets = datasets
        self.dtype: np.dtype[Any] = first.dtype
        self.chunks: tuple[int, ...] | None = first.chunks
        self._ends = np.cumsum([len(data) for data in datasets])
        self.shape: tuple[int, ...] = (int(self._ends[-1]), *first.shape[1:])

    def __getitem__(self, where: tuple[Any, ...]) -> NDArray[Any]:
        first, *rest = where
        if not isinstance(first, slice):
            frame: NDArray[Any] = self[(slice(first, first + 1), *rest)][0]
            return frame
        start, stop, _ = first.indices(self.shape[0])
        pieces = []
        for data, end in zip(self.datasets, self._ends.tolist(), strict=True):
            begin = end - len(data)
            if begin < stop and end > start:
                inside = slice(max(start, begin) - begin, min(stop, end) - begin)
                pieces.append(data[(inside, *rest)])
        return np.concatenate(pieces)


def _joined(path: Path, file: h5py.File, names: tuple[str, ...], order: str) -> Parts:
    """Join datasets whose first axis counts frames; FormatError if they do not fit together."""
    datasets: list[h5py.Dataset] = []
    for name in names:
        data = file.get(name)
        if not isinstance(data, h5py.Dataset):
            place = getattr(file.get(name, getlink=True), "filename", "no dataset")
            raise FormatError(
                f"{path}: {name}, part of the stack, leads to {place}, which is missing or "
                "damaged; put it back, or take a single part with --dataset PATH"
            )
        datasets.append(data)
        first = datasets[0]
        same = (data.dtype, data.ndim, data.shape[1:]) == (first.dtype, first.ndim, first.shape[1:])
        if not same or order[0] in "yx":
            raise FormatError(
                f"{path}: {name} has shape {data.shape}, {data.dtype}, axes {order}, and "
                f"{names[0]} {first.shape}, {first.dtype}; parts of a stack need frames of one "
                "size and type, the frames first: take a single part with --dataset PATH"
            )
    return Parts(datasets)
