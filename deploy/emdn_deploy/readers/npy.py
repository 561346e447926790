"""NumPy ``.npy`` files, never unpickled."""

from pathlib import Path

import numpy as np

from emdn_deploy.readers import scratch
from emdn_deploy.readers.arrays import Plain, array_frames
from emdn_deploy.readers.frames import Choice, Frames, check_guess
from emdn_models.errors import FormatError


def open_frames(path: Path, choice: Choice) -> Frames:
    """Open an array of frames; FormatError if it is damaged, holds objects, or is not frames."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise FormatError(f"{path}: cannot be read as .npy ({error})") from error
    notes = () if choice.axes else check_guess(str(path), array.shape)
    if rest := path.stat().st_size - array.offset - array.nbytes:
        notes += (f"{rest} bytes after the first array, perhaps more arrays, are not read",)
    last = array.flags.f_contiguous and not array.flags.c_contiguous
    plain = Plain(path, array.offset, array.shape, array.dtype, fortran=last)
    frames = array_frames(path, "NumPy array", plain, choice, notes=notes)
    return scratch.unpacked(frames, plain, choice.axes or frames.order)
