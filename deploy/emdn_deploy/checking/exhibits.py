"""Frames and slices that a report shows, taken from the stack as it passes and after."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

from emdn_deploy.checking.camera import Camera
from emdn_deploy.readers.frames import Axis

MOST = 3  # frames that are shown
LINES = 512  # of the slice through time

Frame = NDArray[np.float32]
Read = Callable[[int, int], Frame]


@dataclass(frozen=True)
class Shown:
    """One frame of a report.

    Attributes
    ----------
    before, after
        (H, W), same units.
    residual
        (H, W), before - after in units of the noise expected.
    """

    number: int
    before: Frame
    after: Frame
    residual: Frame


@dataclass(frozen=True)
class Exhibits:
    """What a report shows besides numbers.

    Attributes
    ----------
    frames
        Those that fail first, most striking first, then others spread over the stack.
    before, after
        (K, W), the middle row of every ``step``-th frame.
    axis
        Calibration along x.
    """

    frames: tuple[Shown, ...]
    before: Frame
    after: Frame
    step: int
    axis: Axis


@dataclass
class Slices:
    """Collects the middle row of at most `LINES` frames of a stack of (N, H, W)."""

    shape: tuple[int, int, int]
    _rows: list[tuple[Frame, Frame]] = field(default_factory=list)

    def add(self, number: int, before: Frame, after: Frame) -> None:
        """Take in the next frame."""
        if number % self.step == 0:
            middle = self.shape[1] // 2
            self._rows.append((before[middle].copy(), after[middle].copy()))

    @property
    def step(self) -> int:
        """Frames from one row to the next."""
        return -(-self.shape[0] // LINES)

    def exhibits(
        self, table: pl.DataFrame, before: Read, after: Read, camera: Camera, axis: Axis
    ) -> Exhibits:
        """Read the frames that are worth showing, once all are judged.

        Parameters
        ----------
        table
            Of `emdn_deploy.checking.result.CheckResult`.
        before, after
            ``read(start, stop)`` gives (k, H, W).
        """
        shown = []
        for number in chosen(table):
            one, two = (read(number, number + 1)[0] for read in (before, after))
            shown.append(Shown(number, one, two, (one - two) / camera.noise(two)))
        rows = [np.stack(part) for part in zip(*self._rows, strict=True)]
        return Exhibits(tuple(shown), rows[0], rows[1], self.step, axis)


def chosen(table: pl.DataFrame) -> list[int]:
    """Choose at most `MOST` frames: what fails by its size, then the first, middle and last."""
    failing = table.filter(pl.col("verdict") != "within noise")
    by_size = failing.sort(pl.col("z").abs(), descending=True, nulls_last=True)["frame"].to_list()
    numbers = table["frame"].to_list()
    spread = [numbers[len(numbers) // 2], numbers[0], numbers[-1]]
    return list(dict.fromkeys(int(one) for one in (*by_size[:MOST], *spread)))[:MOST]
