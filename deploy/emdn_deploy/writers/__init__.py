"""Lay out an output file.

A format is one module with ``lay_out(target, frames, provenance) -> Layout`` and one
line in `WRITERS`.
"""

import importlib
from pathlib import Path

from emdn_deploy.readers.frames import Frames
from emdn_deploy.writers.layout import Layout, Provenance
from emdn_models.errors import OutputError

WRITERS: dict[str, tuple[str, ...]] = {
    "mirror": (".h5", ".hdf5", ".hdf", ".hspy", ".nxs", ".nx", ".emd", ".he5", ".mat"),
}

__all__ = ["WRITERS", "Layout", "Provenance", "lay_out", "module_for"]


def module_for(target: Path) -> str:
    """Return the writer's module for the suffix of an output.

    Raises
    ------
    OutputError
        If no writer has this suffix.
    """
    for module, suffixes in WRITERS.items():
        if target.suffix.lower() in suffixes:
            return module
    known = " ".join(suffix for suffixes in WRITERS.values() for suffix in suffixes)
    raise OutputError(f"{target}: unknown kind of file {target.suffix!r}; emdn writes {known}")


def lay_out(module: str, partial: Path, frames: Frames, provenance: Provenance) -> Layout:
    """Write the whole file but its pixels, with a writer chosen by `module_for`."""
    writer = importlib.import_module(f"emdn_deploy.writers.{module}")
    layout: Layout = writer.lay_out(partial, frames, provenance)
    return layout
