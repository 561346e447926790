"""A whole data set in the layout of em_graphene_sim, made by several processes."""

import json
import logging
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import polars as pl
import tifffile
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from emdn_models import EmdnError, __version__
from emdn_models.files import renamed
from emdn_models.hdf5 import written
from emdn_train.dataset import STEM
from emdn_train.simulate.config import FORMAT, FORMAT_VERSION, SPLIT_SEEDS, SimulateConfig
from emdn_train.simulate.files import claimed, store
from emdn_train.simulate.movie import simulate_movie
from emdn_train.simulate.shard import SCENES, Job, run
from emdn_train.simulate.threads import begin_worker

_log = logging.getLogger(__name__)


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
    jobs = [job for split in SPLIT_SEEDS for job in _jobs(config, split, out)]
    todo = [job for job in jobs if not job.path.exists() and not _finished(out, job.split)]
    total = sum(config.count(split) for split in SPLIT_SEEDS)
    done = total - sum(job.frames for job in todo)
    if done:
        _log.info("%s: %d of %d frames are there already", out, done, total)
    if todo:
        # Clean and noisy, in float32; shards stay until their split is put together.
        size = total * config.size**2 * 8
        free = shutil.disk_usage(out).free
        _log.info(
            "%s: takes %.2g GB, up to %.2g GB on the way; %.2g GB are free",
            out, size / 1e9, 2 * size / 1e9, free / 1e9,
        )  # fmt: skip
    with Progress(
        "simulating",
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as progress:
        bar = progress.add_task("", total=total, completed=done)
        for frames in _work(todo, config.workers):
            progress.advance(bar, frames)
    for split in SPLIT_SEEDS:
        if not _finished(out, split):
            _assemble(out, split, [job for job in jobs if job.split == split], config)
    shutil.rmtree(out / ".partial", ignore_errors=True)


def _jobs(config: SimulateConfig, split: str, out: Path) -> Iterator[Job]:
    per, count = config.images_per_structure, config.count(split)
    for first in range(0, -(-count // per), SCENES):
        frames = min(SCENES * per, count - first * per)
        yield Job(config, split, first, frames, out / ".partial" / f"{split}-{first:07d}.h5")


def _work(jobs: list[Job], workers: int) -> Iterable[int]:
    if workers == 1 or len(jobs) < 2:
        yield from map(run, jobs)
        return
    # An interrupt is for the parent; a worker finishes its shard and finds no other.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), begin_worker)
    try:
        yield from pool.map(run, jobs)
    except BrokenProcessPool as error:
        raise EmdnError(
            f"{jobs[0].config.out}: a worker died, perhaps for want of memory; "
            "run the same command again to continue, with fewer workers"
        ) from error
    finally:
        # After an error or an interrupt the jobs that wait must not be worked off first.
        pool.shutdown(cancel_futures=True)


def _finished(out: Path, split: str) -> bool:
    if split == "inference":
        return (out / "inference").is_dir()
    return (out / split / f"{STEM}_clean.h5").exists()


def _assemble(out: Path, split: str, jobs: list[Job], config: SimulateConfig) -> None:
    """Put the shards of one split together; its clean file comes last and means: finished."""
    if split == "inference":
        _assemble_inference(out, jobs)
        return
    folder = out / split
    folder.mkdir(exist_ok=True)
    rows: list[dict[str, Any]] = []
    shape = (config.count(split), config.size, config.size, 1)
    with (
        renamed(folder / f"{STEM}_clean.h5") as clean_path,
        renamed(folder / f"{STEM}_structures.h5") as structures_path,
        renamed(folder / f"{STEM}_noise.h5") as noise_path,
        written(clean_path) as clean_out,
        written(noise_path) as noisy_out,
        written(structures_path) as structures_out,
    ):
        outs = (clean_out, noisy_out, structures_out)
        clean, noisy, structures = (one.file for one in outs)
        for file in (clean, noisy, structures):
            file.attrs["format"] = FORMAT
            file.attrs["format_version"] = FORMAT_VERSION
            file.attrs["emdn_version"] = __version__
            file.attrs["settings"] = config.identity()
        for file in (clean, noisy):
            images = file.create_dataset("images", shape, "f4", chunks=(1, *shape[1:]))
            images.attrs["units"] = "electrons"
        for job in jobs:
            with h5py.File(job.path, "r") as shard:
                here = slice(len(rows), len(rows) + job.frames)
                clean["images"][here, :, :, 0] = shard["clean"][()]
                noisy["images"][here, :, :, 0] = shard["noise"][()]
                rows += json.loads(shard["rows"][()])
                for name, group in shard["structures"].items():
                    structures.copy(group, name)
            for one in outs:
                one.check()
        table = pl.DataFrame(rows, infer_schema_length=None).with_row_index("frame")
        store(folder / f"{STEM}_metadata.parquet", table.write_parquet)
    for job in jobs:
        job.path.unlink()


def _assemble_inference(out: Path, jobs: list[Job]) -> None:
    folder = out / ".partial" / "inference"
    shutil.rmtree(folder, ignore_errors=True)
    rows: list[dict[str, Any]] = []
    for part in ("raw", "truth"):
        (folder / part).mkdir(parents=True)
    for job in jobs:
        with h5py.File(job.path, "r") as shard:
            for key, part in (("noise", "raw"), ("clean", "truth")):
                for offset, frame in enumerate(np.asarray(shard[key])):
                    name = f"frame_{len(rows) + offset:04d}.tif"
                    store(folder / part / name, partial(tifffile.imwrite, data=frame))
            rows += json.loads(shard["rows"][()])
    table = pl.DataFrame(rows, infer_schema_length=None).with_row_index("frame")
    store(folder / "metadata.parquet", table.write_parquet)
    folder.replace(out / "inference")
