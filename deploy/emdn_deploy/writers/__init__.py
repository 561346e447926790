"""Lay out an output file.

A format is one module with ``lay_out(target, frames, provenance) -> Layout`` and one
line in `WRITERS`. HDF5 to HDF5 is special: the input is mirrored.
"""

import importlib
from pathlib import Path

from emdn_deploy.readers import READERS
from emdn_deploy.readers.frames import Frames
from emdn_deploy.writers.layout import Layout, Provenance
from emdn_models.errors import OutputError

WRITERS: dict[str, tuple[str, ...]] = {
    "combined": READERS["hdf5"],
    "mrc": (".mrc", ".mrcs"),
    "tiff": (".tif", ".tiff"),
    "npy": (".npy",),
}

__all__ = ["WRITERS", "Layout", "Provenance", "lay_out", "module_for"]


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


def lay_out(module: str, partial: Path, frames: Frames, provenance: Provenance) -> Layout:
    """Write the whole file but its pixels, with a writer chosen by `module_for`."""
    writer = importlib.import_module(f"emdn_deploy.writers.{module}")
    layout: Layout = writer.lay_out(partial, frames, provenance)
    return layout
