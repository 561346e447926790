"""Thresholds: what residuals of sound results stay within, from a parametric bootstrap.

Noise is drawn on the model's own result for some frames of the stack, and denoised again (Efron,
Tibshirani, An Introduction to the Bootstrap, 1993, section 6.5). The result is a little smoother
than the scene. Twicing (Tukey, Exploratory Data Analysis, 1977), done twice, takes most of this
away: what the model removes of its own result is added to it before noise is drawn. The scene of a
replicate is known, and so is what a perfect denoiser would leave of it: the noise. Results as good
as the model's, or better, up to perfect, are sound.

A frame fails by its farthest statistic. How far that may be, in units of the scatter of replicates,
is a quantile of the same maximum over the replicates (Westfall, Young, Resampling-Based Multiple
Testing, 1993), continued by a Gumbel distribution.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from math import pi, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage, special

from emdn_deploy.check.quick import in_sigma
from emdn_deploy.check.residual import (
    RUNS,
    SCALES,
    SINGLE,
    STATISTICS,
    Camera,
    Floats,
    Frame,
    Mask,
    Reading,
    Readings,
    in_runs,
    measure,
    smoothed,
)
from emdn_deploy.dose import NoiseModel
from emdn_deploy.preprocess import Prepared
from emdn_deploy.readers import Frames

LEVEL = 0.05  # false alarms among sound frames, all statistics together, that are aimed at
DRAWS, BASES, RUN = 32, 4, 8  # replicates, frames that they are drawn on, frames of a run
LARGEST = 640  # side of a frame that is judged in one piece
POWER = 0.9  # share of the spots of the smallest size that are found
_PILOTS = 2  # denoisings of each base frame that say what the model removes of it
_SAFETY = 1.15  # times the scatter of the model's replicates, which are smoother than the scene
_CLIPPED = 1.1  # what a run loses by that
# Share of an atom that nine in ten vacancies in simulated graphene show: their neighbours move.
_SURE = 0.75


class Limits(NamedTuple):
    """The range of a statistic, infinite where one-sided, and its typical value."""

    low: float
    high: float
    typical: float

    def reach(self, value: ArrayLike) -> Floats:
        """Say how far out values are: up to 1 is within."""
        away = np.asarray(value) - self.typical
        bound = np.where(away > 0, self.high, self.low)
        return np.asarray(away / (bound - self.typical))


def panels_of(height: int, width: int) -> list[tuple[slice, slice]]:
    """Cut frames (H, W) into panels of one size, which may overlap by a few pixels."""

    def spans(length: int) -> list[slice]:
        count = -(-length // LARGEST)
        side = -(-length // count)
        return [slice(int(a), int(a) + side) for a in np.linspace(0, length - side, count).round()]

    return [(down, right) for down in spans(height) for right in spans(width)]


def gumbel(chance: float) -> float:
    """Return the standard deviations above the mean that the largest of many exceeds so often."""
    return float((-np.log(-np.log1p(-chance)) - np.euler_gamma) * sqrt(6) / pi)


@dataclass
class Population:
    """The statistics of replicates, as one denoiser leaves them."""

    length: int  # replicates of a run; 0 for no runs
    readings: list[Readings] = field(default_factory=list)
    pilots: list[Readings] = field(default_factory=list)  # of a base before twicing

    def add(self, raw: list[Frame], made: list[Frame], camera: Camera, good: Mask) -> None:
        """Measure results (H, W) for replicates of one base frame."""
        frames = zip(range(len(raw)), raw, made, strict=True)
        everything = [(slice(None), slice(None))]
        found = in_runs(frames, everything, camera, good, self.length)
        self.readings += [readings for _, [readings] in found]

    def values(self, name: str) -> Floats:
        """Return a statistic of every replicate."""
        return np.array([one[name].value for one in self.readings])

    @property
    def maxima(self) -> Floats:
        """Return each replicate's farthest statistic, by normal numbers of the same chance."""
        farthest = np.full(len(self.readings), -np.inf)
        count = len(farthest)
        for name in SINGLE:
            # Compared with the other replicates only: externally studentised.
            values = self.values(name)
            inner = (values - values.mean()) / max(values.std(ddof=1), 1e-9) / sqrt(1 - 1 / count)
            away = inner * np.sqrt((count - 2) / np.maximum(count - 1 - inner**2, 1e-3))
            if STATISTICS[name].below:
                away = np.abs(away)
            if STATISTICS[name].largest:
                chance = -np.expm1(-np.exp(-(np.euler_gamma + pi / sqrt(6) * away)))
                away = -special.ndtri(np.maximum(chance, 1e-300))
            farthest = np.maximum(farthest, away)
        return farthest

    def range_of(self, name: str, z: float, error: float) -> Limits:
        """Return the range of a statistic up to a normal number ``z``.

        ``error`` is the relative error of the noise's standard deviation.
        """
        own, count = STATISTICS[name], len(self.readings)
        values, single = self.values(name), self.values(name.removeprefix("run_"))
        if name in RUNS:
            count //= self.length
        typical = float(values.mean())
        spread = max(float(single.std(ddof=1)), float(values.std()), 1e-9)
        spread *= _SAFETY if self.pilots else 1.0
        reach = gumbel(float(special.ndtr(-z))) if own.largest else z
        extent = reach * spread * sqrt(1 + 1 / count) + own.tolerance
        # Power is the square of a deviation.
        extent += 3 * error * {"std": 1, "radial": 2}.get(name.partition("_")[0], 0)
        # Where no peak is sharp, the scatter says nothing.
        high = max(typical + extent, z) if name == "lattice" else typical + extent
        if not own.below:
            return Limits(-np.inf, high, typical)
        # The model leaves some noise in a base, of which it takes a part out again: what twicing
        # has added to a residual may be absent below what there was before it.
        before = np.mean([one[name].value for one in self.pilots]) if self.pilots else typical
        spare = 0.0 if name == "ratio" else max(0.0, 2 * float(typical - before))
        return Limits(typical - extent - spare, high, typical)


@dataclass(frozen=True, eq=False)
class Thresholds:
    """What results for a stack are judged by."""

    good: Mask  # (H, W), the pixels that count
    panels: list[tuple[slice, slice]]  # pieces that frames are judged in
    noise: NoiseModel
    camera: Camera
    model: Population  # replicates as the model leaves them
    perfect: Population  # as a perfect denoiser would

    @classmethod
    def of(
        cls,
        frames: Frames,
        ready: Prepared,
        denoise: Callable[[Frame], Frame],
        seed: int,
    ) -> "Thresholds":
        """Draw and denoise replicates of some frames of a stack.

        ``denoise`` takes (k, H, W) and denoises as the result was denoised.
        """
        count, size, good = frames.shape[0], frames.shape[1:], ~ready.recipe.bad
        noise = ready.recipe.noise
        camera = Camera.of(noise, frames.dtype.kind in "iub")
        panels, chance = panels_of(*size), np.random.default_rng(seed)
        numbers = np.linspace(0, count - 1, min(BASES, count)).astype(int).tolist()
        length = min(RUN, count, DRAWS // len(numbers)) if count > 1 else 0
        model, perfect = Population(length), Population(length)

        def replicates(truth: Frame, number: int) -> tuple[list[Frame], list[Frame]]:
            drawn = [camera.draw(truth, chance) for _ in range(number)]
            return drawn, [denoise(noisy[None])[0] for noisy in drawn]

        for at, number in enumerate(numbers):
            panel = panels[at % len(panels)]
            usable = good[panel]
            truth = first = denoise(ready.read(number, number + 1)[:, *panel])[0]
            for step in (1, 2):
                drawn, made = replicates(truth, _PILOTS)
                if step == 1:
                    pairs = zip(drawn, made, strict=True)
                    model.pilots += [measure(*pair, camera, usable)[0] for pair in pairs]
                truth = truth + (first - np.mean(made, axis=0)) / step
                truth = np.maximum(truth, camera.offset).astype(np.float32)
            drawn, made = replicates(truth, DRAWS // len(numbers))
            model.add(drawn, made, camera, usable)
            perfect.add(drawn, [truth] * len(drawn), camera, usable)
        return cls(good, panels, noise, camera, model, perfect)

    @cached_property
    def limits(self) -> dict[str, Limits]:
        """Return the range of every statistic of a frame, by name."""
        return self.within(LEVEL)

    def within(self, chance: float) -> dict[str, Limits]:
        """Return the ranges that so many of sound frames are not within."""
        maxima = np.concatenate([self.model.maxima, self.perfect.maxima])
        z = float(maxima.mean() + maxima.std() * gumbel(chance / len(self.panels)))
        found = {}
        for name in (*SINGLE, *RUNS) if self.model.length else SINGLE:
            one, other = (
                part.range_of(name, z, self.camera.uncertainty)
                for part in (self.model, self.perfect)
            )
            low, high = min(one.low, other.low), max(one.high, other.high)
            found[name] = Limits(low, high, one.typical)
        return found

    @property
    def names(self) -> list[str]:
        """Return the statistics that say something: of correlated noise only the intensity's."""
        return ["ratio"] if self.noise.correlated else list(self.limits)

    def is_noise(self, name: str, reading: Reading) -> bool:
        """Say if what residual and result share in a band is noise left in, which adds to both."""
        parts = self.model.readings, self.perfect.readings
        return all(reading.strength > np.mean([one[name].strength for one in p]) for p in parts)

    def smallest(self, raw: Frame, denoised: Frame) -> dict[str, float] | None:
        """Find the smallest false spot that is flagged in `POWER` of cases, in one frame (H, W).

        ``percent`` is that of the contrast of the frame's detail, `_SURE` times the distance of its
        1 % or 99 % quantile from the median: of atoms, about their height. ``run_percent`` is that
        of a spot that stays for a run of frames, ``width_px`` that of the detail, and of the spot,
        a Gaussian. None in correlated noise, where no place is judged.
        """
        if self.noise.correlated:
            return None
        gain, offset = self.camera.gain, self.camera.offset
        spread = smoothed(in_sigma(raw, denoised, gain, offset)).std(axis=(1, 2))
        bright = float(np.quantile(denoised, POWER))  # where the beam is bright, less is seen
        level = sqrt(gain * max(bright - offset, 0.01 * gain))
        detail = denoised - ndimage.gaussian_filter(denoised, 0.1 * min(raw.shape))
        slopes = sum(float(one.var()) for one in np.gradient(detail))
        width = float(np.clip((detail.var() / max(slopes, 1e-30)) ** 0.5, 1, SCALES[-1]))
        middle, *ends = np.quantile(detail, (0.5, 0.01, 0.99))
        height = max(_SURE * float(np.abs(np.array(ends) - middle).max()), 1e-6 * level)

        def percent(prefix: str) -> float:
            """Compare the faintest spot that rises above the limits of blobs with ``height``."""
            norm = min(
                (self.limits[f"{prefix}blob_{scale:g}"].high + special.ndtri(POWER))
                * float(one) * (width**2 + scale**2) / (2 * width * scale)
                for scale, one in zip(SCALES, spread, strict=True)
            )  # fmt: skip
            return float(100 * level * norm / (sqrt(pi) * width * height))

        found = {"percent": percent(""), "width_px": width}
        if (length := self.model.length) > 1:
            found["run_percent"] = _CLIPPED * percent("run_") / sqrt(length)
        return found
