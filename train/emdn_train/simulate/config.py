"""What one simulated data set is, and the folder that holds it."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import h5py
import torch
from threadpoolctl import threadpool_limits

from emdn_models import __version__
from emdn_models.errors import FormatError, OutputError
from emdn_models.files import locked, renamed

FORMAT = "emdn-simulation"
FORMAT_VERSION = 1
SETTINGS = "simulation.json"
LOCK = "simulate.lock"

Kind = Literal["graphene", "mixed", "stem", "movie"]

# The first number of every seed, so that no structure of one split is in another.
SPLIT_SEEDS: Mapping[str, int] = {"train": 0, "test": 1, "inference": 2}

DEFECTS = (5e-4, 0.05)
"""Least and most point defects per site. With one in a thousand, the best guess from a noisy
frame is that there is none, and a net learns to fill them."""


@dataclass(frozen=True)
class SimulateConfig:
    """One data set: the flags of ``emdn-train simulate``."""

    out: str | PathLike[str]  # folder to write; an interrupted run of the same config goes on
    frames: int = 1000  # training pairs; test gets a tenth (at least 4), inference up to 16
    kind: Kind = "graphene"  # specimens and imaging mode, or movie for one in-situ stack
    size: int = 256  # side of a frame in pixels
    # Signal to noise per pixel, contrast x sqrt(incident electrons per pixel; detected ones for
    # STEM), or the dose instead; both ranges are drawn from log-uniformly.
    snr: tuple[float, float] = (0.05, 3.0)
    dose_e_per_a2: tuple[float, float] | None = None
    pixel_size_nm: tuple[float, float] = (0.008, 0.025)  # drawn uniformly
    # Point defects per site, drawn log-uniformly; three specimens in twenty have none. A movie
    # has the one defect that moves.
    defects: tuple[float, float] = DEFECTS
    detector: Literal["counting", "ccd"] = "counting"  # of TEM frames; STEM has its own
    images_per_structure: int = 4  # frames of one specimen, each at its own optics and dose
    # Arrangements of a specimen's point defects. The images of one structure are then of each
    # state in turn, at the same optics: what a movie sees before and after an event.
    states: int = 1
    seed: int = 0  # all follows from it, whatever the number of workers
    workers: int = 1  # processes; a movie takes one, since its frames follow from each other

    def __post_init__(self) -> None:
        """Refuse numbers that make no data set."""
        if self.frames < 1 or self.images_per_structure < 1 or self.workers < 1:
            raise FormatError("frames, images_per_structure and workers must be at least 1")
        if self.states < 1 or self.images_per_structure % self.states:
            raise FormatError(
                f"states is {self.states}; expected a divisor of images_per_structure, "
                f"{self.images_per_structure}"
            )
        if self.size < 32:
            raise FormatError(f"size is {self.size}; a frame needs at least 32 pixels a side")
        for name in ("snr", "dose_e_per_a2", "pixel_size_nm", "defects"):
            limits = getattr(self, name)
            if limits is not None and not 0 < limits[0] <= limits[1]:
                raise FormatError(f"{name} is {limits}; expected 0 < MIN <= MAX")

    def count(self, split: str) -> int:
        """Return the number of frames of a split."""
        tenth = max(1, self.frames // 10)
        return {"train": self.frames, "test": max(4, tenth), "inference": min(tenth, 16)}[split]

    def identity(self) -> str:
        """Return as JSON all that the frames depend on: not the folder, not the workers."""
        fields = dataclasses.asdict(self)
        del fields["out"], fields["workers"]
        return json.dumps(
            {"format": FORMAT, "format_version": FORMAT_VERSION, **fields}, sort_keys=True
        )


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
    file.attrs["format"] = FORMAT
    file.attrs["format_version"] = FORMAT_VERSION
    file.attrs["emdn_version"] = __version__
    for name, value in more.items():
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
