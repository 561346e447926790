"""The fixed test split: every kind of frame at three levels of signal to noise.

All quality figures of the project are measured on it. It follows from its version alone:
another frame, another level or another simulator is another version.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from emdn_models.errors import FormatError, OutputError
from emdn_models.hdf5 import written
from emdn_train.dataset import STEM
from emdn_train.simulate.dataset import images, store_table
from emdn_train.simulate.folder import one_thread, stamp
from emdn_train.simulate.scene import (
    LEAST_ELECTRONS,
    Exposure,
    Scene,
    expose,
    expose_shot,
    shots,
    specimen_scene,
    write_scene,
)

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
    with written(partial / f"{STEM}_structures.h5") as out_file:
        structures = out_file.file
        for index, name in enumerate(PARTS):
            for scene in range(scenes):
                number = len(structures)
                shown, recorded = _recorded(name, (index, scene), number, LEVELS)
                write_scene(structures.create_group(str(number)), shown)
                exposures += recorded
            _log.info("%s: %d frames", name, scenes * len(LEVELS))
        if multislice is not None:
            exposures += _multislice(structures, Path(multislice))
            _log.info("with multislice: %d frames", len(exposures))
    store_table(partial / f"{STEM}_metadata.parquet", [one.row for one in exposures])
    for name, field in (("noise", "noisy"), ("clean", "clean")):
        with written(partial / f"{STEM}_{name}.h5") as out_file:
            stamp(out_file.file, test_split_version=VERSION)
            frames = images(out_file.file, len(exposures), SIZE)
            for index, exposure in enumerate(exposures):
                frames[index, :, :, 0] = getattr(exposure, field)
    partial.replace(folder)
    return Path(out)


@one_thread()
def first_specimens(levels: Sequence[float]) -> list[Exposure]:
    """Record one specimen of each simulated part at some levels: a split in small, in memory.

    Returns
    -------
    Exposures whose rows have the columns ``part``, ``level`` and ``mode``.
    """
    parts = (_recorded(name, (index, 0), index, levels)[1] for index, name in enumerate(PARTS))
    return [exposure for exposures in parts for exposure in exposures]


def _electrons(level: float, contrast: float) -> float:
    return max((level / contrast) ** 2, LEAST_ELECTRONS)


def _recorded(
    name: str, seed: tuple[int, int], number: int, levels: Sequence[float]
) -> tuple[Scene, list[Exposure]]:
    rng, part = np.random.default_rng([VERSION, _SEED, *seed]), PARTS[name]
    scene = specimen_scene(part.recipe, part.mode, SIZE, _PIXEL_SIZE_NM, rng, _DEFECTS)
    shot = next(shots(scene, 1, rng))
    exposures = []
    for level in levels:
        electrons = _electrons(level, shot.contrast)
        exposure = expose_shot(scene, shot, electrons, part.detector, rng)
        place = {"structure": number, "part": name, "level": level}
        exposures.append(exposure._replace(row=place | exposure.row))
    return scene, exposures


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
                "structure": number,
                "part": f"multislice {row['material']}",
                "level": level,
                **row,
                "kind": "multislice",
                "mode": "hrtem",
                "crystalline": True,
                "defects": len(structures[f"{number}/names"]),
                "snr": row["contrast"] * electrons**0.5,
                "dose_e_per_a2": electrons / (10 * row["pixel_size_nm"]) ** 2,
            }
            yield exposure._replace(row=made | exposure.row)
