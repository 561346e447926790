"""A whole data set in the layout of em_graphene_sim, made by several processes."""

import json
import logging
import os
import shutil
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import polars as pl
import tifffile
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from emdn_models import EmdnError
from emdn_models.hdf5 import written
from emdn_train.config import SimulateConfig
from emdn_train.dataset import STEM
from emdn_train.simulate.folder import SPLIT_SEEDS, claimed, one_thread, stamp, store
from emdn_train.simulate.movie import simulate_movie
from emdn_train.simulate.scene import (
    Exposure,
    draw_electrons,
    expose_shot,
    make_scene,
    shots,
    write_scene,
)

SCENES = 8

_log = logging.getLogger(__name__)


class Shard(NamedTuple):
    """Frames of up to `SCENES` specimens of one split: the unit of work and of resuming."""

    config: SimulateConfig
    split: str
    first: int
    frames: int
    path: Path


def simulate(config: SimulateConfig) -> Path:
    """Make a data set, or finish the one that an interrupted run has begun.

    Returns
    -------
    The folder, with ``movie.h5`` and ``movie_truth.h5``, or with ``train/``, ``test/``
    (frames in HDF5, ``*_metadata.parquet``, ``*_structures.h5``) and ``inference/raw|truth``.

    Raises
    ------
    OutputError
        If the folder holds anything else than a data set of this very config, another
        process is at work there, or the disk is full: the same config then goes on.
    EmdnError
        If a worker dies; the shards that are there are kept.
    """
    if config.kind == "movie":
        return simulate_movie(config)
    out = Path(config.out)
    with claimed(out, config):
        _simulate(config, out)
    return out


def _simulate(config: SimulateConfig, out: Path) -> None:
    (out / ".partial").mkdir(exist_ok=True)
    shards = {split: list(_shards(config, split, out)) for split in SPLIT_SEEDS}
    unfinished = [split for split in shards if not _finished(out, split)]
    todo = [one for split in unfinished for one in shards[split] if not one.path.exists()]
    total = sum(config.count(split) for split in SPLIT_SEEDS)
    done = total - sum(shard.frames for shard in todo)
    if done:
        _log.info("%s: %d of %d frames are there already", out, done, total)
    if todo:
        # Clean and noisy, in float32; shards stay until their split is put together.
        size, free = total * config.size**2 * 8 / 1e9, shutil.disk_usage(out).free / 1e9
        text = "%s: takes %.2g GB, up to %.2g GB on the way; %.2g GB are free"
        _log.info(text, out, size, 2 * size, free)
    columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress("simulating", *columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=total, completed=done)
        for frames in _made(todo, config.workers):
            progress.advance(bar, frames)
    for split in unfinished:
        (_assemble_inference if split == "inference" else _assemble)(out, shards[split])
    shutil.rmtree(out / ".partial", ignore_errors=True)


def _shards(config: SimulateConfig, split: str, out: Path) -> Iterator[Shard]:
    per, count = config.images_per_structure, config.count(split)
    for first in range(0, -(-count // per), SCENES):
        frames = min(SCENES * per, count - first * per)
        yield Shard(config, split, first, frames, out / ".partial" / f"{split}-{first:07d}.h5")


def _finished(out: Path, split: str) -> bool:
    if split == "inference":
        return (out / "inference").is_dir()
    return (out / split / f"{STEM}_clean.h5").exists()


def _made(shards: list[Shard], workers: int) -> Iterable[int]:
    """Make the shards; yield the frames of each."""
    if workers == 1 or len(shards) < 2:
        yield from map(make, shards)
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _begin_worker)
    try:
        yield from pool.map(make, shards)
    except BrokenProcessPool as error:
        raise EmdnError(
            f"{shards[0].config.out}: a worker died, perhaps for want of memory; "
            "run the same command again to continue, with fewer workers"
        ) from error
    finally:
        # After an error or an interrupt the shards that wait must not be worked off first.
        pool.shutdown(cancel_futures=True)


def _begin_worker() -> None:
    """Leave Ctrl-C to the parent, and end with it, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    if (parent := parent_process()) is not None:
        parent.join()
        os._exit(1)


@one_thread()
def make(shard: Shard) -> int:
    """Make the shard's frames in a file of their own; return their number."""
    config, index = shard.config, shard.first
    exposures: list[Exposure] = []
    with written(shard.path) as out:
        file = out.file
        file.create_group("structures")
        while len(exposures) < shard.frames:
            for state in range(config.states):
                # All states draw the same specimen, optics and beam.
                rng = np.random.default_rng([config.seed, SPLIT_SEEDS[shard.split], index])
                scene = make_scene(
                    config.kind, config.size, config.pixel_size_nm, rng, config.defects, state
                )
                left = shard.frames - len(exposures)
                count = min(config.images_per_structure // config.states, left)
                for number, shot in enumerate(shots(scene, count, rng)):
                    electrons = draw_electrons(
                        config, shot.contrast, shot.share, scene.field.pixel_a, rng
                    )
                    exposure = expose_shot(scene, shot, electrons, config.detector, rng)
                    place = {"structure": index, "state": state, "image": number}
                    exposures.append(exposure._replace(row=place | exposure.row))
                name = f"{index}-{state}" if state else f"{index}"
                write_scene(file.create_group(f"structures/{name}"), scene)
            index += 1
        file["clean"] = np.stack([exposure.clean for exposure in exposures])
        file["noise"] = np.stack([exposure.noisy for exposure in exposures])
        file["rows"] = json.dumps([exposure.row for exposure in exposures])
    return len(exposures)


def images(file: h5py.File, count: int, size: int) -> h5py.Dataset:
    """Create the frames of a split, (count, size, size, 1), in electrons."""
    shape = (count, size, size, 1)
    dataset = file.create_dataset("images", shape, "f4", chunks=(1, *shape[1:]))
    dataset.attrs["units"] = "electrons"
    return dataset


def store_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write how each frame was made, a row a frame."""
    table = pl.DataFrame(rows, infer_schema_length=None).with_row_index("frame")
    store(path, table.write_parquet)


def _assemble(out: Path, shards: list[Shard]) -> None:
    """Put the shards of one split together; its clean file comes last and means: finished."""
    config, split = shards[0].config, shards[0].split
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
        for part in shards:
            with h5py.File(part.path, "r") as shard:
                here = slice(len(rows), len(rows) + part.frames)
                clean[here, :, :, 0] = shard["clean"][()]
                noisy[here, :, :, 0] = shard["noise"][()]
                rows += json.loads(shard["rows"][()])
                for name, group in shard["structures"].items():
                    structures_out.file.copy(group, name)
            for one in outs:
                one.check()
        store_table(folder / f"{STEM}_metadata.parquet", rows)
    for part in shards:
        part.path.unlink()


def _assemble_inference(out: Path, shards: list[Shard]) -> None:
    folder = out / ".partial" / "inference"
    shutil.rmtree(folder, ignore_errors=True)
    rows: list[dict[str, Any]] = []
    for part in ("raw", "truth"):
        (folder / part).mkdir(parents=True)
    for one in shards:
        with h5py.File(one.path, "r") as shard:
            for key, part in (("noise", "raw"), ("clean", "truth")):
                for offset, frame in enumerate(np.asarray(shard[key])):
                    name = f"frame_{len(rows) + offset:04d}.tif"
                    store(folder / part / name, partial(tifffile.imwrite, data=frame))
            rows += json.loads(shard["rows"][()])
    store_table(folder / "metadata.parquet", rows)
    folder.replace(out / "inference")
