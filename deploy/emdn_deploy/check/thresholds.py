"""Thresholds: what the statistics of a sound result stay within, from the bootstrap.

They do not depend on the result that is judged. A statistic's range is that of the model's own
replicates and of perfect ones together, so that neither those nor what lies between them fails.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import log, pi, sqrt
from typing import NamedTuple

import numpy as np
from scipy import special

from emdn_deploy import noise_model
from emdn_deploy.check import bootstrap
from emdn_deploy.check.bootstrap import Bootstrap, Population
from emdn_deploy.check.camera import Camera
from emdn_deploy.check.quick import SHARE
from emdn_deploy.check.residual_tests import (
    SCALES,
    STATISTICS,
    Floats,
    Frame,
    Mask,
    Measured,
    panels_of,
)
from emdn_deploy.noise_level import Sample
from emdn_deploy.noise_model import OUTSIDE, NoiseModel
from emdn_deploy.preprocess import Prepared
from emdn_deploy.readers import Frames

LEVEL = 0.05  # false alarms among sound frames, all tests together, that are aimed at
REASONS = 3  # that residuals can fail a stack for (`emdn_deploy.check.verdict.judge`)
SAFETY = 1.15  # how much farther the limits from the model's replicates lie
DRAWS, BASES, RUN = 32, 4, 8

_ARRAYS = ("bands", "match", "strength")

Values = dict[str, float]


class Limits(NamedTuple):
    """The range of a statistic, infinite where one-sided, and its typical value."""

    low: float
    high: float
    typical: float

    def holds(self, value: float) -> bool:
        """Whether a value is within."""
        return self.low <= value <= self.high


def student(z: float, freedom: int) -> float:
    """Turn a normal quantile into Student's."""
    return float(-special.stdtrit(freedom, special.ndtr(-z)))


def reach(largest: bool, chance: float, draws: int, means: int) -> float:
    """Return the standard deviations above the mean that a further draw exceeds with a chance.

    The tail is that of a normal number, or of the largest of many (Gumbel), widened as
    Student's t is for few draws.
    """
    normal = special.ndtri(1 - chance)
    factor = (-log(-log(1 - chance)) - np.euler_gamma) * sqrt(6) / pi if largest else normal
    return float(factor * student(normal, draws - 1) / normal * sqrt(1 + 1 / means))


class Reference:
    """Mean and standard deviation of what a population's replicates have many of.

    The model leaves some noise in the base frames, which twicing makes more, and takes a part
    of it out again: residuals then hold more than those of the scene itself. As much as twicing
    has added may be absent below what there was before it: ``least``.
    """

    def __init__(self, population: Population) -> None:
        self.population, self.count = population, len(population.panels)
        # The model's replicates are a little smoother than the scene; perfect ones have no scene.
        self.safety = SAFETY if population.pilots else 1.0

        def stacked(name: str, panels: Sequence[Measured]) -> Floats:
            return np.stack([getattr(one, name) for one in panels])

        arrays = {name: stacked(name, population.panels) for name in _ARRAYS}
        self.mean = {name: rows.mean(axis=0) for name, rows in arrays.items()}
        self.std = {name: np.maximum(rows.std(axis=0, ddof=1), 1e-9)
                    for name, rows in arrays.items()}  # fmt: skip
        self.least = dict(self.mean)
        if population.pilots:
            for name, mean in self.mean.items():
                before = stacked(name, population.pilots).mean(axis=0)
                self.least[name] = np.minimum(mean, 2 * before - mean)

    def scores(self, one: Measured, own: bool = False) -> dict[str, Floats]:
        """Return how far a panel is above and below the replicates, band by band and so on.

        Parameters
        ----------
        own
            Whether the panel is one of the replicates: it is then compared with the others only
            (the externally studentised residual).
        """
        mean, std, least = self.mean, self.std, self.mean if own else self.least

        def studentised(deviations: Floats) -> Floats:
            if not own:
                return deviations / sqrt(1 + 1 / self.count)
            inner = deviations / sqrt(1 - 1 / self.count)
            rest = np.maximum(self.count - 1 - inner**2, 1e-3)
            return np.asarray(inner * np.sqrt((self.count - 2) / rest))

        # A denoiser that takes less of the structure than the model does adds none by that.
        anchor = mean["match"] if own else np.minimum(least["match"], 0)
        return {
            "band_high": studentised((one.bands - mean["bands"]) / std["bands"]),
            "band_low": studentised((least["bands"] - one.bands) / std["bands"]),
            "match_removed": studentised((one.match - mean["match"]) / std["match"]),
            "match_added": studentised((anchor - one.match) / std["match"]),
        }

    @cached_property
    def replicates(self) -> list[Values]:
        """Return every statistic of each replicate."""
        return [named(one, [self], own=True) for one in self.population.panels]

    def slack(self, error: float) -> Values:
        """Return how far an error of the noise's standard deviation moves statistics."""
        band = 2 * error / float(self.std["bands"].min())
        return {"std": error, "band_high": band, "band_low": band}

    def range_of(self, name: str, share: float, uncertainty: float) -> Limits:
        """Find the range of a statistic that replicates leave with the chance ``share``."""
        statistic = STATISTICS[name]
        alone = values = self.values(name.removeprefix("run_"))
        if name.startswith("run_"):
            values = np.array(self.population.runs)[:, _RUNS.index(name)]
        spread = max(float(alone.std(ddof=1)), float(values.std()))
        typical = float(values.mean())
        chance = share / 2 if statistic.below else share
        extent = reach(statistic.many, chance, len(alone), len(values))
        extent *= self.safety * spread
        extent += statistic.tolerance + self.slack(3 * uncertainty).get(name, 0.0)
        low = typical - extent if statistic.below else -np.inf
        pilots = self.population.pilots
        if pilots and name in ("std", "lag"):
            low -= max(0.0, 2 * (typical - float(np.mean([one.simple[name] for one in pilots]))))
        least = float(special.ndtri(1 - share / statistic.few)) if statistic.few else -np.inf
        return Limits(low, max(typical + extent, least), typical)

    def values(self, name: str) -> Floats:
        """Return a statistic of every replicate."""
        return np.array([row[name] for row in self.replicates])


_RUNS = [f"run_blob_{scale:g}" for scale in SCALES]


def named(one: Measured, references: Sequence[Reference], own: bool = False) -> Values:
    """Return every statistic of a panel but those of the run.

    Against several references, each band counts by the one that it is nearest to.
    """
    found = {name: one.simple[name] for name in STATISTICS if name in one.simple}
    scores = [reference.scores(one, own) for reference in references]
    for name in scores[0]:
        nearest = np.minimum.reduce([each[name] for each in scores])
        found[name] = max(0.0, float(nearest.max()))
        if name == "match_removed":
            # What residual and denoised frame share is noise where this holds more than it should.
            at = int(nearest.argmax())
            found["match_noise"] = float(
                all(one.strength[at] > reference.mean["strength"][at] for reference in references)
            )
    return found | {f"blob_{spot.scale:g}": spot.contrast for spot in one.spots}


@dataclass(frozen=True, eq=False)
class Thresholds:
    """What results for a stack are judged by.

    Attributes
    ----------
    good
        (H, W), the pixels that count.
    """

    good: Mask
    noise: NoiseModel
    camera: Camera
    bootstrap: Bootstrap
    references: tuple[Reference, ...]

    @classmethod
    def of(
        cls,
        frames: Frames,
        ready: Prepared,
        denoise: Callable[[Frame], Frame],
        seed: int,
        offset: float | None = None,
    ) -> "Thresholds":
        """Measure the noise of a stack, and draw and denoise replicates of some of its frames.

        Parameters
        ----------
        denoise
            Denoises frames (k, H, W) as the result was denoised.
        offset
            Intensity of a pixel without electrons, where it is known.
        """
        count, size, good = frames.shape[0], frames.shape[1:], ~ready.recipe.bad
        noise = noise_model.estimate(Sample.of(ready.read, count, size), ready.recipe.bad, offset)
        camera = Camera.of(noise, ready.scale, frames.dtype.kind in "iub")
        panels = panels_of(*size)
        bases = []
        for at, number in enumerate(np.linspace(0, count - 1, min(BASES, count)).astype(int)):
            panel = panels[at % len(panels)]
            bases.append((ready.read(int(number), int(number) + 1)[0][panel], good[panel]))
        replicates = DRAWS // len(bases)
        length = min(RUN, count, replicates) if count > 1 else 0
        drawn = bootstrap.draw(bases, denoise, camera, replicates, length, seed)
        references = Reference(drawn.model), Reference(drawn.perfect)
        return cls(good, noise, camera, drawn, references)

    @property
    def outside(self) -> tuple[str, ...]:
        """Return what the noise has that the models have not seen."""
        return tuple(one for one in self.noise.findings if one.endswith(OUTSIDE))

    @cached_property
    def panels(self) -> list[tuple[slice, slice]]:
        """Return the pieces that frames are tested in."""
        return panels_of(*self.good.shape)

    @cached_property
    def limits(self) -> Mapping[str, Limits]:
        """Return the range of every statistic of a frame, by name."""
        return self._limits(LEVEL / len(self.panels))

    def farthest(self, count: int) -> Mapping[str, Limits]:
        """Return the range of the farthest of so many frames."""
        return self._limits(SHARE / (count * len(self.panels)))

    def _limits(self, level: float) -> dict[str, Limits]:
        names = [one for one in STATISTICS if self.bootstrap.length or one not in _RUNS]
        found = {}
        for name in names:
            share = level / len(names)
            ranges = [one.range_of(name, share, self.camera.uncertainty) for one in self.references]
            lows, highs, typical = zip(*ranges, strict=True)
            found[name] = Limits(min(lows), max(highs), typical[0])
        return found

    @cached_property
    def rate(self) -> float:
        """Return the share of sound frames that are flagged, each for itself."""
        beyond = [
            np.mean([any(not limit.holds(row[name]) for name, limit in self.limits.items()
                         if name in row) for row in reference.replicates])
            for reference in self.references
        ]  # fmt: skip
        return max(LEVEL, float(1 - (1 - max(beyond)) ** len(self.panels)))

    @property
    def run_rate(self) -> float:
        """Return the share of runs of sound frames that are flagged."""
        return LEVEL * sum(name in _RUNS for name in self.limits) / len(self.limits)
