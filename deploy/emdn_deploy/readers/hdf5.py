"""HDF5 of every convention: choose the dataset, then read it lazily."""

import math
from dataclasses import replace
from pathlib import Path

import h5py

from emdn_deploy.readers import mode, parts, scratch
from emdn_deploy.readers.arrays import array_frames
from emdn_deploy.readers.frames import Choice, Frames, check_guess, default_order
from emdn_deploy.readers.guarded import Guarded, check_tree
from emdn_deploy.readers.hdf5_axes import text_of
from emdn_deploy.readers.hdf5_conventions import CONVENTIONS, Candidate, plain_candidate
from emdn_deploy.readers.offers import Offer, SeveralStacks
from emdn_models import checkpoint
from emdn_models.errors import FormatError


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
        cache = scratch.cache_bytes(candidate.dataset, choice.axes or order_in(file, candidate))
        if cache is not None:
            # HDF5 sizes its chunk cache when a file is opened.
            file.close()
            file = open_file(path, cache)
            candidate, why = choose(path, file, choice)
        return frames_of(path, file, candidate, choice, why, complete=True)
    except BaseException:
        file.close()
        raise


def open_file(path: Path, cache_bytes: int | None = None) -> h5py.File:
    """Open an HDF5 file for reading, with its errors in plain words."""
    slots = {} if cache_bytes is None else {"rdcc_nbytes": cache_bytes, "rdcc_nslots": 100_003}
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
    check_tree(path, file)
    try:
        found = candidates(file)
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
    if len(found) > 1:
        offers = [Offer.of(one.path, one.dataset, one.label) for one in found]
        raise SeveralStacks(path, f"stacks ({found[0].convention})", offers)
    reason = {"plain HDF5": "the only large numeric dataset"}
    convention = found[0].convention
    why = reason.get(convention, f"marked as the frames by the file ({convention})")
    return found[0], f"{why}, {len(found[0].parts)} parts in order" if found[0].parts else why


def _asked(path: Path, file: h5py.File, name: str, found: list[Candidate]) -> Candidate:
    item = file.get(name)
    inside = [one for one in found if _within(one, name) or one.label.lower() == name.lower()]
    if not isinstance(item, h5py.Dataset):
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


def _within(one: Candidate, name: str) -> bool:
    """Say whether a candidate lies in the group ``name``, a path or a part of one."""
    return f"/{name.strip('/')}/" in one.path


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
    settings = dataset.id.get_create_plist()
    filters = [settings.get_filter(i) for i in range(settings.get_nfilters())]
    if all(h5py.h5z.filter_avail(code) for code, *_ in filters):
        return
    import hdf5plugin  # noqa: F401

    for code, *_, name in filters:
        if not h5py.h5z.filter_avail(code):
            raise FormatError(
                f"{path}: {dataset.name} is compressed by filter {code} ({name.decode()}), "
                "which hdf5plugin does not have; store it with gzip, LZ4 or zstd"
            )


def _unwritten(datasets: list[h5py.Dataset]) -> tuple[str, ...]:
    """Say how much of a stack was never written, and reads as the file's fill value."""
    chunked = [one for one in datasets if one.chunks]
    there = sum(one.id.get_num_chunks() for one in chunked)
    all_of_it = sum(
        math.prod(-(-length // chunk) for length, chunk in zip(one.shape, one.chunks, strict=True))
        for one in chunked
    )
    if there == all_of_it:
        return ()
    return (
        f"{all_of_it - there} of {all_of_it} chunks were never written and read as "
        f"{chunked[0].fillvalue}: an acquisition that was stopped? --frames takes those before",
    )


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

    Parameters
    ----------
    complete
        Whether nothing more is appended: the shape is judged, and frames that are stored
        far apart are read through a scratch file.
    """
    order = one.order or _recorded(file, one)
    letters = choice.axes or order or default_order(one.dataset.shape)
    array = parts.join(path, file, one.parts, letters) if one.parts else Guarded(path, one.dataset)
    guarded = array.datasets if isinstance(array, parts.Parts) else [array]
    datasets = [part.dataset for part in guarded]
    for dataset in datasets:
        _load_filters(path, dataset)
    metadata = {"chunks": str(array.chunks or "contiguous")}
    metadata |= mode.from_hdf5(file, one.path, one.convention)
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
        compressed=bool(one.dataset.id.get_create_plist().get_nfilters()),
    )  # fmt: skip
    frames = replace(frames, parts=one.parts, files=_files(path, datasets))
    if not complete:
        return frames
    # What HDF5 itself need not decode is decoded in parts, where chunks are large.
    return scratch.unpacked(frames, array if one.parts else one.dataset, letters)


def _files(path: Path, datasets: list[h5py.Dataset]) -> tuple[Path, ...]:
    """List the files that pixels come from, behind links and virtual datasets too."""
    found = {path: None}
    for dataset in datasets:
        own = Path(dataset.file.filename)
        names = [own.name, *(name for name, *_ in dataset.external or ())]
        if dataset.is_virtual:
            names += [source.file_name for source in dataset.virtual_sources()]
        found |= {own.parent / name: None for name in names if name != "."}
    return tuple(one for one in found if one.exists())
