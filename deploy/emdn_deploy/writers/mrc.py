"""MRC2014, mode 2 unless integers are asked for, voxel size in angstrom."""

from pathlib import Path
from typing import Any

import mrcfile
import numpy as np

from emdn_deploy.calibration import step_in
from emdn_deploy.readers import READERS, Frames
from emdn_deploy.writers.layout import Layout, Provenance, Storage


def lay_out(target: Path, frames: Frames, provenance: Provenance, storage: Storage) -> Layout:
    """Write the headers and the space for the pixels."""
    mode = mrcfile.utils.mode_from_dtype(np.dtype(storage.dtype))
    with mrcfile.new_mmap(target, frames.shape, mrc_mode=mode, overwrite=True) as file:
        file.set_image_stack()
        steps = [step_in(frames.axis(letter), "Å") for letter in "xy"]
        if steps[0] and steps[1]:
            file.voxel_size = (steps[0], steps[1], steps[0])
        what = provenance.get("content", f"denoised by {provenance['model']}")
        file.add_label(f"emdn {provenance['version']}: {what}"[:80])
        _keep_extended_header(file, frames.path)
        start = 1024 + int(file.header.nsymbt)
        kind = file.data.dtype.newbyteorder("=").str
    offsets = start + np.arange(frames.shape[0], dtype=np.int64) * storage.size(frames.shape[1:])
    return Layout(offsets, kind)


def finish(path: Path, late: Provenance) -> None:
    """Write the statistics of the pixels into the header."""
    with mrcfile.mmap(path, "r+", permissive=True) as file:
        for name in ("min", "max", "mean"):
            file.header[f"d{name}"] = late[f"output_{name}"]
        file.header.rms = late["output_std"]
        if file.data.dtype.kind != "f":
            kind, count = file.data.dtype.name, late["saturated_pixels"]
            file.add_label(f"emdn: stored as {kind}, {count} pixels saturated")


def _keep_extended_header(file: Any, source: Path) -> None:
    if source.is_file() and source.suffix.lower() in READERS["mrc"]:
        with mrcfile.mmap(source, "r", permissive=True) as original:
            if original.extended_header is not None and original.extended_header.nbytes:
                file.set_extended_header(original.extended_header)
                file.header.exttyp = original.header.exttyp
