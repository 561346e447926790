"""MRC2014, mode 2 unless integers are asked for, voxel size in angstrom."""

import logging
import warnings
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np

from emdn_deploy.readers import READERS, Frames
from emdn_deploy.writers import Layout, Provenance, Storage

_log = logging.getLogger(__name__)


def lay_out(target: Path, frames: Frames, provenance: Provenance, storage: Storage) -> Layout:
    """Write the headers and the space for the pixels."""
    mode = mrcfile.utils.mode_from_dtype(np.dtype(storage.dtype))
    with mrcfile.new_mmap(target, frames.shape, mrc_mode=mode, overwrite=True) as file:
        file.set_image_stack()
        steps = [frames.axis(letter).step_in("Å") for letter in "xy"]
        if steps[0] and steps[1]:
            file.voxel_size = (steps[0], steps[1], steps[0])
        what = provenance.get("content", f"denoised by {provenance['model']}")
        file.add_label(f"emdn {provenance['version']}: {what}"[:80])
        _keep_extended_header(file, frames)
        start = 1024 + int(file.header.nsymbt)
        kind = file.data.dtype.newbyteorder("=").str
    return Layout.contiguous(start, frames, storage, kind)


def finish(path: Path, late: Provenance) -> None:
    """Write the statistics of the pixels into the header."""
    with mrcfile.mmap(path, "r+", permissive=True) as file:
        for name in ("min", "max", "mean"):
            file.header[f"d{name}"] = late[f"output_{name}"]
        file.header.rms = late["output_std"]
        if file.data.dtype.kind != "f":
            kind, count = file.data.dtype.name, late["saturated_pixels"]
            file.add_label(f"emdn: stored as {kind}, {count} pixels saturated")


def _keep_extended_header(file: Any, frames: Frames) -> None:
    """Copy what the input says of each frame, such as tilts, where all frames are taken."""
    if not (frames.path.is_file() and frames.path.suffix.lower() in READERS["mrc"]):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reader has said it
        with mrcfile.open(frames.path, permissive=True, header_only=True) as original:
            header, extended = original.header, original.extended_header
    if extended is None or not extended.nbytes:
        return
    if frames.numbers is not None:
        _log.warning("warning: %s: tilts and the like of some frames are left out", frames.path)
        return
    content = extended.tobytes()
    file.set_extended_header(np.frombuffer(content, f"V{len(content)}"))
    file.header.exttyp = header.exttyp
    # Bytes 128 to 132 of the header tell how long SerialEM's and Agard's records are.
    lengths = np.frombuffer(header.extra2.tobytes()[16:20], f"{header.mode.dtype.str[0]}i2")
    own = bytearray(file.header.extra2.tobytes())
    own[16:20] = lengths.astype("<i2").tobytes()
    file.header.extra2 = bytes(own)
