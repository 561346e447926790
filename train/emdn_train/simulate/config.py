"""What one simulated data set is: the flags of ``emdn-train simulate``."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Literal

from emdn_models.errors import FormatError
from emdn_train.simulate.specimens import DEFECTS, Kind

FORMAT = "emdn-simulation"
FORMAT_VERSION = 1

Split = Literal["train", "test", "inference"]

# The first number of every seed, so that no structure of one split is in another.
SPLIT_SEEDS: Mapping[str, int] = {"train": 0, "test": 1, "inference": 2}


@dataclass(frozen=True)
class SimulateConfig:
    """One data set.

    Attributes
    ----------
    out
        Folder to write; an interrupted run of the same config is continued.
    frames
        Training pairs; the test split gets a tenth (at least 4), ``inference`` up to 16.
    kind
        Specimens and imaging mode, or ``movie`` for one in-situ stack.
    size
        Side of a frame in pixels.
    snr
        Range of signal to noise per pixel, contrast x sqrt(incident electrons per pixel;
        detected ones for STEM), drawn log-uniformly.
    dose_e_per_a2
        Range of the dose instead, drawn log-uniformly.
    pixel_size_nm
        Range of the pixel size, drawn uniformly.
    defects
        Range of the point defects per site, drawn log-uniformly; three specimens in twenty
        have none. A movie has the one defect that moves.
    detector
        ``counting`` or ``ccd`` for TEM frames; STEM has its own.
    images_per_structure
        Frames of one specimen, each at its own optics and dose.
    states
        Arrangements of a specimen's point defects. The images of one structure are then of
        each state in turn, at the same optics: what a movie sees before and after an event.
    seed
        Whole data set follows from it, whatever the number of workers.
    workers
        Processes; a movie takes one, since its frames follow from each other.
    """

    out: str | PathLike[str]
    frames: int = 1000
    kind: Kind = "graphene"
    size: int = 256
    snr: tuple[float, float] = (0.05, 3.0)
    dose_e_per_a2: tuple[float, float] | None = None
    pixel_size_nm: tuple[float, float] = (0.008, 0.025)
    defects: tuple[float, float] = DEFECTS
    detector: Literal["counting", "ccd"] = "counting"
    images_per_structure: int = 4
    states: int = 1
    seed: int = 0
    workers: int = 1

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
        return {
            "train": self.frames,
            "test": max(4, self.frames // 10),
            "inference": max(1, min(16, self.frames // 10)),
        }[split]

    def identity(self) -> str:
        """Return as JSON all that the frames depend on: not the folder, not the workers."""
        fields = dataclasses.asdict(self)
        del fields["out"], fields["workers"]
        return json.dumps(
            {"format": FORMAT, "format_version": FORMAT_VERSION, **fields}, sort_keys=True
        )
