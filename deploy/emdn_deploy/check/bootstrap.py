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
from scipy import ndimage, special

from emdn_deploy.check.quick import SHARE
from emdn_deploy.check.residual import (
    RUNS,
    SCALES,
    SINGLE,
    STATISTICS,
    Camera,
    Floats,
    Frame,
    Mask,
    Measured,
    measure,
    smoothed,
    spots_of,
)
from emdn_deploy.dose import NoiseModel
from emdn_deploy.preprocess import Prepared
from emdn_deploy.readers import Frames

LEVEL = 0.05  # false alarms among sound frames, all statistics together, that are aimed at
REASONS = 3  # that residuals can fail a stack for (`emdn_deploy.check.verdict.judge`)
DRAWS, BASES, RUN = 32, 4, 8  # replicates, frames that they are drawn on, frames of a run
LARGEST = 640  # side of a frame that is judged in one piece
POWER = 0.9  # share of the spots of the smallest size that are found
_PILOTS = 2  # denoisings of each base frame that say what the model removes of it
_SAFETY = 1.15  # times the scatter of the model's replicates, which are smoother than the scene
_MOST = 3.0  # standard deviations that a frame counts for at most in a run
_CLIPPED = 1.1  # what a run loses by that
# Share of an atom that nine in ten vacancies in simulated graphene show: their neighbours move.
_SURE = 0.75


class Limits(NamedTuple):
    """The range of a statistic, infinite where one-sided, and its typical value."""

    low: float
    high: float
    typical: float

    def holds(self, value: float) -> bool:
        """Whether a value is within."""
        return self.low <= value <= self.high


def panels_of(height: int, width: int) -> list[tuple[slice, slice]]:
    """Cut frames (H, W) into panels of one size, which may overlap by a few pixels."""

    def spans(length: int) -> list[slice]:
        count = -(-length // LARGEST)
        side = -(-length // count)
        return [slice(int(a), int(a) + side) for a in np.linspace(0, length - side, count).round()]

    return [(down, right) for down in spans(height) for right in spans(width)]


def share(fields: Frame) -> Frame:
    """Limit what one frame's fields (S, H, W) count for in a sum over a run of frames."""
    # A faint atom counts in full; what stands out in one frame is not found in its neighbours.
    return np.clip(fields, -_MOST, _MOST)


def gumbel(chance: float) -> float:
    """Return the standard deviations above the mean that the largest of many exceeds so often."""
    return float((-np.log(-np.log1p(-chance)) - np.euler_gamma) * sqrt(6) / pi)


@dataclass
class Population:
    """The statistics of replicates, as one denoiser leaves them."""

    values: list[Floats] = field(default_factory=list)  # in the order of `SINGLE`
    strength: list[Floats] = field(default_factory=list)  # of `Measured`
    # Of the average over each run of replicates, in the order of `RUNS`.
    runs: list[Floats] = field(default_factory=list)
    # Of what the model first makes of a base, before twicing.
    pilots: list[Floats] = field(default_factory=list)

    @property
    def maxima(self) -> Floats:
        """Return each replicate's farthest statistic, by normal numbers of the same chance."""
        values = np.array(self.values)
        count = len(values)
        # Compared with the other replicates only: externally studentised.
        inner = (values - values.mean(0)) / np.maximum(values.std(0, ddof=1), 1e-9)
        inner /= sqrt(1 - 1 / count)
        away = inner * np.sqrt((count - 2) / np.maximum(count - 1 - inner**2, 1e-3))
        below = np.array([bool(STATISTICS[name].below) for name in SINGLE])
        largest = np.array([STATISTICS[name].largest for name in SINGLE])
        away = np.where(below, np.abs(away), away)
        chance = -np.expm1(-np.exp(-(np.euler_gamma + pi / sqrt(6) * away[:, largest])))
        away[:, largest] = -special.ndtri(np.maximum(chance, 1e-300))
        return np.asarray(away.max(axis=1))

    def range_of(self, name: str, z: float, error: float) -> Limits:
        """Return the range of a statistic up to a normal number ``z``.

        ``error`` is the relative error of the noise's standard deviation.
        """
        own = STATISTICS[name]
        at = SINGLE.index(name.removeprefix("run_"))
        single = np.array(self.values)[:, at]
        values = np.array(self.runs)[:, RUNS.index(name)] if name in RUNS else single
        typical = float(values.mean())
        spread = max(float(single.std(ddof=1)), float(values.std()), 1e-9)
        spread *= _SAFETY if self.pilots else 1.0
        reach = gumbel(float(special.ndtr(-z))) if own.largest else z
        extent = reach * spread * sqrt(1 + 1 / len(values)) + own.tolerance
        # Power is the square of a deviation.
        extent += 3 * error * {"std": 1, "radial": 2}.get(name.partition("_")[0], 0)
        high = max(typical + extent, z) if own.least else typical + extent
        if not own.below:
            return Limits(-np.inf, high, typical)
        # The model leaves some noise in a base, of which it takes a part out again: what twicing
        # has added to a residual may be absent below what there was before it.
        before = np.array(self.pilots)[:, at].mean() if self.pilots else typical
        spare = 0.0 if name == "ratio" else max(0.0, 2 * float(typical - before))
        return Limits(typical - extent - spare, high, typical)


def _single(found: Measured) -> Floats:
    return np.array([found.values[name] for name in SINGLE])


@dataclass(frozen=True, eq=False)
class Thresholds:
    """What results for a stack are judged by."""

    good: Mask  # (H, W), the pixels that count
    noise: NoiseModel
    camera: Camera
    model: Population  # replicates as the model leaves them
    perfect: Population  # as a perfect denoiser would
    length: int  # frames of a run; 0 for no runs
    error: float  # mean squared error of the model on replicates, intensity units squared

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
        model, perfect = Population(), Population()
        errors: list[float] = []
        for at, number in enumerate(numbers):
            panel = panels[at % len(panels)]
            usable = good[panel]
            first = denoise(ready.read(number, number + 1)[:, *panel])[0]
            truth = first
            for step in (1, 2):
                drawn = [camera.draw(truth, chance) for _ in range(_PILOTS)]
                made = [denoise(noisy[None])[0] for noisy in drawn]
                if step == 1:
                    model.pilots += [
                        _single(measure(noisy, clean, camera, usable))
                        for noisy, clean in zip(drawn, made, strict=True)
                    ]
                truth = truth + (first - np.mean(made, axis=0)) / step
                truth = np.maximum(truth, camera.offset).astype(np.float32)
            drawn = [camera.draw(truth, chance) for _ in range(DRAWS // len(numbers))]
            made = [denoise(noisy[None])[0] for noisy in drawn]
            errors += [float(np.square(clean - truth).mean(where=usable)) for clean in made]
            for population, results in ((model, made), (perfect, [truth] * len(drawn))):
                fields: list[Frame] = []
                for noisy, result in zip(drawn, results, strict=True):
                    found = measure(noisy, result, camera, usable)
                    population.values.append(_single(found))
                    population.strength.append(found.strength)
                    fields.append(share(found.fields))
                    if len(fields) == length:
                        total = np.sum(fields, axis=0) / np.float32(length**0.5)
                        spots = spots_of(total, "run_blob").values()
                        population.runs.append(np.array([one.contrast for one in spots]))
                        fields.clear()
        return cls(good, noise, camera, model, perfect, length, float(np.mean(errors)))

    @property
    def outside(self) -> tuple[str, ...]:
        """Return what the noise has that the models have not seen."""
        return self.noise.findings

    @cached_property
    def panels(self) -> list[tuple[slice, slice]]:
        """Return the pieces that frames are judged in."""
        return panels_of(*self.good.shape)

    @cached_property
    def limits(self) -> dict[str, Limits]:
        """Return the range of every statistic of a frame, by name."""
        return self._limits(LEVEL)

    def farthest(self, count: int) -> dict[str, Limits]:
        """Return the range of the farthest of so many frames."""
        return self._limits(SHARE / count)

    def _limits(self, chance: float) -> dict[str, Limits]:
        maxima = np.concatenate([self.model.maxima, self.perfect.maxima])
        z = float(maxima.mean() + maxima.std() * gumbel(chance / len(self.panels)))
        error = self.camera.uncertainty
        found = {}
        for name in (*SINGLE, *RUNS) if self.length else SINGLE:
            one, other = (part.range_of(name, z, error) for part in (self.model, self.perfect))
            low, high = min(one.low, other.low), max(one.high, other.high)
            found[name] = Limits(low, high, one.typical)
        return found

    @property
    def judged(self) -> list[str]:
        """Return the statistics that say something: of correlated noise only the intensity's."""
        return ["ratio"] if self.noise.correlated else list(self.limits)

    def is_noise(self, name: str, strength: Floats) -> bool:
        """Whether what residual and result share in a band is noise left in."""
        band = int(name.rpartition("_")[2]) - 1
        known = [np.mean(part.strength, axis=0)[band] for part in (self.model, self.perfect)]
        return bool(strength[band] > max(known))

    def smallest(self, raw: Frame, denoised: Frame) -> "Smallest":
        """Find the smallest false spot that is flagged in `POWER` of cases, in one frame (H, W)."""
        if self.noise.correlated:
            return Smallest(None, None, 0.0, 0)
        noise = self.camera.noise(denoised)
        spread = smoothed((raw - denoised) / noise).std(axis=(1, 2))
        level = float(np.quantile(noise, POWER))  # where the beam is bright, less is seen
        detail = denoised - ndimage.gaussian_filter(denoised, 0.1 * min(raw.shape))
        slopes = sum(float(one.var()) for one in np.gradient(detail))
        width = float(np.clip((detail.var() / max(slopes, 1e-30)) ** 0.5, 1, SCALES[-1]))
        middle, *ends = np.quantile(detail, (0.5, 0.01, 0.99))
        height = max(_SURE * float(np.abs(np.array(ends) - middle).max()), 1e-6 * level)

        def percent(prefix: str) -> float:
            """Compare the faintest spot that rises above the limits of blobs with ``height``."""
            norm = min(
                (self.limits[f"{prefix}blob_{scale:g}"].high + special.ndtri(POWER)) * float(one)
                * (width**2 + scale**2) / (2 * width * scale)
                for scale, one in zip(SCALES, spread, strict=True)
            )  # fmt: skip
            return float(100 * level * norm / (sqrt(pi) * width * height))

        run = _CLIPPED * percent("run_") / sqrt(self.length) if self.length > 1 else None
        return Smallest(percent(""), run, width, self.length)


class Smallest(NamedTuple):
    """The smallest false spot that is found, in per cent of the contrast of the frame's detail.

    That is the distance of its 1 % or 99 % quantile from the median, whichever is larger: of atoms,
    about their height; and of that `_SURE`. The spot is a Gaussian as wide as the detail.
    """

    percent: float | None  # None in correlated noise, where no place is judged
    run_percent: float | None  # of one that stays for a ``run`` of frames; None without runs
    width_px: float
    run: int

    @property
    def words(self) -> str:
        """Say what a pass does not."""

        def rounded(percent: float) -> str:
            return f"{float(f'{percent:.2g}'):g}"

        if self.percent is None:
            return "a false atom cannot be seen: in correlated noise no place is judged"
        words = (
            f"a filled vacancy, or other false spot of {self.width_px:.2g} px, is noticed above "
            f"{rounded(self.percent)} % of the contrast of atoms"
        )
        if self.run_percent is not None:
            run = rounded(self.run_percent)
            words += f" in one frame, {run} % if it stays for {self.run} frames"
        if self.percent > 100:
            words += ": single vacancies can be filled unseen at this dose"
        return words
