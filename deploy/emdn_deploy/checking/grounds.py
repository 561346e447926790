"""What the results for a stack are judged by; it does not depend on the result that is judged."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from emdn_deploy import noise_model
from emdn_deploy.checking import limits, null, summary, whole
from emdn_deploy.checking.camera import Camera, camera_of
from emdn_deploy.checking.chance import SHARE
from emdn_deploy.checking.held import Held
from emdn_deploy.checking.panel import cut
from emdn_deploy.checking.pooled import pooled
from emdn_deploy.checking.result import Limits, Thresholds
from emdn_deploy.checking.rows import Look, Rows
from emdn_deploy.checking.statistics import measure
from emdn_deploy.checking.whole import Bounds
from emdn_deploy.noise_level import Sample
from emdn_deploy.noise_model import OUTSIDE, NoiseModel
from emdn_deploy.preprocess import Prepared
from emdn_deploy.readers import Frames

LEVEL = 0.05  # false alarms among honest frames, all tests together, that are aimed at
SAFETY = 1.15
DRAWS, BASES, RUN = 32, 4, 8

Frame = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Grounds:
    """The noise of a stack, and what honest denoisings of it show.

    Attributes
    ----------
    good
        (H, W), the pixels that count.
    panel
        (H, W) of the pieces in which frames are tested.
    shown
        Every statistic of each honest panel.
    ranges
        Of every statistic, by name.
    bases, resamples
        Frames that were resampled, and how often each.
    length
        Frames of a run of neighbours; 0 for no runs.
    seed
        Of the noise that was drawn.
    """

    good: NDArray[np.bool_]
    panel: tuple[int, int]
    noise: NoiseModel
    camera: Camera
    honest: null.Honest
    about: limits.Reference
    shown: limits.Shown
    ranges: Mapping[str, Limits]
    bases: int
    resamples: int
    length: int
    seed: int

    @property
    def outside(self) -> tuple[str, ...]:
        """Return what the noise has that the models have not seen."""
        return tuple(one for one in self.noise.findings if one.endswith(OUTSIDE))

    def rows(self, look: Look = measure) -> Rows:
        """Return an empty table of frames, to be filled with a result's, measured by ``look``."""
        return Rows(
            self.camera, self.good, self.about, self.ranges, self.outside, self.noise.correlated,
            self.length, look,
        )  # fmt: skip

    def judge(self, rows: Rows, table: pl.DataFrame, held: Held) -> tuple[str, ...]:
        """Say why a stack fails, of whose frames ``rows`` has made the table; see `whole`."""
        known = summary.findings(
            held.error(self.honest.error), held.correlations(), held.line(), self.honest.line
        )
        bounds = self.bounds(table.height)
        return (*whole.findings(table, rows.means, bounds, self.outside), *known)

    @property
    def rate(self) -> float:
        """Return the share of honest frames that are flagged, each for itself."""
        return max(LEVEL, len(cut(*self.good.shape)) * self._failing())

    def bounds(self, count: int) -> Bounds:
        """Return what an honest stack of so many frames keeps to."""
        panels = len(cut(*self.good.shape))
        own = (self.honest, self.about, self.shown)
        clear = limits.limits(*own, SHARE / (count * panels), SAFETY, self.camera.uncertainty)
        means = pooled(*own, SHARE, SAFETY, self.camera.uncertainty, count * panels)
        together = sum(name.startswith("run_") for name in self.ranges)
        return Bounds(
            self.ranges, clear, means, self.rate,
            LEVEL * together / len(self.ranges), self.length, self.noise.correlated,
        )  # fmt: skip

    def _failing(self) -> float:
        """Return the share of honest panels that lie outside of the ranges themselves."""
        failing = [
            any(not self.ranges[name].low <= row[name] <= self.ranges[name].high for name in row
                if name in self.ranges)
            for row in self.shown
        ]  # fmt: skip
        return float(np.mean(failing))

    def thresholds(self) -> Thresholds:
        """Return the ranges with how they were found."""
        return Thresholds(
            self.ranges, LEVEL, whole.REASONS * SHARE, SAFETY, self.bases, self.resamples,
            self.honest.denoisings, self.seed,
        )  # fmt: skip


def grounds_of(
    frames: Frames,
    ready: Prepared,
    make: Callable[[Frame], Frame],
    seed: int,
    offset: float | None = None,
) -> Grounds:
    """Measure the noise of a stack and denoise frames that are resampled from it.

    Parameters
    ----------
    make
        Denoises frames (k, H, W) as the result was denoised.
    offset
        Intensity of a pixel without electrons, where it is known.
    """
    count, size = frames.shape[0], frames.shape[1:]
    good = ~ready.recipe.bad
    noise = noise_model.estimate(Sample.of(ready.read, count, size), ready.recipe.bad, offset)
    camera = camera_of(noise, ready.scale, frames.dtype.kind in "iub")
    panels = cut(*size)
    chosen = np.linspace(0, count - 1, min(BASES, count)).astype(int)
    bases: list[tuple[Frame, NDArray[np.bool_]]] = []
    for number in chosen:
        at = panels[len(bases) % len(panels)]
        bases.append((ready.read(int(number), int(number) + 1)[0][at], good[at]))
    resamples = DRAWS // len(bases)
    length = min(RUN, count, resamples) if count > 1 else 0
    honest = null.draw(bases, make, camera, resamples, length, seed)
    about = limits.reference(honest.panels, honest.pilots)
    shown = limits.shown(honest, about)
    ranges = limits.limits(honest, about, shown, LEVEL / len(panels), SAFETY, camera.uncertainty)
    panel = (panels[0][0].stop, panels[0][1].stop)
    return Grounds(
        good, panel, noise, camera, honest, about, shown, ranges, len(bases), resamples, length,
        seed,
    )  # fmt: skip
