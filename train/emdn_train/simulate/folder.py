"""The folder of a simulated data set: what may be there, and how files are written into it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import h5py
import torch
from threadpoolctl import threadpool_limits

from emdn_models import __version__
from emdn_models.errors import OutputError
from emdn_models.files import locked, renamed
from emdn_train.config import SIMULATION, SimulateConfig

SETTINGS = "simulation.json"
LOCK = "simulate.lock"

# The first number of every seed, so that no structure of one split is in another.
SPLIT_SEEDS: Mapping[str, int] = {"train": 0, "test": 1, "inference": 2}


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


def store(path: Path, write: Callable[[BytesIO], Any]) -> None:
    """Write a small file in one go; ``write`` gets a buffer to put its contents in."""
    buffer = BytesIO()
    write(buffer)
    with renamed(path) as partial:
        partial.write_bytes(buffer.getvalue())


def stamp(file: h5py.File, **more: str | int) -> None:
    """Say in an HDF5 file what wrote it."""
    for name, value in (SIMULATION | {"emdn_version": __version__} | more).items():
        file.attrs[name] = value


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
