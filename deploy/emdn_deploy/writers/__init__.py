"""Lay out an output file.

A format is one module with ``lay_out(target, frames, provenance, storage) -> Layout``
and one line in `WRITERS`. HDF5 to HDF5 is special: the input is mirrored.
"""

import importlib
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from emdn_deploy.readers import READERS
from emdn_deploy.readers.frames import Frames
from emdn_deploy.writers.layout import SIGMA, Layout, Provenance, Storage
from emdn_models.errors import OutputError

WRITERS: dict[str, tuple[str, ...]] = {
    "combined": READERS["hdf5"],
    "mrc": (".mrc", ".mrcs"),
    "tiff": (".tif", ".tiff"),
    "npy": (".npy",),
}

# Formats that hold some types only.
DTYPES: dict[str, tuple[str, ...]] = {"mrc": ("float32", "int8", "int16", "uint16")}
# Writers that can compress.
COMPRESS = ("combined", "mirror", "tiff")

# Writers that put standard deviations into the file of the frames, as SIGMA says.
INSIDE = ("combined", "mirror")

__all__ = [
    "WRITERS",
    "Layout",
    "Provenance",
    "Storage",
    "check",
    "check_room",
    "check_sigma",
    "compressed",
    "files_of",
    "human",
    "lay_out",
    "module_for",
    "sigma_file",
    "sigma_place",
]


def module_for(target: Path, *, mirror: bool) -> str:
    """Return the writer's module for the suffix of an output.

    Parameters
    ----------
    mirror
        Whether the input is HDF5 and all of its frames are wanted.

    Raises
    ------
    OutputError
        If no writer has this suffix.
    """
    for module, suffixes in WRITERS.items():
        if target.suffix.lower() in suffixes:
            return "mirror" if mirror and module == "combined" else module
    known = " ".join(suffix for suffixes in WRITERS.values() for suffix in suffixes)
    raise OutputError(f"{target}: unknown kind of file {target.suffix!r}; emdn writes {known}")


def check(target: Path, module: str, storage: Storage) -> None:
    """Refuse what a format cannot store.

    Raises
    ------
    OutputError
        Naming the formats that can.
    """
    held = DTYPES.get(module, (storage.dtype,))
    if storage.dtype not in held:
        raise OutputError(
            f"{target}: {module} files hold {', '.join(held)}, not {storage.dtype}; "
            "choose one of these with --dtype, or another kind of file with --to"
        )
    if storage.compress and module not in COMPRESS:
        raise OutputError(
            f"{target}: {module} files are not compressed; leave out --compress, "
            "or choose --to h5, hspy or tif"
        )


def compressed(module: str, frames: Frames, asked: bool | None) -> bool:
    """Say whether to compress an output: as asked, or as the input is, where that can be."""
    return asked if asked is not None else frames.compressed and module in COMPRESS


def check_room(target: Path, shape: tuple[int, ...], storage: Storage) -> str:
    """Say in words how large an output will be.

    Raises
    ------
    OutputError
        If its disk has less room.
    """
    size = storage.size(shape) + (4 * math.prod(shape) if storage.sigma else 0)
    words = f"{human(size)} of {storage.dtype}" + (" and sigma" if storage.sigma else "")
    if storage.compress:
        return f"{words} before compression"
    partial = target.with_name(target.name + ".partial")
    # What an interrupted run has written is there already.
    stat = partial.stat() if partial.exists() else None
    had = getattr(stat, "st_blocks", 0) * 512
    free = shutil.disk_usage(target.parent).free
    if size - had > free:
        raise OutputError(
            f"{target}: needs {words}, and its disk has {human(free)} free; make room, choose "
            "another one with --out-dir, or --compress or --dtype (both make it smaller)"
        )
    return words


def human(size: float) -> str:
    """Return a number of bytes in words."""
    for unit, least in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= least:
            return f"{size / least:.3g} {unit}"
    return f"{size / 1e3:.3g} kB"


def sigma_file(target: Path, module: str) -> Path | None:
    """Name the file of an output's standard deviations, None where they lie in the output."""
    return None if module in INSIDE else target.with_name(f"{target.stem}{SIGMA}{target.suffix}")


def files_of(target: Path, module: str, *, sigma: bool) -> list[Path]:
    """List the files of an output, that of the frames last."""
    beside = sigma_file(target, module) if sigma else None
    files = [target] if beside is None else [beside, target]
    sidecar = getattr(_writer(module), "sidecar", None)
    return [*([sidecar(file) for file in files] if sidecar else []), *files]


def sigma_place(target: Path, module: str, frames: Frames) -> str:
    """Say where an output's standard deviations lie: the path of a dataset, or of a file."""
    if beside := sigma_file(target, module):
        return str(beside)
    return f"{_writer(module).dataset_of(frames)}{SIGMA}"


def check_sigma(module: str, frames: Frames) -> None:
    """Refuse an input whose mirror has no place for standard deviations.

    Raises
    ------
    OutputError
        Naming what is in the way.
    """
    if module == "mirror":
        _writer(module).check_sigma(frames)


def lay_out(
    module: str,
    partial: Path,
    frames: Frames,
    provenance: Provenance,
    storage: Storage,
    beside: Path | None = None,
) -> Layout:
    """Write the whole file but its pixels, with a writer chosen by `module_for`.

    Parameters
    ----------
    beside
        Where the file of the standard deviations is laid out, if they have their own.
    """
    writer = _writer(module)
    layout: Layout = writer.lay_out(partial, frames, provenance, storage)
    if beside is not None:
        what = f"standard deviation of {partial.name.removesuffix('.partial')}"
        plain = Storage(compress=storage.compress)
        sigma = writer.lay_out(beside, frames, {**provenance, "content": what}, plain)
        layout = replace(layout, sigma=sigma)
    return layout


def _writer(module: str) -> ModuleType:
    return importlib.import_module(f"emdn_deploy.writers.{module}")
