"""MRC2014, mode 2, voxel size in angstrom."""

from pathlib import Path
from typing import Any

import mrcfile
import numpy as np

from emdn_deploy.calibration import step_in
from emdn_deploy.readers import READERS, Frames
from emdn_deploy.writers.layout import Layout, Provenance


def lay_out(target: Path, frames: Frames, provenance: Provenance) -> Layout:
    """Write the headers and the space for the pixels."""
    count, height, width = frames.shape
    with mrcfile.new_mmap(target, frames.shape, mrc_mode=2, overwrite=True) as file:
        file.set_image_stack()
        steps = [step_in(frames.axis(letter), "Å") for letter in "xy"]
        if steps[0] and steps[1]:
            file.voxel_size = (steps[0], steps[1], steps[0])
        file.add_label(f"emdn {provenance['version']}: denoised by {provenance['model']}"[:80])
        _keep_extended_header(file, frames.path)
        start = 1024 + int(file.header.nsymbt)
        kind = file.data.dtype.newbyteorder("=").str
    offsets = start + np.arange(count, dtype=np.int64) * height * width * 4
    return Layout(offsets, kind)


def finish(path: Path, late: Provenance) -> None:
    """Write the statistics of the pixels into the header."""
    with mrcfile.mmap(path, "r+", permissive=True) as file:
        for name in ("min", "max", "mean"):
            file.header[f"d{name}"] = late[f"output_{name}"]
        file.header.rms = late["output_std"]


def _keep_extended_header(file: Any, source: Path) -> None:
    if source.is_file() and source.suffix.lower() in READERS["mrc"]:
        with mrcfile.mmap(source, "r", permissive=True) as original:
            if original.extended_header is not None and original.extended_header.nbytes:
                file.set_extended_header(original.extended_header)
                file.header.exttyp = original.header.exttyp
