"""Open any supported file of frames.

A format is one module with ``open_frames(path, choice) -> Frames`` and one line
in `READERS`.
"""

import importlib
from os import PathLike
from pathlib import Path

from emdn_deploy.readers.frames import Axis, Choice, Frames
from emdn_models.errors import FormatError

READERS: dict[str, tuple[str, ...]] = {
    "hdf5": (".h5", ".hdf5", ".hdf", ".hspy", ".nxs", ".nx", ".emd", ".he5", ".mat"),
}

__all__ = ["READERS", "Axis", "Choice", "Frames", "open_frames"]

_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def open_frames(path: str | PathLike[str], choice: Choice = Choice()) -> Frames:  # noqa: B008
    """Open a file of frames by its suffix, or by its content where that says HDF5.

    Returns
    -------
    Frames
        A context manager; nothing but the header has been read.

    Raises
    ------
    FormatError
        If there is no such file, its format is unknown, or it is not what its
        name says.
    """
    file = Path(path)
    if not file.exists():
        raise FormatError(f"{file}: no such file")
    if file.is_dir():
        raise FormatError(f"{file}: is a folder; give a file of frames")
    try:
        with file.open("rb") as opened:
            head = opened.read(8)
    except OSError as error:
        raise FormatError(f"{file}: cannot be read ({error.strerror})") from error
    if not head:
        raise FormatError(f"{file}: is empty (0 bytes)")
    module = "hdf5" if head == _HDF5_SIGNATURE else module_for(file)
    opener = importlib.import_module(f"emdn_deploy.readers.{module}")
    frames: Frames = opener.open_frames(file, choice)
    return frames


def module_for(path: Path) -> str:
    """Return the reader's module for a suffix."""
    for module, suffixes in READERS.items():
        if path.suffix.lower() in suffixes:
            return module
    known = " ".join(suffix for suffixes in READERS.values() for suffix in suffixes)
    raise FormatError(f"{path}: unknown kind of file {path.suffix!r}; emdn reads {known}")
