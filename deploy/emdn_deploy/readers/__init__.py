"""Open any supported file, folder or pattern of frames.

A format is one module with ``open_frames(path, choice) -> Frames`` (see
`emdn_deploy.readers.frames`) and one line in `READERS`. A folder or a pattern of files is one
stack in natural order: in-situ cameras write trees such as
``Hour_00/Minute_03/Second_07/..._Frame_0012.dm4``.
"""

import glob
import importlib
import logging
import re
from collections import Counter
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdn_deploy.readers.frames import Axis, Choice, Frames, select
from emdn_models.errors import EmdnError, FormatError

READERS: dict[str, tuple[str, ...]] = {
    "hdf5": (".h5", ".hdf5", ".hdf", ".hspy", ".nxs", ".nx", ".emd", ".he5", ".mat"),
    "dm": (".dm3", ".dm4"),
    "ser": (".ser",),
    "mrc": (".mrc", ".mrcs", ".map", ".rec", ".st"),
    "tiff": (".tif", ".tiff", ".btf", ".tf8", ".eer"),
    "npy": (".npy",),
    "zarr": (".zarr",),
}
"""Suffixes by kind of file; files of one kind make a stack."""

__all__ = ["READERS", "Axis", "Choice", "Frames", "is_hdf5", "is_pattern", "is_zarr", "list_files"]
__all__ += ["open_frames", "open_list", "open_selected", "split_pattern"]

_SUFFIXES = {suffix: kind for kind, known in READERS.items() for suffix in known}
# Kinds that share a module with others.
_MODULES = {
    **dict.fromkeys(("dm", "ser", "other"), "vendors"),
    **dict.fromkeys(("mrc", "npy", "zarr"), "mrc_npy_zarr"),
}
_PACKED = (".gz", ".bz2", ".xz", ".zip", ".npz")
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_ZARR = (".zarray", ".zgroup", "zarr.json")
# What names of outputs hold by default, and what those of their standard deviations end in.
_DENOISED, _SIGMA = "_denoised", "_sigma"

_log = logging.getLogger(__name__)


def open_frames(
    path: str | PathLike[str],
    choice: Choice = Choice(),  # noqa: B008
    *,
    cut: bool = False,
) -> Frames:
    """Open frames: a file by its suffix (or its content, for HDF5), a folder, a pattern.

    Nothing but the header is read; what is returned is a context manager. Raises FormatError if
    there is no such file, its format is unknown, it is not what its name says, or, unless ``cut``,
    it is cut short.
    """
    source = Path(path)
    if (source.is_dir() and not is_zarr(source)) or is_pattern(source):
        return open_list(source, find(source), choice)
    return _open_file(source, choice, cut=cut)


def open_selected(source: Path, choice: Choice, selection: str | None) -> Frames:
    """Open frames and take some of them: slices ``start:stop:step`` or numbers; None for all."""
    frames = open_frames(source, choice, cut=selection is not None)
    try:
        return frames if selection is None else select(frames, selection)
    except BaseException:
        frames.release()
        raise


def is_pattern(source: Path) -> bool:
    """Say whether a path is a pattern such as ``run/*.dm4`` and not a file."""
    return any(mark in str(source) for mark in "*?[") and not source.exists()


def is_hdf5(path: Path) -> bool:
    """Say whether a file begins as HDF5 does."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as opened:
            return opened.read(8) == _HDF5_SIGNATURE
    except OSError:
        return False


def is_zarr(path: Path) -> bool:
    """Say whether a folder is a Zarr store."""
    return any((path / name).is_file() for name in _ZARR)


def _open_file(path: Path, choice: Choice, *, cut: bool = False) -> Frames:
    kind = _kind_of(path)
    opener = importlib.import_module(f"emdn_deploy.readers.{_MODULES.get(kind, kind)}")
    try:
        frames: Frames = opener.open_frames(path, choice)
    except EmdnError:
        raise
    except Exception as error:  # parsers stumble over damage in ways of their own
        raise FormatError(
            f"{path}: is cut short, damaged or no {(path.suffix[1:] or kind).upper()} file "
            f"({type(error).__name__}: {error}); copy it again"
        ) from error
    if frames.missing and not cut:
        frames.release()
        raise FormatError(f"{path}: {frames.missing}")
    return frames


def _kind_of(path: Path) -> str:
    """Return the kind of a file, by its content or suffix."""
    suffix = path.suffix.lower()
    if is_zarr(path):
        return "zarr"
    if not path.is_file():  # frames of a pipe, say, cannot be read twice
        raise FormatError(f"{path}: {'is no regular' if path.exists() else 'no such'} file")
    if is_hdf5(path):
        return "hdf5"
    if suffix in _PACKED:
        raise FormatError(
            f"{path}: is packed; unpack it first, such as with gunzip, or save the frames of an "
            ".npz file alone by numpy.save"
        )
    return _SUFFIXES.get(suffix, "other")


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """Sort numbers inside names by value: ``frame_9`` before ``frame_10``."""
    parts = re.split(r"(\d+)", str(path))
    # Superscripts are digits to str.isdigit, but no decimal numbers.
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def split_pattern(source: Path) -> tuple[Path, str]:
    """Split a pattern into the folder it searches and the rest.

    What exists is meant as it is written: ``MIB[FAIL] run/*.npy``.
    """
    folder, parts = Path(), list(source.parts)
    while parts and (not glob.has_magic(parts[0]) or (folder / parts[0]).is_dir()):
        folder /= parts.pop(0)
    return folder, "/".join(parts)


def list_files(source: Path) -> list[Path]:
    """List the files of frames in a folder (to any depth), or of a pattern, in natural order.

    Hidden files, and maps of what emdn has not finished, are left out.
    """
    folder, pattern = (source, "**/*") if source.is_dir() else split_pattern(source)
    named = {*_SUFFIXES, Path(pattern).suffix.lower()}  # a pattern may ask for any
    return sorted(
        (
            path
            for name in glob.glob(pattern, root_dir=folder, recursive=True)
            if (path := folder / name).suffix.lower() in named
            and path.is_file()
            and not path.name.endswith(".partial.map")
        ),
        key=_natural,
    )


def find(source: Path) -> list[Path]:
    """List the frames of a folder or a pattern, without what emdn made of them.

    Denoised files are left out, and said, where there are others and the name of folder or pattern
    does not ask for them; so are standard deviations beside their frames. Raises FormatError if
    there are none, or files of several kinds.
    """
    found = list_files(source)
    sigmas = {path.with_name(f"{path.stem}{_SIGMA}{path.suffix}") for path in found}
    paths = [path for path in found if path not in sigmas]
    if _DENOISED not in source.resolve().name:
        paths = [path for path in paths if _DENOISED not in path.stem] or paths
    if left := len(found) - len(paths):
        _log.info("%s: %d files by emdn are left out (%s...)", source, left, _DENOISED)
    if not paths:
        raise FormatError(f"{source}: holds no files of frames that emdn reads")
    kinds = Counter(path.suffix.lower() for path in paths)
    if len({_SUFFIXES.get(suffix, suffix) for suffix in kinds}) > 1:
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        raise FormatError(
            f"{source}: holds files of several kinds ({listed}); "
            f"choose one with a pattern in quotes, such as '{source}/*{kinds.most_common()[0][0]}'"
        )
    return paths


def open_list(source: Path, paths: list[Path], choice: Choice) -> Frames:
    """Open files as one stack, in the order given; ``source`` is what they are called.

    Raises FormatError if one does not fit the first: here, or when it is read.
    """
    with _open_file(paths[0], choice) as first:
        # What is known of the first file is taken to hold for all.
        keys = ("photometric", "orientation")
        known = {key: first.metadata[key] for key in keys if key in first.metadata}
    counts, size = [first.shape[0]] * len(paths), first.shape[1:]
    if counts[0] > 1:
        for number, path in enumerate(paths):
            with _open_file(path, choice) as frames:
                counts[number] = frames.shape[0]
    ends = np.cumsum(counts)

    def read(start: int, stop: int) -> NDArray[Any]:
        parts = []
        while start < stop:
            index = int(np.searchsorted(ends, start, side="right"))
            begin = int(ends[index]) - counts[index]
            end = min(stop, int(ends[index]))
            with _open_file(paths[index], choice) as frames:
                if frames.shape != (counts[index], *size):
                    raise FormatError(
                        f"{paths[index]}: has shape {frames.shape}, {paths[0].name} has "
                        f"{first.shape}; a stack needs frames of one size"
                    )
                parts.append(np.array(frames.read_block(start - begin, end - begin)))
            start = end
        return np.concatenate(parts)

    return Frames(
        path=source,
        format=f"{len(paths)} files, {first.format}",
        shape=(int(ends[-1]), *size),
        dtype=first.dtype,
        order="tyx",
        stored_shape=(int(ends[-1]), *size),
        axes=(Axis("frame"), first.axis("y"), first.axis("x")),
        read_block=read,
        release=lambda: None,
        why=f"in natural order, {paths[0].name} to {paths[-1].name}",
        metadata=known | ({"in each": f"{first.dataset} {first.order}"} if first.dataset else {}),
        notes=first.notes,
        files=tuple(paths),
    )
