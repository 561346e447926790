"""NumPy ``.npy``, with the calibration and the record of the run in a JSON file beside it."""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from emdn_deploy.readers.frames import Frames
from emdn_deploy.writers import Layout, Provenance, Storage, partial_of


def lay_out(target: Path, frames: Frames, provenance: Provenance, storage: Storage) -> Layout:
    """Write the header, in the input's shape if frames come last, and the space for the pixels."""
    last = frames.order.removesuffix("c").endswith("yx")
    same = last and math.prod(frames.stored_shape) == math.prod(frames.shape)
    shape = frames.stored_shape if same else frames.shape
    array = np.lib.format.open_memmap(target, "w+", storage.kind, shape)
    start = int(array.offset)
    del array
    axes = [
        {"name": name, "units": axis.units, "step": axis.step, "origin": axis.origin}
        for name, axis in (("y", frames.axis("y")), ("x", frames.axis("x")))
    ]
    facts = {"axes": axes, "emdn": dict(provenance)}
    _draft(target).write_text(json.dumps(facts), encoding="utf-8")
    return Layout.contiguous(start, frames, storage, storage.kind.str)


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
