"""Lay out an output file.

A format is one module with ``lay_out(target, frames, provenance, storage) -> Layout``
and one line in `WRITERS`. HDF5 to HDF5 is special: the input is mirrored.
"""

import importlib
from pathlib import Path

from emdn_deploy.readers import READERS
from emdn_deploy.readers.frames import Frames
from emdn_deploy.writers.layout import Layout, Provenance, Storage
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

__all__ = ["WRITERS", "Layout", "Provenance", "Storage", "check", "lay_out", "module_for"]


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


def lay_out(
    module: str, partial: Path, frames: Frames, provenance: Provenance, storage: Storage
) -> Layout:
    """Write the whole file but its pixels, with a writer chosen by `module_for`."""
    writer = importlib.import_module(f"emdn_deploy.writers.{module}")
    layout: Layout = writer.lay_out(partial, frames, provenance, storage)
    return layout
