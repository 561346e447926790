"""NumPy ``.npy``, with the calibration and the record of the run in a JSON file beside it."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from emdn_deploy.readers.frames import Frames
from emdn_deploy.writers.layout import Layout, Provenance, Storage, partial_of


def lay_out(target: Path, frames: Frames, provenance: Provenance, storage: Storage) -> Layout:
    """Write the header and the space for the pixels."""
    array = np.lib.format.open_memmap(target, "w+", storage.kind, frames.shape)
    start = int(array.offset)
    del array
    offsets = start + np.arange(frames.shape[0], dtype=np.int64) * storage.size(frames.shape[1:])
    axes = [
        {"name": name, "units": axis.units, "step": axis.step, "origin": axis.origin}
        for name, axis in (("y", frames.axis("y")), ("x", frames.axis("x")))
    ]
    _draft(target).write_text(
        json.dumps({"axes": axes, "emdn": dict(provenance)}), encoding="utf-8"
    )
    return Layout(offsets, storage.kind.str)


def finish(path: Path, late: Provenance) -> None:
    """Complete the record."""
    facts: dict[str, Any] = json.loads(_draft(path).read_text(encoding="utf-8"))
    facts["emdn"].update(late)
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(json.dumps(facts, indent=1), encoding="utf-8")
    os.replace(fresh, _draft(path))


def sidecar(target: Path) -> Path:
    """Name the JSON file of an output."""
    return target.with_name(target.name + ".json")


def _draft(partial: Path) -> Path:
    return partial_of(sidecar(partial.with_name(partial.name.removesuffix(".partial"))))
