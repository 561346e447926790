"""Clips of simulated movies in which a vacancy hops once, at a known frame."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import numpy as np
from numpy.typing import NDArray

from emdn_train.simulate.config import SimulateConfig
from emdn_train.simulate.movie import simulate_movie

log = logging.getLogger(__name__)

# One frame in three brings a hop; a movie of so few may have none and is left out.
_FRAMES = 12
_PIXEL_SIZE_NM = (0.010, 0.020)
# No data set of another command is likely to have these seeds.
_SEED = 5_000

Frame = NDArray[np.float32]
Places = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Hop:
    """A scene on either side of a hop.

    Attributes
    ----------
    before, after
        (H, W) expected electrons.
    old, new
        (2,) y and x in pixels: the vacancy's sites.
    snr
        Signal to noise per pixel of ``before``.
    pixel_size_nm
        Side of a pixel.
    """

    before: Frame
    after: Frame
    old: Places
    new: Places
    snr: float
    pixel_size_nm: float

    def recorded(self, snr: float, length: int, seed: int) -> Frame:
        """Count electrons: ``length`` frames before the hop and as many after.

        Nothing drifts. That favours averages of frames, which drift would blur.

        Parameters
        ----------
        snr
            Signal to noise per pixel to record at.

        Returns
        -------
        (2 * length, H, W).
        """
        scenes = np.repeat(self.expected(snr), length, 0)
        return np.random.default_rng(seed).poisson(scenes).astype(np.float32)

    def expected(self, snr: float) -> Frame:
        """Return the expected electrons of the two scenes at another dose, (2, H, W)."""
        scale = np.float32((snr / self.snr) ** 2)
        return np.stack([self.before, self.after]) * scale


def hops(count: int, size: int = 128) -> Iterator[Hop]:
    """Simulate movies, and yield the first hop of each that has a vacancy that hops."""
    found, seed = 0, _SEED
    while found < count:
        with TemporaryDirectory(prefix="emdn-") as folder:
            config = SimulateConfig(
                Path(folder) / "movie", _FRAMES, "movie", size, (1.0, 1.0),
                pixel_size_nm=_PIXEL_SIZE_NM, seed=seed,
            )  # fmt: skip
            hop = first_hop(simulate_movie(config))
        seed += 1
        if hop is not None:
            found += 1
            log.info("hop %d of %d simulated", found, count)
            yield hop


def first_hop(folder: Path) -> Hop | None:
    """Find the first hop in what ``simulate_movie`` has written; None without vacancy or hop."""
    with (
        h5py.File(folder / "movie_truth.h5", "r") as truth,
        h5py.File(folder / "movie.h5", "r") as movie,
    ):
        if not str(truth["defect"].attrs["name"]).startswith("V"):
            return None
        pixel_size_nm = float(movie["entry/data"].attrs["pixel_size_nm"])
        places = truth["defect"][()][:, ::-1]
        still = places - truth["drift"][()][:, ::-1]
        # A bond is 0.142 nm: half of one is no drift.
        steps = np.hypot(*np.diff(still, axis=0).T) * pixel_size_nm
        moved = np.flatnonzero(steps > 0.07)
        if not len(moved):
            return None
        at = int(moved[0])
        before, after = truth["expected"][at], truth["expected"][at + 1]
        return Hop(
            before, after, places[at], places[at + 1], float(truth.attrs["snr"]), pixel_size_nm
        )
