"""The fixed test split: every kind of frame at three levels of signal to noise.

All quality figures of the project are measured on it. It follows from its version alone:
another frame, another level or another simulator is another version.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import polars as pl

from emdn_models import __version__
from emdn_models.errors import FormatError, OutputError
from emdn_models.files import renamed
from emdn_models.hdf5 import written
from emdn_train.dataset import STEM
from emdn_train.simulate.config import FORMAT, FORMAT_VERSION
from emdn_train.simulate.exposure import LEAST_ELECTRONS, Exposure, expose
from emdn_train.simulate.files import store
from emdn_train.simulate.scene import Scene, shots, specimen_scene
from emdn_train.simulate.shard import exposed, write_scene
from emdn_train.simulate.threads import one_thread

_log = logging.getLogger(__name__)

VERSION = 2
LEVELS = (0.12, 0.4, 1.2)
SCENES = 6
SIZE = 256
_PIXEL_SIZE_NM = (0.008, 0.025)
_DEFECTS = (0.005, 0.04)  # point defects per site: enough of them to tell methods apart

# Second number of the seeds; data sets use 0 to 3.
_SEED = 7


class Part(NamedTuple):
    """One kind of frame in the split."""

    recipe: str
    mode: str = "hrtem"
    detector: str = "counting"


PARTS: dict[str, Part] = {
    "graphene": Part("graphene"),
    "graphene, CCD": Part("graphene", detector="ccd"),
    "dichalcogenide": Part("dichalcogenide"),
    "particle": Part("particle"),
    "strontium titanate": Part("strontium titanate"),
    "amorphous carbon": Part("amorphous carbon"),
    "random lattice": Part("random lattice"),
    "graphene, STEM": Part("graphene", mode="stem"),
    "dichalcogenide, STEM": Part("dichalcogenide", mode="stem"),
}


@one_thread()
def write_test_split(
    out: str | PathLike[str],
    multislice: str | PathLike[str] | None = None,
    *,
    scenes: int = SCENES,
) -> Path:
    """Write ``test/`` of a data set; ``open_split(out, "test")`` reads it.

    Every clean frame comes at each of ``LEVELS``. The table says so in its columns ``part``
    and ``level``; ``snr`` is higher than the level where fewer than 0.05 electrons a
    pixel would be left of it.

    Parameters
    ----------
    multislice
        Frames made by ``tests/data/make_multislice.py``, recorded at the same levels and
        added as parts ``multislice ...``.
    scenes
        Specimens a part; another number than the default is not the fixed split.

    Returns
    -------
    The folder ``out``.

    Raises
    ------
    OutputError
        If ``out`` holds a test split already.
    FormatError
        If ``multislice`` is not a file of such frames.
    """
    folder = Path(out) / "test"
    if folder.exists():
        raise OutputError(f"{folder}: exists; give a new folder or remove it")
    partial = folder.with_name("test.partial")
    partial.mkdir(parents=True, exist_ok=True)
    exposures: list[Exposure] = []
    with renamed(partial / f"{STEM}_structures.h5") as path, written(path) as out_file:
        structures = out_file.file
        for index, (name, part) in enumerate(PARTS.items()):
            for scene in range(scenes):
                exposures += _simulated(structures, name, part, (index, scene))
            _log.info("%s: %d frames", name, scenes * len(LEVELS))
        if multislice is not None:
            exposures += _multislice(structures, Path(multislice))
            _log.info("with multislice: %d frames", len(exposures))
    rows = [exposure.row for exposure in exposures]
    table = pl.DataFrame(rows, infer_schema_length=None).with_row_index("frame")
    store(partial / f"{STEM}_metadata.parquet", table.write_parquet)
    for name, field in (("noise", "noisy"), ("clean", "clean")):
        with renamed(partial / f"{STEM}_{name}.h5") as path, written(path) as out_file:
            file = out_file.file
            file.attrs["format"] = FORMAT
            file.attrs["format_version"] = FORMAT_VERSION
            file.attrs["emdn_version"] = __version__
            file.attrs["test_split_version"] = VERSION
            shape = (len(exposures), SIZE, SIZE, 1)
            images = file.create_dataset("images", shape, "f4", chunks=(1, *shape[1:]))
            images.attrs["units"] = "electrons"
            for index, exposure in enumerate(exposures):
                images[index, :, :, 0] = getattr(exposure, field)
    partial.replace(folder)
    return Path(out)


@one_thread()
def first_specimens(levels: Sequence[float]) -> list[Exposure]:
    """Record one specimen of each simulated part at some levels: a split in small, in memory.

    Returns
    -------
    Exposures whose rows have the columns ``part``, ``level`` and ``mode``.
    """
    return [
        _labelled(exposure, index, name, level, {})
        for index, (name, part) in enumerate(PARTS.items())
        for level, exposure in zip(levels, _recorded(part, (index, 0), levels)[1], strict=True)
    ]


def _electrons(level: float, contrast: float) -> float:
    return max((level / contrast) ** 2, LEAST_ELECTRONS)


def _simulated(
    structures: h5py.File, name: str, part: Part, seed: tuple[int, int]
) -> Iterator[Exposure]:
    scene, exposures = _recorded(part, seed, LEVELS)
    number = len(structures)
    write_scene(structures.create_group(str(number)), scene)
    for level, exposure in zip(LEVELS, exposures, strict=True):
        yield _labelled(exposure, number, name, level, {})


def _recorded(
    part: Part, seed: tuple[int, int], levels: Sequence[float]
) -> tuple[Scene, list[Exposure]]:
    rng = np.random.default_rng([VERSION, _SEED, *seed])
    scene = specimen_scene(part.recipe, part.mode, SIZE, _PIXEL_SIZE_NM, rng, _DEFECTS)
    shot = next(shots(scene, 1, rng))
    doses = [_electrons(level, shot.contrast) for level in levels]
    return scene, [exposed(scene, shot, dose, part.detector, rng) for dose in doses]


def _multislice(structures: h5py.File, path: Path) -> Iterator[Exposure]:
    try:
        with h5py.File(path, "r") as file:
            frames = (file["images"][()] / file["images"].attrs["scale"]).astype(np.float32)
            known = json.loads(file["rows"][()])
            numbers = range(len(structures), len(structures) + len(frames))
            for index, number in enumerate(numbers):
                file.copy(file[f"structures/{index}"], structures, str(number))
    except (OSError, KeyError) as error:
        raise FormatError(
            f"{path}: is no file of multislice frames ({error}); "
            "expected one made by tests/data/make_multislice.py"
        ) from error
    rng = np.random.default_rng([VERSION, _SEED, len(PARTS), 1])
    for number, frame, row in zip(numbers, frames, known, strict=True):
        for level in LEVELS:
            electrons = _electrons(level, row["contrast"])
            exposure = expose(frame, electrons, "counting", int(rng.integers(2**62)))
            made = {
                **row,
                "kind": "multislice",
                "mode": "hrtem",
                "crystalline": True,
                "defects": len(structures[f"{number}/names"]),
                "snr": row["contrast"] * electrons**0.5,
                "dose_e_per_a2": electrons / (10 * row["pixel_size_nm"]) ** 2,
            }
            yield _labelled(exposure, number, f"multislice {row['material']}", level, made)


def _labelled(
    exposure: Exposure, number: int, part: str, level: float, more: dict[str, Any]
) -> Exposure:
    row = {"structure": number, "part": part, "level": level, **more, **exposure.row}
    return exposure._replace(row=row)
