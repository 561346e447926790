"""The residual, raw - denoised, in units of the expected noise, and its statistics."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import isfinite
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from emdn_deploy.check.quick import in_sigma
from emdn_deploy.dose import NoiseModel
from emdn_models.errors import EmdnError
from emdn_models.metrics import mean_ratio

SCALES = (2.0, 4.0, 8.0)  # pixels, the Gaussians that look for blobs: an atom, and larger
BANDS = np.array([0, 0.03, 0.1, 0.2, 0.5])  # cycles/pixel, ends of the bands of spectra

_UNKNOWN = 0.01  # error of one frame's noise, which is told from its structure by assumption
_PEAKS = 16  # sharp peaks of a denoised frame that are compared one by one
_SHARP = 12.0  # how far above the median power of its ring a sharp peak is
_SHARE = 0.15  # of a peak's amplitude that a denoiser may take
_MOST = 3.0  # standard deviations that a frame counts for at most in a run
_MEDIAN = 0.6745  # of the size of a normal number

Frame = NDArray[np.float32]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Camera:
    """Counting noise times gain."""

    gain: float  # intensity units per electron
    offset: float  # intensity of a pixel without electrons, lower where there is read noise
    uncertainty: float  # relative standard error of the noise's standard deviation
    integer: bool  # whether pixels are whole numbers

    @classmethod
    def of(cls, noise: NoiseModel, integer: bool) -> "Camera":
        """Take from a noise model what the noise's size depends on."""
        known = isfinite(noise.gain_error)
        if noise.counting:
            return cls(1.0, 0.0, noise.gain_error / 2 if known else 0.0, integer)
        error = noise.gain_error / noise.gain / 2 if known else _UNKNOWN
        return cls(noise.gain, noise.offset, error, integer)

    def draw(self, truth: Frame, chance: np.random.Generator) -> Frame:
        """Draw a frame of which ``truth`` (H, W) is the expected value."""
        electrons = np.maximum((truth.astype(np.float64) - self.offset) / self.gain, 0)
        drawn = self.gain * chance.poisson(electrons) + self.offset
        return np.asarray(np.rint(drawn) if self.integer else drawn, dtype=np.float32)


class Statistic(NamedTuple):
    """What a number is called and how it is judged."""

    words: str
    above: str  # the verdict above the upper limit
    below: str = ""  # the verdict below the lower limit; empty for no lower limit
    largest: bool = False  # whether it is the largest of many numbers, with the tail of such
    tolerance: float = 0.0  # deviation from the typical value that never counts


REMOVED, ADDED, SMOOTHED = "structure removed", "structure added", "over-smoothed"
NOISE, CHANGED = "noise left in", "intensity changed"

STATISTICS = {
    "ratio": Statistic("mean out / mean in", CHANGED, CHANGED, tolerance=0.002),
    "std": Statistic("standard deviation of the residual", REMOVED, NOISE, tolerance=0.004),
    "columns": Statistic("RMS of the residual's column means, in sigma", REMOVED),
    "rows": Statistic("RMS of the residual's row means, in sigma", REMOVED),
    "peak": Statistic("largest peak in the residual's power over noise", SMOOTHED, largest=True),
    "lattice": Statistic("a lattice's peak stronger than in the raw frame, in sigma", ADDED),
}
for _n, _ends in enumerate(pairwise(BANDS.tolist()), 1):
    _where = "at {:g} to {:g} cycles/pixel".format(*_ends)
    STATISTICS |= {
        f"radial_{_n}": Statistic(f"power of the residual over noise {_where}", SMOOTHED, NOISE),
        f"match_{_n}": Statistic(
            f"likeness of residual and denoised frame {_where}, in sigma", SMOOTHED, ADDED
        ),
    }
for _scale in SCALES:
    for _run, _of in (("", "residual"), ("run_", "average residual of the run")):
        _words = f"blob of {_scale:g} px in the {_of}, in sigma"
        STATISTICS[f"{_run}blob_{_scale:g}"] = Statistic(_words, REMOVED, largest=True)
RUNS = tuple(name for name in STATISTICS if name.startswith("run_"))
SINGLE = tuple(name for name in STATISTICS if name not in RUNS)


class Reading(NamedTuple):
    """A statistic of a frame, or of a panel of a large one, and what it comes from."""

    value: float
    more: bool = False  # whether the denoised frame has more of it, or is brighter there
    place: tuple[float, float] = (0, 0)  # y, x: of a blob in pixels, of a peak in cycles/pixel
    strength: float = 0.0  # of a likeness: amplitude of the denoised frame in the band


Readings = dict[str, Reading]


class Filters(NamedTuple):
    """What depends on the size (H, W) of a frame only, for ``rfft2``."""

    window: Frame  # (H, W) Hann window, over the root of the sum of its squares
    bands: NDArray[np.intp]  # (H, W // 2 + 1) band of each Fourier pixel, from 1; 0 for none
    far: Mask  # whether a peak there is no large-scale structure
    rings: NDArray[np.intp]  # numbers of circles as wide as the coarser step, to 0.5; 0 beyond

    def sums(self, values: Floats) -> Floats:
        """Sum values (H, W // 2 + 1) over the bands: (4,)."""
        sums = np.bincount(self.bands.ravel(), values.ravel(), len(BANDS))
        return np.asarray(sums[1:], np.float64)


@lru_cache(maxsize=4)
def filters(height: int, width: int) -> Filters:
    """Prepare the statistics of frames (H, W)."""
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    window = np.outer(*(np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2 for n in (height, width)))
    side = min(height, width)
    rings = np.rint(radius * side).astype(np.intp)
    rings[rings > (side - 1) // 2] = 0
    return Filters(
        (window / np.sqrt(np.square(window).sum())).astype(np.float32),
        np.searchsorted(BANDS, radius) % len(BANDS),
        (radius > 0.02) & (radius * side > 4),
        rings,
    )


def measure(raw: Frame, denoised: Frame, camera: Camera, good: Mask) -> tuple[Readings, Frame]:
    """Measure the residual of a frame (H, W), at least 16 x 16, by its ``good`` pixels.

    Returns the statistics of `SINGLE`, and `smoothed` of the residual. EmdnError if the denoised
    frame is on average not brighter than the camera's offset.
    """
    if not denoised.mean(dtype=np.float64) > camera.offset:
        raise EmdnError(
            f"denoised: found a frame with mean {denoised.mean():g}, expected more than the "
            f"offset, {camera.offset:g}; give the offset of the camera"
        )
    scaled = in_sigma(raw, denoised, camera.gain, camera.offset).astype(np.float64)
    # A change of the mean is judged as such and not as a blob.
    about = np.where(good, scaled - scaled.mean(where=good), 0)
    ratio = mean_ratio(denoised - camera.offset, raw - camera.offset, good)
    std = float(np.square(about).sum() / good.sum()) ** 0.5
    found = {"ratio": Reading(float(ratio)), "std": Reading(std)}
    for axis, name in enumerate(("columns", "rows")):
        means = about.sum(axis=axis) / np.sqrt(np.maximum(good.sum(axis=axis), 1))
        brighter = bool(means[np.abs(means).argmax()] < 0)
        found[name] = Reading(float(np.sqrt(np.mean(means**2))), brighter)
    own, power = filters(*raw.shape), np.square(np.abs(np.fft.rfft2(about))) / float(good.sum())
    radial = own.sums(power) / np.maximum(own.sums(np.ones_like(power)), 1)
    found |= {f"radial_{n}": Reading(float(one)) for n, one in enumerate(radial, 1)}
    unit = np.float32(camera.gain)  # float32 does not hold the square of every unit
    level = np.sqrt(max(float(np.var((raw - denoised) / unit)), 1e-30))
    detail = (denoised - denoised.mean()) / unit / np.float32(level)
    single = about.astype(np.float32)
    fields = smoothed(single)
    return found | _compare(single, detail, own) | blobs(fields, "blob"), fields


def in_runs(
    frames: Iterable[tuple[int, Frame, Frame]],
    panels: list[tuple[slice, slice]],
    camera: Camera,
    good: Mask,
    length: int,
) -> Iterator[tuple[int, list[Readings]]]:
    """Measure the panels of frames: number, raw and denoised (H, W).

    Those of the average residual of each ``length`` frames, and of a last, shorter run, are with
    each frame of the run; 0 for none.
    """
    waiting: list[tuple[int, list[Readings]]] = []
    sums: list[Frame] = []

    def complete() -> Iterator[tuple[int, list[Readings]]]:
        root = np.float32(len(waiting) ** 0.5)
        runs = [blobs(total / root, "run_blob") for total in sums] or [{}] * len(panels)
        for number, found in waiting:
            yield number, [one | run for one, run in zip(found, runs, strict=True)]
        waiting.clear()
        sums.clear()

    for number, raw, denoised in frames:
        parts = [measure(raw[at], denoised[at], camera, good[at]) for at in panels]
        waiting.append((number, [readings for readings, _ in parts]))
        if length:
            # A faint atom counts in full; what stands out in one frame is not found in others.
            fields = [np.clip(smooth, -_MOST, _MOST) for _, smooth in parts]
            sums[:] = [a + b for a, b in zip(sums, fields, strict=True)] if sums else fields
        if len(waiting) >= length:
            yield from complete()
    yield from complete()


def _compare(scaled: Frame, detail: Frame, own: Filters) -> Readings:
    """Compare the spectra of residual and denoised frame, in the same units, through a window.

    ``match_1`` and so on: projection of the residual on the denoised frame, in units of the
    residual's own scatter, white noise's at most; ``peak``, the largest power of the residual;
    ``lattice``, the largest projection on a sharp peak of the denoised frame's negative.
    """
    left, after = (np.fft.rfft2(one * own.window) for one in (scaled, detail))
    across = (left * after.conj()).real
    power, remaining = np.square(np.abs(left)), np.square(np.abs(after))
    sums, norms, scatter, count = (
        own.sums(one) for one in (across, remaining, power, np.ones_like(power))
    )
    usual = np.clip(scatter / np.maximum(count, 1), 1e-12, 1)
    # Half a transform stands for all of it.
    match, strength = sums * np.sqrt(2 / (np.maximum(norms, 1e-12) * usual)), np.sqrt(norms)
    # Of a strong peak a denoiser may take a little.
    alone = power * (own.far & (power > _SHARE**2 * np.square(np.abs(left + after))))
    y, x = np.unravel_index(alone.argmax(), power.shape)
    peaks = _sharp(remaining, own)
    more = -np.sqrt(2 / remaining.ravel()[peaks]) * across.ravel()[peaks]
    brighter = bool(abs(after[y, x]) > abs(after[y, x] + left[y, x]))
    height, width = scaled.shape
    place = float(np.fft.fftfreq(height)[y]), float(x / width)
    return {
        **{
            f"match_{n}": Reading(float(value), strength=float(strength[n - 1]))
            for n, value in enumerate(match, 1)
        },
        "peak": Reading(float(alone[y, x]), brighter, place),
        "lattice": Reading(float(more.max(initial=0.0))),
    }


def _sharp(power: Floats, own: Filters) -> list[int]:
    """Return the flat indices of the sharpest peaks of a denoised frame's power spectrum."""
    flat, rings = power.ravel(), own.rings.ravel()
    highest = ndimage.maximum_filter(power, 3, mode="wrap")
    candidates = np.flatnonzero((power == highest) & own.far & (own.rings > 0))
    candidates = candidates[np.argsort(flat[candidates])[::-1][: 4 * _PEAKS]]
    usual = ndimage.median(flat, rings, rings[candidates])
    return [int(at) for at in candidates[flat[candidates] > _SHARP * usual]][:_PEAKS]


def smoothed(residual: Frame) -> Frame:
    """Smooth a residual (H, W) at every scale: (S, H, W), in standard deviations of white noise."""
    # A Gaussian leaves 1 / (2 sqrt(pi) scale) of white noise's deviation.
    parts = [ndimage.gaussian_filter(residual, scale, mode="wrap") * scale for scale in SCALES]
    return np.asarray(2 * np.sqrt(np.pi) * np.stack(parts), np.float32)


def blobs(fields: Frame, name: str) -> Readings:
    """Find what is farthest from 0 at every scale of `smoothed` (S, H, W): ``name_2`` and so on.

    Values are in standard deviations of the smoothed residual itself (by its median), of white
    noise at most: a blob counts for more where there is less to scatter.
    """
    found = {}
    for scale, field in zip(SCALES, fields, strict=True):
        size = np.abs(field)
        y, x = (int(i) for i in np.unravel_index(size.argmax(), field.shape))
        usual = min(max(float(np.median(size)) / _MEDIAN, 1e-6), 1.0)
        found[f"{name}_{scale:g}"] = Reading(float(size[y, x]) / usual, field[y, x] < 0, (y, x))
    return found
