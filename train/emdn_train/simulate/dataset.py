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
from itertools import chain
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
from emdn_models.files import locked, renamed, written
from emdn_train.config import SIMULATION, SimulateConfig
from emdn_train.dataset import STEM
from emdn_train.simulate.scene import (
    Exposure,
    draw_electrons,
    electrons_for,
    expose,
    expose_shot,
    make_scene,
    shots,
    specimen_scene,
)

SETTINGS, LOCK = "simulation.json", "simulate.lock"
_CHUNK = 8  # specimens that a process makes at a time

# The first number of every seed, so that no structure of one split is in another.
SPLIT_SEEDS: Mapping[str, int] = {"train": 0, "test": 1, "inference": 2}

# Of the fixed test split:
VERSION = 3
LEVELS = (0.12, 0.4, 1.2)
SCENES = 12
_RECORDINGS = 2  # of each multislice frame at each level
SIZE = 256
_PIXEL_SIZE_NM = (0.008, 0.025)
_DEFECTS = (0.005, 0.04)  # point defects per site: enough of them to tell methods apart
_SEED = (2, 7)  # the first numbers of the seeds; data sets have 0 to 3 for second

PARTS: Mapping[str, tuple[str, str, str]] = {
    "graphene": ("graphene", "hrtem", "counting"),
    "graphene, CCD": ("graphene", "hrtem", "ccd"),
    "dichalcogenide": ("dichalcogenide", "hrtem", "counting"),
    "particle": ("particle", "hrtem", "counting"),
    "strontium titanate": ("strontium titanate", "hrtem", "counting"),
    "amorphous carbon": ("amorphous carbon", "hrtem", "counting"),
    "random lattice": ("random lattice", "hrtem", "counting"),
    "graphene, STEM": ("graphene", "stem", "stem"),
    "dichalcogenide, STEM": ("dichalcogenide", "stem", "stem"),
}
"""Recipe, mode and detector of each kind of frame in the split."""

_log = logging.getLogger(__name__)


class Recorded(NamedTuple):
    """The frames of one specimen, and what is in them (`Scene.in_frame`), by state."""

    exposures: list[Exposure]
    scenes: dict[str, Mapping[str, Any]]


def simulate_frames(config: SimulateConfig) -> Path:
    """Make a data set, and return its folder; of one that is begun, the splits that are missing.

    It has ``train/``, ``test/`` (frames in HDF5, ``*_metadata.parquet``, ``*_structures.h5``) and
    ``inference/raw|truth``. OutputError if the folder holds anything else than a data set of this
    very config, another process is at work there, or the disk is full: the same config then goes
    on. EmdnError if a worker dies.
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
            frames, pictures = config.count(split), split == "inference"
            if (out / split / ("" if pictures else f"{STEM}_clean.h5")).exists():
                _log.info("%s: has its %d %s frames already", out, frames, split)
                progress.advance(bar, frames)
                continue
            made = _made(config, split, partial(progress.advance, bar))
            if pictures:
                _write_pictures(out / split, made)
            else:
                identity = {"settings": config.identity()}
                _write_split(out / split, made, frames, config.size, identity)
    return out


def _made(config: SimulateConfig, split: str, advance: Callable[[int], None]) -> Iterator[Recorded]:
    """Record a split's specimens in their order, by several processes if asked for."""
    make = partial(record, config, split)
    specimens = range(-(-config.count(split) // config.images_per_structure))
    pool = None
    try:
        if config.workers == 1:
            every: Iterable[Recorded] = map(make, specimens)
        else:
            pool = ProcessPoolExecutor(config.workers, get_context("spawn"), _begin_worker)
            every = pool.map(make, specimens, chunksize=_CHUNK)
        for one in every:
            yield one
            advance(len(one.exposures))
    except BrokenProcessPool as error:
        raise EmdnError(
            f"{config.out}: a worker died, perhaps for want of memory; "
            "run the same command again, with fewer workers"
        ) from error
    finally:
        if pool:  # after an error or an interrupt what waits must not be worked off first
            pool.shutdown(cancel_futures=True)


def _begin_worker() -> None:
    """Leave Ctrl-C to the parent, and end with it, however that ends."""

    def follow() -> None:
        if (parent := parent_process()) is not None:
            parent.join()
            os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=follow, daemon=True).start()


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
    made = Recorded([], {})
    per = config.images_per_structure
    frames = min(per, config.count(split) - number * per)
    for state in range(config.states):
        # All states draw the same specimen, optics and beam.
        rng = np.random.default_rng([config.seed, SPLIT_SEEDS[split], number])
        scene = make_scene(
            config.kind, config.size, config.pixel_size_nm, rng, config.defects, state
        )
        made.scenes[f"{number}-{state}" if state else f"{number}"] = scene.in_frame()
        count = min(per // config.states, frames - len(made.exposures))
        for image, shot in enumerate(shots(scene, count, rng)):
            electrons = draw_electrons(config, shot.contrast, shot.share, scene.field.pixel_a, rng)
            place = {"structure": number, "state": state, "image": image}
            made.exposures.append(
                expose_shot(scene, shot, electrons, config.detector, rng, **place)
            )
    return made


def _write_split(
    folder: Path, made: Iterable[Recorded], count: int, size: int, facts: Mapping[str, str | int]
) -> None:
    """Write the frames of a split; its clean file comes last and means: finished."""
    folder.mkdir(exist_ok=True)
    rows: list[dict[str, Any]] = []
    with (
        written(folder / f"{STEM}_clean.h5") as clean,
        written(folder / f"{STEM}_noise.h5") as noisy,
        written(folder / f"{STEM}_structures.h5") as structures,
    ):
        outs, shape = (clean, noisy, structures), (count, size, size, 1)
        for out in outs:
            stamp(out.file, **facts)
        for out in (clean, noisy):
            images = out.file.create_dataset("images", shape, "f4", chunks=(1, *shape[1:]))
            images.attrs["units"] = "electrons"
        for exposures, scenes in made:
            here = slice(len(rows), len(rows) + len(exposures))
            clean.file["images"][here, :, :, 0] = np.stack([one.clean for one in exposures])
            noisy.file["images"][here, :, :, 0] = np.stack([one.noisy for one in exposures])
            rows += [one.row for one in exposures]
            for name, scene in scenes.items():
                group = structures.file.create_group(name)
                for key, values in scene.items():
                    kind = h5py.string_dtype() if key == "names" else None
                    group.create_dataset(key, data=values, dtype=kind)
            for out in outs:
                out.check()
        _store_table(folder / f"{STEM}_metadata.parquet", rows)


def _write_pictures(folder: Path, made: Iterable[Recorded]) -> None:
    """Write ``raw`` and ``truth`` of the frames to denoise, as TIFF."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for part in ("raw", "truth"):
        (partial / part).mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for clean, noisy, row in (exposure for one in made for exposure in one.exposures):
        for part, frame in (("raw", noisy), ("truth", clean)):
            tiff = BytesIO()
            tifffile.imwrite(tiff, frame)
            _store(partial / part / f"frame_{len(rows):04d}.tif", tiff)
        rows.append(row)
    _store_table(partial / "metadata.parquet", rows)
    partial.replace(folder)


def _store_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write how each frame was made, a row a frame."""
    table = BytesIO()
    pl.DataFrame(rows, infer_schema_length=None).with_row_index("frame").write_parquet(table)
    _store(path, table)


def _store(path: Path, contents: BytesIO) -> None:
    with renamed(path) as partial:
        partial.write_bytes(contents.getvalue())


@contextmanager
def claimed(out: Path, config: SimulateConfig) -> Iterator[None]:
    """Lock a folder while this config's data set is made there.

    OutputError if another process is at work there, or the folder holds anything else than this
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
            _store(settings, BytesIO(config.identity().encode()))
        yield


def stamp(file: h5py.File, **more: str | int) -> None:
    """Say in an HDF5 file what wrote it."""
    for name, value in (SIMULATION | {"emdn_version": __version__} | more).items():
        file.attrs[name] = value


@one_thread()
def write_test_split(
    out: str | PathLike[str],
    multislice: str | PathLike[str] | None = None,
    *,
    scenes: int = SCENES,
) -> Path:
    """Write ``test/`` of a data set, and return ``out``; ``open_split(out, "test")`` reads it.

    Every clean frame comes at each of ``LEVELS``. The table says so in its columns ``part`` and
    ``level``; ``snr`` is higher than the level where fewer than 0.05 electrons a pixel would be
    left of it. ``multislice``, frames made by ``tests/data/make_multislice.py``, are recorded at
    the same levels, twice, as parts ``multislice ...``. Another number of specimens a part
    (``scenes``) than the default is not the fixed split. OutputError if there is a split already,
    FormatError if ``multislice`` is not a file of such frames.
    """
    folder = Path(out) / "test"
    if folder.exists():
        raise OutputError(f"{folder}: exists; give a new folder or remove it")
    specimens = len(PARTS) * scenes
    more = [] if multislice is None else _multislice(Path(multislice), specimens)
    partial = folder.with_name("test.partial")
    partial.mkdir(parents=True, exist_ok=True)
    simulated = (_specimen(number, *divmod(number, scenes), LEVELS) for number in range(specimens))
    count = (specimens + _RECORDINGS * len(more)) * len(LEVELS)
    _write_split(partial, chain(simulated, more), count, SIZE, {"test_split_version": VERSION})
    partial.replace(folder)
    return Path(out)


@one_thread()
def first_specimens(levels: Sequence[float]) -> list[Exposure]:
    """Record one specimen of each simulated part at some levels: a split in small, in memory.

    The rows of the exposures have the columns ``part``, ``level`` and ``mode``.
    """
    every = (_specimen(index, index, 0, levels).exposures for index in range(len(PARTS)))
    return list(chain.from_iterable(every))


def _specimen(number: int, part: int, scene: int, levels: Sequence[float]) -> Recorded:
    rng, name = np.random.default_rng([*_SEED, part, scene]), list(PARTS)[part]
    recipe, mode, detector = PARTS[name]
    made = specimen_scene(recipe, mode, SIZE, _PIXEL_SIZE_NM, rng, _DEFECTS)
    shot = next(shots(made, 1, rng))
    exposures = []
    for level in levels:
        place = {"structure": number, "part": name, "level": level}
        electrons = electrons_for(level, shot.contrast)
        exposures.append(expose_shot(made, shot, electrons, detector, rng, **place))
    return Recorded(exposures, {str(number): made.in_frame()})


def _multislice(path: Path, first: int) -> list[Recorded]:
    """Record the frames of a file; the first is of structure number ``first``."""
    try:
        with h5py.File(path, "r") as file:
            frames = (file["images"][()] / file["images"].attrs["scale"]).astype(np.float32)
            rows = json.loads(file["rows"][()])
            groups = [file[f"structures/{index}"] for index in range(len(frames))]
            scenes = [{key: group[key][()] for key in group} for group in groups]
    except (OSError, KeyError) as error:
        raise FormatError(
            f"{path}: is no file of multislice frames ({error}); "
            "expected one made by tests/data/make_multislice.py"
        ) from error
    rng = np.random.default_rng([*_SEED, len(PARTS), 1])
    made = [Recorded([], {str(number): scene}) for number, scene in enumerate(scenes, first)]
    for number, (frame, row, scene) in enumerate(zip(frames, rows, scenes, strict=True)):
        for level in LEVELS * _RECORDINGS:
            electrons = electrons_for(level, row["contrast"])
            exposure = expose(frame, electrons, "counting", int(rng.integers(2**62)))
            facts = {
                "structure": first + number,
                "part": f"multislice {row['material']}",
                "level": level,
                **row,
                "kind": "multislice",
                "mode": "hrtem",
                "crystalline": True,
                "defects": len(scene["names"]),
                "snr": row["contrast"] * electrons**0.5,
                "dose_e_per_a2": electrons / (10 * row["pixel_size_nm"]) ** 2,
            }
            made[number].exposures.append(exposure._replace(row=facts | exposure.row))
    return made
