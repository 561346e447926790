"""The residual, raw - denoised, in units of the expected noise, and its statistics."""

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import isfinite
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from emdn_deploy.dose import NoiseModel
from emdn_models.errors import EmdnError
from emdn_models.metrics import mean_ratio, rings

SCALES = (2.0, 4.0, 8.0)  # pixels, the Gaussians that look for blobs: an atom, and larger
BANDS = np.array([0, 0.03, 0.1, 0.2, 0.5])  # cycles/pixel, ends of the bands of spectra

_DARK = 0.01  # lowest noise variance, relative to the frame's mean
_UNKNOWN = 0.01  # error of one frame's noise, which is told from its structure by assumption
_PEAKS = 16  # sharp peaks of a denoised frame that are compared one by one
_SHARP = 12.0  # how far above the median power of its ring a sharp peak is
_SHARE = 0.15  # of a peak's amplitude that a denoiser may take
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

    def noise(self, expected: Frame) -> Frame:
        """Return the noise's standard deviation at expected values, intensity units."""
        electrons = np.maximum((expected - self.offset) / self.gain, 0.01)
        return np.asarray(self.gain * np.sqrt(electrons), np.float32)

    def in_sigma(self, raw: Frame, denoised: Frame) -> Floats:
        """Divide raw - denoised (H, W) by the noise that is expected there.

        Raises
        ------
        EmdnError
            If the denoised frame is on average not brighter than the offset.
        """
        clean = denoised.astype(np.float64)
        variance = self.gain * (clean - self.offset)
        level = float(variance.mean())
        if not level > 0:
            raise EmdnError(
                f"denoised: found a frame with mean {clean.mean():g}, expected more than the "
                f"offset, {self.offset:g}; give the offset of the camera"
            )
        return np.asarray((raw - clean) / np.sqrt(np.maximum(variance, _DARK * level)))

    def draw(self, truth: Frame, chance: np.random.Generator) -> Frame:
        """Draw a frame of which ``truth`` (H, W) is the expected value."""
        electrons = np.maximum((truth.astype(np.float64) - self.offset) / self.gain, 0)
        drawn = self.gain * chance.poisson(electrons) + self.offset
        return np.asarray(np.rint(drawn) if self.integer else drawn, dtype=np.float32)


class Statistic(NamedTuple):
    """What a number is called and how it is judged."""

    words: str
    unit: str  # empty for a number that speaks for itself
    above: str  # the verdict above the upper limit
    below: str = ""  # the verdict below the lower limit; empty for no lower limit
    largest: bool = False  # whether it is the largest of many numbers, with the tail of such
    tolerance: float = 0.0  # deviation from the typical value that never counts
    least: bool = False  # whether no upper limit is below that of a normal number

    def written(self, value: float) -> str:
        """Write a value with its unit."""
        return f"{value:.3g} {self.unit}" if self.unit else f"{value:.4g}"


REMOVED, ADDED, SMOOTHED = "structure removed", "structure added", "over-smoothed"
NOISE, CHANGED = "noise left in", "intensity changed"


_IN_BANDS = {
    n: f"at {low:g} to {high:g} cycles/pixel"
    for n, (low, high) in enumerate(pairwise(BANDS.tolist()), 1)
}

STATISTICS = {
    "ratio": Statistic("mean out / mean in", "", CHANGED, CHANGED, tolerance=0.002),
    "std": Statistic(
        "standard deviation of the residual", "", REMOVED, NOISE, tolerance=0.004
    ),
    "columns": Statistic("RMS of the residual's column means", "sigma", REMOVED),
    "rows": Statistic("RMS of the residual's row means", "sigma", REMOVED),
    "peak": Statistic(
        "largest peak in the residual's power", "times the noise's", SMOOTHED, largest=True
    ),
    "lattice": Statistic(
        "a lattice's peak stronger than in the raw frame", "sigma", ADDED, least=True
    ),
    **{
        f"radial_{n}": Statistic(
            f"power of the residual {where}", "times the noise's", SMOOTHED, NOISE
        )
        for n, where in _IN_BANDS.items()
    },
    **{
        f"match_{n}": Statistic(
            f"likeness of residual and denoised frame {where}", "sigma", SMOOTHED, ADDED
        )
        for n, where in _IN_BANDS.items()
    },
    **{
        f"{run}blob_{scale:g}": Statistic(
            f"blob of {scale:g} px in the {name}", "sigma", REMOVED, largest=True
        )
        for run, name in (("", "residual"), ("run_", "average residual of the run"))
        for scale in SCALES
    },
}  # fmt: skip
RUNS = tuple(name for name in STATISTICS if name.startswith("run_"))
SINGLE = tuple(name for name in STATISTICS if name not in RUNS)


class Filters(NamedTuple):
    """What depends on the size (H, W) of a frame only, for ``rfft2``."""

    smooth: Frame  # (S, H, W // 2 + 1) Gaussians, over what they leave of white noise's deviation
    window: Frame  # (H, W) Hann window, over the root of the sum of its squares
    bands: NDArray[np.intp]  # (H, W // 2 + 1) band of each Fourier pixel, from 1; 0 for none
    far: Mask  # whether a peak there is no large-scale structure
    weights: Floats  # how many pixels of the full transform each stands for

    def sums(self, values: Floats) -> Floats:
        """Sum values (H, W // 2 + 1) over the bands: (4,)."""
        weighted = (self.weights * values).ravel()
        return np.asarray(np.bincount(self.bands.ravel(), weighted, len(BANDS))[1:], np.float64)


@lru_cache(maxsize=4)
def filters(height: int, width: int) -> Filters:
    """Prepare the statistics of frames (H, W)."""
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    weights = rings(height, width).weights
    smooth = np.stack([np.exp(-2 * (np.pi * scale * radius) ** 2) for scale in SCALES])
    left = (weights * smooth**2).sum(axis=(1, 2)) / (height * width)
    window = np.outer(*(np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2 for n in (height, width)))
    return Filters(
        (smooth / np.sqrt(left)[:, None, None]).astype(np.float32),
        (window / np.sqrt(np.square(window).sum())).astype(np.float32),
        np.searchsorted(BANDS, radius) % len(BANDS),
        (radius > 0.02) & (radius * min(height, width) > 4),
        weights,
    )


class Spot(NamedTuple):
    """A place of the smoothed residual."""

    y: int  # pixels
    x: int
    scale: float  # standard deviation in pixels of the Gaussian that it was smoothed with
    z: float  # in standard deviations of white noise; negative where denoised is brighter than raw
    # Without sign, in standard deviations of the smoothed residual itself (by its median), of white
    # noise at most: so a spot counts for more where there is less to scatter.
    contrast: float


class Measured(NamedTuple):
    """The statistics of a frame, or of a panel of a large one."""

    values: dict[str, float]  # by the names of `SINGLE`
    added: set[str]  # those of which the denoised frame has more, or where it is brighter
    strength: Floats  # (4,) amplitude of the denoised frame in the bands
    spots: dict[str, Spot]  # the largest, by ``blob_2`` and so on
    peak: tuple[float, float]  # where it is, (y, x) in cycles/pixel
    fields: Frame  # (S, H, W) the smoothed residual, in standard deviations of white noise


def measure(raw: Frame, denoised: Frame, camera: Camera, good: Mask) -> Measured:
    """Measure the residual of a frame (H, W), at least 16 x 16, by its ``good`` pixels.

    EmdnError if the denoised frame is on average not brighter than the camera's offset.
    """
    scaled = camera.in_sigma(raw, denoised)
    # A change of the mean is judged as such and not as a blob.
    about = np.where(good, scaled - scaled.mean(where=good), 0)
    values = {
        "ratio": float(mean_ratio(denoised - camera.offset, raw - camera.offset, good)),
        "std": float(np.square(about).sum() / good.sum()) ** 0.5,
    }
    added = set()
    for axis, name in enumerate(("columns", "rows")):
        means = about.sum(axis=axis) / np.sqrt(np.maximum(good.sum(axis=axis), 1))
        values[name] = float(np.sqrt(np.mean(means**2)))
        if means[np.abs(means).argmax()] < 0:
            added.add(name)
    own, power = filters(*raw.shape), np.square(np.abs(np.fft.rfft2(about))) / float(good.sum())
    radial = own.sums(power) / np.maximum(own.sums(np.ones_like(power)), 1)
    values |= {f"radial_{n}": float(one) for n, one in enumerate(radial, 1)}
    unit = np.float32(camera.gain)  # float32 does not hold the square of every unit
    level = np.sqrt(max(float(np.var((raw - denoised) / unit)), 1e-30))
    detail = (denoised - denoised.mean()) / unit / np.float32(level)
    single = about.astype(np.float32)
    spectra, strength, peak = _compare(single, detail, own, rings(*raw.shape).labels)
    fields = smoothed(single)
    spots = spots_of(fields, "blob")
    values |= spectra | {name: spot.contrast for name, spot in spots.items()}
    added |= {name for name, spot in spots.items() if spot.z < 0}
    if peak[0]:
        added.add("peak")
    return Measured(values, added, strength, spots, peak[1:], fields)


def _compare(
    scaled: Frame, detail: Frame, own: Filters, labels: NDArray[np.intp]
) -> tuple[dict[str, float], Floats, tuple[bool, float, float]]:
    """Compare the spectra of residual and denoised frame, in the same units, through a window.

    Returns ``match_1`` and so on: projection of the residual on the denoised frame, in units of the
    residual's own scatter, white noise's at most; ``peak``, the largest power of the residual;
    ``lattice``, the largest projection on a sharp peak of the denoised frame's negative; then
    ``strength`` of `Measured`; whether the denoised frame has more of the peak; and where it is.
    """
    left, after = (np.fft.rfft2(one * own.window) for one in (scaled, detail))
    across = (left * after.conj()).real
    power, remaining = np.square(np.abs(left)), np.square(np.abs(after))
    sums, norms, scatter, count = (
        own.sums(one) for one in (across, remaining, power, np.ones_like(power))
    )
    strength = np.sqrt(np.maximum(norms, 1e-12))
    match = sums / strength / np.sqrt(np.clip(scatter / np.maximum(count, 1), 1e-12, 1))
    # Of a strong peak a denoiser may take a little.
    alone = power * (own.far & (power > _SHARE**2 * np.square(np.abs(left + after))))
    y, x = np.unravel_index(alone.argmax(), power.shape)
    peaks = _sharp(remaining, own.far, labels)
    more = -np.sqrt(2 / remaining.ravel()[peaks]) * across.ravel()[peaks]
    values = {f"match_{n}": float(one) for n, one in enumerate(match, 1)}
    values |= {"peak": float(alone[y, x]), "lattice": float(more.max(initial=0.0))}
    brighter = bool(abs(after[y, x]) > abs(after[y, x] + left[y, x]))
    height, width = scaled.shape
    return values, strength, (brighter, float(np.fft.fftfreq(height)[y]), float(x / width))


def _sharp(power: Floats, far: Mask, labels: NDArray[np.intp]) -> list[int]:
    """Return the flat indices of the sharpest peaks of a denoised frame's power spectrum."""
    flat = power.ravel()
    highest = ndimage.maximum_filter(power, 3, mode="wrap")
    candidates = np.flatnonzero((power == highest) & far)
    candidates = candidates[np.argsort(flat[candidates])[::-1][: 4 * _PEAKS]]
    near = np.unique(labels[candidates])
    usual = dict(zip(near, ndimage.median(flat, labels, near), strict=True)) | {0: np.inf}
    return [int(at) for at in candidates if flat[at] > _SHARP * usual[labels[at]]][:_PEAKS]


def smoothed(residual: Frame) -> Frame:
    """Smooth a residual (H, W) at every scale: (S, H, W), in standard deviations of white noise."""
    transform = np.fft.rfft2(residual)
    parts = [np.fft.irfft2(transform * one, s=residual.shape)
             for one in filters(*residual.shape).smooth]  # fmt: skip
    return np.stack(parts).astype(np.float32)


def spots_of(fields: Frame, name: str) -> dict[str, Spot]:
    """Find what is farthest from 0 at every scale of `smoothed` (S, H, W): ``name_2`` and so on."""
    found = {}
    for scale, field in zip(SCALES, fields, strict=True):
        size = np.abs(field)
        y, x = (int(i) for i in np.unravel_index(size.argmax(), field.shape))
        usual = min(max(float(np.median(size)) / _MEDIAN, 1e-6), 1.0)
        z = float(field[y, x])
        found[f"{name}_{scale:g}"] = Spot(y, x, scale, z, float(size[y, x]) / usual)
    return found
