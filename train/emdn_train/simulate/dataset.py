"""Simulated data sets in the layout of em_graphene_sim, made by several processes; the test split.

The fixed test split has every kind of frame at three levels of signal to noise. All quality
figures of the project are measured on it. It follows from its version alone: another frame,
another level or another simulator is another version.
"""

import json
import logging
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from multiprocessing import get_context, parent_process
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import polars as pl
import tifffile
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from threadpoolctl import threadpool_limits

from emdn_models import EmdnError, __version__
from emdn_models.errors import FormatError, OutputError
from emdn_models.files import locked, renamed
from emdn_models.hdf5 import written
from emdn_train.config import SIMULATION, SimulateConfig
from emdn_train.dataset import STEM
from emdn_train.simulate.scene import (
    LEAST_ELECTRONS,
    Exposure,
    Scene,
    draw_electrons,
    expose,
    expose_shot,
    make_scene,
    shots,
    specimen_scene,
    write_scene,
)

SETTINGS, LOCK = "simulation.json", "simulate.lock"
_CHUNK = 8  # specimens that a process makes at a time

# The first number of every seed, so that no structure of one split is in another.
SPLIT_SEEDS: Mapping[str, int] = {"train": 0, "test": 1, "inference": 2}

# Of the fixed test split:
VERSION = 2
LEVELS = (0.12, 0.4, 1.2)
SCENES = 6
SIZE = 256
_PIXEL_SIZE_NM = (0.008, 0.025)
_DEFECTS = (0.005, 0.04)  # point defects per site: enough of them to tell methods apart

# Second number of the seeds; data sets use 0 to 3.
_SEED = 7

_log = logging.getLogger(__name__)


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


class Recorded(NamedTuple):
    """The frames of one specimen, and its scenes by name, one for each of its states."""

    exposures: list[Exposure]
    scenes: dict[str, Scene]


def simulate_frames(config: SimulateConfig) -> Path:
    """Make a data set; of one that an interrupted run has begun, the splits that are missing.

    Returns
    -------
    The folder, with ``train/``, ``test/`` (frames in HDF5, ``*_metadata.parquet``,
    ``*_structures.h5``) and ``inference/raw|truth``.

    Raises
    ------
    OutputError
        If the folder holds anything else than a data set of this very config, another
        process is at work there, or the disk is full: the same config then goes on.
    EmdnError
        If a worker dies.
    """
    out, total = Path(config.out), sum(config.count(split) for split in SPLIT_SEEDS)
    columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with (
        claimed(out, config),
        Progress("simulating", *columns, console=Console(stderr=True)) as progress,
    ):
        size, free = total * config.size**2 * 8 / 1e9, shutil.disk_usage(out).free / 1e9
        _log.info("%s: takes %.2g GB; %.2g GB are free", out, size, free)
        bar = progress.add_task("", total=total)
        for split in SPLIT_SEEDS:
            if _finished(out, split):
                _log.info("%s: has its %d %s frames already", out, config.count(split), split)
                progress.advance(bar, config.count(split))
                continue
            specimens = range(-(-config.count(split) // config.images_per_structure))
            made = _made(partial(record, config, split), specimens, config)
            counted = _counted(made, partial(progress.advance, bar))
            (_write_pictures if split == "inference" else _write_split)(config, split, out, counted)
    return out


def _finished(out: Path, split: str) -> bool:
    if split == "inference":
        return (out / "inference").is_dir()
    return (out / split / f"{STEM}_clean.h5").exists()


def _made(
    make: Callable[[int], Recorded], specimens: range, config: SimulateConfig
) -> Iterator[Recorded]:
    """Record specimens in their order, by several processes if asked for."""
    if config.workers == 1:
        yield from map(make, specimens)
        return
    pool = ProcessPoolExecutor(config.workers, get_context("spawn"), _begin_worker)
    try:
        yield from pool.map(make, specimens, chunksize=_CHUNK)
    except BrokenProcessPool as error:
        raise EmdnError(
            f"{config.out}: a worker died, perhaps for want of memory; "
            "run the same command again, with fewer workers"
        ) from error
    finally:
        # After an error or an interrupt what waits must not be worked off first.
        pool.shutdown(cancel_futures=True)


def _counted(made: Iterable[Recorded], advance: Callable[[int], None]) -> Iterator[Recorded]:
    for one in made:
        yield one
        advance(len(one.exposures))


def _begin_worker() -> None:
    """Leave Ctrl-C to the parent, and end with it, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    if (parent := parent_process()) is not None:
        parent.join()
        os._exit(1)


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit BLAS, OpenMP and torch to one thread, inside a ``with`` or as a decorator.

    Results must not depend on how sums are split. And the arrays are small: left alone,
    OpenBLAS more than doubles the processor time of a pair by spinning.
    """
    before = torch.get_num_threads()
    with threadpool_limits(limits=1):
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)


@one_thread()
def record(config: SimulateConfig, split: str, number: int) -> Recorded:
    """Draw a split's specimen of a number, and take its images, fewer of the last one."""
    exposures: list[Exposure] = []
    scenes: dict[str, Scene] = {}
    per = config.images_per_structure
    frames = min(per, config.count(split) - number * per)
    for state in range(config.states):
        # All states draw the same specimen, optics and beam.
        rng = np.random.default_rng([config.seed, SPLIT_SEEDS[split], number])
        scene = make_scene(
            config.kind, config.size, config.pixel_size_nm, rng, config.defects, state
        )
        scenes[f"{number}-{state}" if state else f"{number}"] = scene
        count = min(per // config.states, frames - len(exposures))
        for image, shot in enumerate(shots(scene, count, rng)):
            electrons = draw_electrons(config, shot.contrast, shot.share, scene.field.pixel_a, rng)
            exposure = expose_shot(scene, shot, electrons, config.detector, rng)
            place = {"structure": number, "state": state, "image": image}
            exposures.append(exposure._replace(row=place | exposure.row))
    return Recorded(exposures, scenes)


def _write_split(config: SimulateConfig, split: str, out: Path, made: Iterable[Recorded]) -> None:
    """Write the frames of a split; its clean file comes last and means: finished."""
    folder = out / split
    folder.mkdir(exist_ok=True)
    rows: list[dict[str, Any]] = []
    with (
        written(folder / f"{STEM}_clean.h5") as clean_out,
        written(folder / f"{STEM}_noise.h5") as noisy_out,
        written(folder / f"{STEM}_structures.h5") as structures_out,
    ):
        outs = (clean_out, noisy_out, structures_out)
        for one in outs:
            stamp(one.file, settings=config.identity())
        clean, noisy = (images(one.file, config.count(split), config.size) for one in outs[:2])
        for exposures, scenes in made:
            here = slice(len(rows), len(rows) + len(exposures))
            clean[here, :, :, 0] = np.stack([exposure.clean for exposure in exposures])
            noisy[here, :, :, 0] = np.stack([exposure.noisy for exposure in exposures])
            rows += [exposure.row for exposure in exposures]
            for name, scene in scenes.items():
                write_scene(structures_out.file.create_group(name), scene)
            for one in outs:
                one.check()
        store_table(folder / f"{STEM}_metadata.parquet", rows)


def _write_pictures(
    config: SimulateConfig, split: str, out: Path, made: Iterable[Recorded]
) -> None:
    """Write ``raw`` and ``truth`` of the frames to denoise, as TIFF."""
    folder = out / f"{split}.partial"
    shutil.rmtree(folder, ignore_errors=True)
    rows: list[dict[str, Any]] = []
    for part in ("raw", "truth"):
        (folder / part).mkdir(parents=True)
    for exposure in (exposure for one in made for exposure in one.exposures):
        for part, frame in (("raw", exposure.noisy), ("truth", exposure.clean)):
            name = f"frame_{len(rows):04d}.tif"
            store(folder / part / name, partial(tifffile.imwrite, data=frame))
        rows.append(exposure.row)
    store_table(folder / "metadata.parquet", rows)
    folder.replace(out / split)


@contextmanager
def claimed(out: Path, config: SimulateConfig) -> Iterator[None]:
    """Lock a folder while this config's data set is made there.

    Raises
    ------
    OutputError
        If another process is at work there, or the folder holds anything else than this
        data set, or what a run that was killed leaves of it.
    """
    out.mkdir(parents=True, exist_ok=True)
    settings = out / SETTINGS
    with locked(out / LOCK, out):
        if settings.exists():
            if settings.read_text(encoding="utf-8") != config.identity():
                raise OutputError(
                    f"{out}: holds a data set of other settings (see {settings}); "
                    "give the same settings to continue it, or another folder"
                )
        elif {path.name for path in out.iterdir()} - {LOCK, f"{SETTINGS}.partial"}:
            raise OutputError(f"{out}: is not empty and no simulated data set; give another folder")
        else:
            with renamed(settings) as partial:
                partial.write_text(config.identity(), encoding="utf-8")
        yield


def stamp(file: h5py.File, **more: str | int) -> None:
    """Say in an HDF5 file what wrote it."""
    for name, value in (SIMULATION | {"emdn_version": __version__} | more).items():
        file.attrs[name] = value


def images(file: h5py.File, count: int, size: int) -> h5py.Dataset:
    """Create the frames of a split, (count, size, size, 1), in electrons."""
    shape = (count, size, size, 1)
    dataset = file.create_dataset("images", shape, "f4", chunks=(1, *shape[1:]))
    dataset.attrs["units"] = "electrons"
    return dataset


def store(path: Path, write: Callable[[BytesIO], Any]) -> None:
    """Write a small file in one go; ``write`` gets a buffer to put its contents in."""
    buffer = BytesIO()
    write(buffer)
    with renamed(path) as partial:
        partial.write_bytes(buffer.getvalue())


def store_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write how each frame was made, a row a frame."""
    table = pl.DataFrame(rows, infer_schema_length=None).with_row_index("frame")
    store(path, table.write_parquet)


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
