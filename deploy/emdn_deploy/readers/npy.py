"""NumPy ``.npy`` files, never unpickled."""

from pathlib import Path

import numpy as np

from emdn_deploy.readers.arrays import array_frames, unmapped
from emdn_deploy.readers.frames import Choice, Frames
from emdn_models.errors import FormatError


def open_frames(path: Path, choice: Choice) -> Frames:
    """Open an array of frames.

    Raises
    ------
    FormatError
        If it is damaged, holds objects, or is not frames.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise FormatError(f"{path}: cannot be read as .npy ({error})") from error
    return array_frames(path, "NumPy array", unmapped(path, array), choice)
