"""Residual tests: the statistics of raw - denoised that a frame is judged by, and their names."""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from emdn_deploy.check.camera import Camera
from emdn_models.metrics import mean_ratio
from emdn_models.metrics.frc import rings

SCALES = (2.0, 4.0, 8.0)  # pixels, the Gaussians of the local test: an atom, and larger
MATCHES = (0.03, 0.1, 0.2, 0.5)  # cycles/pixel, ends of the bands of the test for structure
BANDS = 12  # of the residual's power
LARGEST = 640  # side of a frame that is tested in one piece
BLOCK = 8  # side of a pixel of the map

_PEAKS = 16  # sharp peaks of a denoised frame that are compared one by one
_SHARP = 12.0  # how far above the median power of its ring a sharp peak is
_SHARE = 0.15  # of a peak's amplitude that a denoiser may take
_MEDIAN = 0.6745  # of the size of a normal number
_MOST = 3.0  # standard deviations that a frame counts for at most in a run

Frame = NDArray[np.float32]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Statistic:
    """How a statistic is judged, and what it is called.

    Attributes
    ----------
    words, unit
        What it is, in plain words; the unit is empty for a number that speaks for itself.
    above, below
        The verdict beyond the upper and the lower limit; without ``below`` there is only an upper
        one.
    meaning
        What it is beyond a limit, for the table of a report.
    many
        Whether it is the largest of very many numbers, with the tail of such.
    few
        Of how few numbers it is the largest, if so: no limit is below that of normal ones.
    excess
        Whether above means more residual than there should be, of whatever kind: another
        statistic says which.
    tolerance
        Deviation from the typical value that never fails, in its own units.
    """

    words: str
    unit: str
    above: str
    meaning: str
    below: str = ""
    many: bool = False
    few: int = 0
    excess: bool = False
    tolerance: float = 0.0

    def written(self, value: float) -> str:
        """Write a value with its unit."""
        return f"{value:.3g} {self.unit}" if self.unit else f"{value:.4g}"


_BLOB = "structure added or removed at one place: an atom invented or filled in"
STATISTICS: dict[str, Statistic] = {
    "ratio": Statistic(
        "mean out / mean in", "", "intensity changed", "intensity changed",
        "intensity changed", tolerance=0.002,
    ),
    "std": Statistic(
        "standard deviation of the residual", "", "structure removed",
        "above: structure removed; below: noise left in", "noise left in", excess=True,
        tolerance=0.004,
    ),
    "lag": Statistic(
        "correlation of neighbouring pixels of the residual", "", "over-smoothed",
        "above: over-smoothed; below: noise left in", "noise left in", tolerance=0.005,
    ),
    "columns": Statistic(
        "largest column mean of the residual", "sigma", "structure removed",
        "structure added or removed, along a column", many=True,
    ),
    "rows": Statistic(
        "largest row mean of the residual", "sigma", "structure removed",
        "structure added or removed, along a row", many=True,
    ),
    "band_high": Statistic(
        "residual power of a band, above what is expected", "sigma", "over-smoothed",
        "over-smoothed", excess=True, few=BANDS,
    ),
    "band_low": Statistic(
        "residual power of a band, below what is expected", "sigma", "noise left in",
        "noise left in", few=BANDS,
    ),
    "peak": Statistic(
        "largest peak in the residual's power", "times the noise's", "over-smoothed",
        "a lattice over-smoothed or added", many=True,
    ),
    "lattice_removed": Statistic(
        "a lattice's peak weaker than in the raw frame, beyond 15 % of it", "sigma",
        "over-smoothed", "over-smoothed", few=_PEAKS,
    ),
    "lattice_added": Statistic(
        "a lattice's peak stronger than in the raw frame", "sigma", "structure added",
        "structure added", few=_PEAKS,
    ),
    "match_removed": Statistic(
        "residual like the denoised frame", "sigma", "over-smoothed",
        "over-smoothed, or noise left in", few=len(MATCHES),
    ),
    "match_added": Statistic(
        "residual like the denoised frame's negative", "sigma", "structure added",
        "structure added", few=len(MATCHES),
    ),
    **{
        f"{part}blob_{scale:g}": Statistic(
            f"blob of {scale:g} px in the {name}", "sigma", "structure removed", _BLOB, many=True
        )
        for part, name in (("", "residual"), ("run_", "average residual of the run"))
        for scale in SCALES
    },
}  # fmt: skip


class Filters(NamedTuple):
    """What the tests of frames (H, W) need that depends on the size only, for ``rfft2``."""

    smooth: Frame  # (S, H, W // 2 + 1) Gaussians, over what they leave of white noise's deviation
    window: Frame  # (H, W) Hann window, over the root of the sum of its squares
    match: NDArray[np.intp]  # (H, W // 2 + 1) band of `MATCHES` of each Fourier pixel, 0 for none
    far: Mask  # (H, W // 2 + 1) whether a peak there is no large-scale structure


@lru_cache(maxsize=4)
def filters(height: int, width: int) -> Filters:
    """Prepare the tests of panels (H, W)."""
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    smooth = np.stack([np.exp(-2 * (np.pi * scale * radius) ** 2) for scale in SCALES])
    left = (rings(height, width).weights * smooth**2).sum(axis=(1, 2)) / (height * width)
    window = np.outer(*(np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2 for n in (height, width)))
    match = 1 + np.searchsorted(MATCHES, radius)
    match[(match > len(MATCHES)) | (radius == 0)] = 0
    return Filters(
        (smooth / np.sqrt(left)[:, None, None]).astype(np.float32),
        (window / np.sqrt(np.square(window).sum())).astype(np.float32),
        match,
        (radius > 0.02) & (radius * min(height, width) > 4),
    )


def panels_of(height: int, width: int) -> list[tuple[slice, slice]]:
    """Cut frames (H, W) into panels of one size, which may overlap by a few pixels."""

    def spans(length: int) -> list[slice]:
        count = -(-length // LARGEST)
        side = -(-length // count)
        return [slice(int(a), int(a) + side) for a in np.linspace(0, length - side, count).round()]

    return [(down, right) for down in spans(height) for right in spans(width)]


@dataclass(frozen=True)
class Spot:
    """A place of the smoothed residual.

    Attributes
    ----------
    y, x
        Pixels, in the frame.
    scale
        Standard deviation in pixels of the Gaussian that it was smoothed with.
    z
        The smoothed residual there, in standard deviations of white noise; negative where the
        denoised frame is brighter than the raw one.
    contrast
        The same without sign, in standard deviations of the smoothed residual itself (by its
        median), of white noise at most: so a spot counts for more where there is less to scatter.
    """

    y: int
    x: int
    scale: float
    z: float
    contrast: float


@dataclass(frozen=True)
class Measured:
    """The statistics of one panel.

    Attributes
    ----------
    simple
        Numbers by name; ``..._added`` is 1 where the denoised frame has more of it, or is
        brighter.
    bands
        (BANDS,) mean power of the residual in equal steps of frequency.
    match
        (len(MATCHES),) projection of the residual on the denoised frame in bands, in units of the
        residual's own scatter there, white noise's at most: positive where it holds what the
        denoised frame holds too little of.
    strength
        (len(MATCHES),) amplitude of the denoised frame in these bands.
    spots
        One a scale.
    fields
        (S, H, W) the smoothed residual, in standard deviations of white noise.
    spectrum
        (R,) power on rings; 1 is the expected noise's.
    """

    simple: dict[str, float]
    bands: Floats
    match: Floats
    strength: Floats
    spots: tuple[Spot, ...]
    fields: Frame
    spectrum: Floats


def measure(raw: Frame, denoised: Frame, camera: Camera, good: Mask) -> Measured:
    """Measure a panel.

    Parameters
    ----------
    raw, denoised
        (H, W), at least 16 x 16, in the same units.
    good
        (H, W), the pixels that count.

    Raises
    ------
    EmdnError
        If the denoised frame is on average not brighter than the camera's offset.
    """
    std, lag, about = _moments(camera.in_sigma(raw, denoised), good)
    columns, rows = (
        about.sum(axis=axis) / np.sqrt(np.maximum(good.sum(axis=axis), 1)) for axis in (0, 1)
    )
    circles = rings(*raw.shape)
    transform = np.fft.rfft2(about)
    power = (transform.real**2 + transform.imag**2) / good.sum()
    spectrum = circles.total(power) / circles.pixels
    unit = np.float32(camera.gain)  # float32 does not hold the square of every unit
    level = np.sqrt(max(float(np.var((raw - denoised) / unit)), 1e-30))
    detail = (denoised - denoised.mean()) / unit / np.float32(level)
    # A change of the mean is judged as such and not as a blob.
    single = about.astype(np.float32)
    fields = smoothed(single)
    match, strength, simple = _spectra(single, detail)
    simple |= {
        "ratio": float(mean_ratio(denoised - camera.offset, raw - camera.offset, good)),
        "std": std,
        "lag": lag,
        "columns": float(np.abs(columns).max()),
        "rows": float(np.abs(rows).max()),
        "columns_added": float(columns[np.abs(columns).argmax()] < 0),
        "rows_added": float(rows[np.abs(rows).argmax()] < 0),
    }
    return Measured(
        simple, _bands(circles.frequency, spectrum), match, strength,
        spots_of(fields), fields, spectrum,
    )  # fmt: skip


def _moments(values: Floats, good: Mask) -> tuple[float, float, Floats]:
    """Return deviation, correlation of neighbours, and the values about their mean, 0 where bad."""
    about = np.where(good, values - values.mean(where=good), 0)
    variance = np.square(about).sum() / good.sum()
    lags = [
        (about[a] * about[b]).sum() / max((good[a] & good[b]).sum(), 1)
        for a, b in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:]))
    ]
    return float(np.sqrt(variance)), float(np.mean(lags) / (variance or 1)), about


def _bands(frequency: Floats, power: Floats) -> Floats:
    which = np.searchsorted(np.linspace(0, 0.5, BANDS + 1), frequency) - 1
    which = np.clip(which, 0, BANDS - 1)
    # Rings are weighted by their frequency, as their pixels are many.
    total, count = (np.bincount(which, one, BANDS) for one in (frequency * power, frequency))
    return np.asarray(total / np.maximum(count, 1e-12))


def smoothed(residual: Frame) -> Frame:
    """Smooth a residual (H, W) at every scale: (S, H, W), in standard deviations of white noise."""
    transform = np.fft.rfft2(residual)
    parts = [np.fft.irfft2(transform * one, s=residual.shape)
             for one in filters(*residual.shape).smooth]  # fmt: skip
    return np.stack(parts).astype(np.float32)


def spots_of(fields: Frame) -> tuple[Spot, ...]:
    """Find what is farthest from 0 at every scale of `smoothed` (S, H, W)."""
    found = []
    for scale, field in zip(SCALES, fields, strict=True):
        size = np.abs(field)
        y, x = (int(i) for i in np.unravel_index(size.argmax(), field.shape))
        usual = min(max(float(np.median(size)) / _MEDIAN, 1e-6), 1.0)
        found.append(Spot(y, x, scale, float(field[y, x]), float(size[y, x]) / usual))
    return tuple(found)


def share(fields: Frame) -> Frame:
    """Limit what one frame's fields (S, H, W) count for in a sum over a run of frames."""
    # A faint atom counts in full; what stands out in one frame is not found in its neighbours.
    return np.clip(fields, -_MOST, _MOST)


def _spectra(scaled: Frame, detail: Frame) -> tuple[Floats, Floats, dict[str, float]]:
    """Compare the spectra of the residual and of the denoised frame, through a window.

    Parameters
    ----------
    scaled
        (H, W) the residual in units of its expected noise.
    detail
        (H, W) the denoised frame about its mean, in the same units.

    Returns
    -------
    ndarray, ndarray
        ``match`` and ``strength`` of `Measured`.
    dict
        ``peak``, the largest power of the residual, of white noise 1 on average, at
        (``peak_y``, ``peak_x``) cycles/pixel; ``lattice_removed`` and ``lattice_added``, the
        largest projections of the residual on a sharp peak of the denoised frame.
    """
    own, weights = filters(*scaled.shape), rings(*scaled.shape).weights
    left, after = (np.fft.rfft2(one * own.window) for one in (scaled, detail))
    across = (left * after.conj()).real
    power, remaining = (one.real**2 + one.imag**2 for one in (left, after))
    sums, norms, scatter, count = (
        np.bincount(own.match.ravel(), (weights * one).ravel(), len(MATCHES) + 1)[1:]
        for one in (across, remaining, power, np.ones_like(power))
    )
    strength = np.sqrt(np.maximum(norms, 1e-12))
    scatter = np.sqrt(np.clip(scatter / np.maximum(count, 1), 1e-12, 1))
    # Of a strong peak a denoiser may take a little: that is judged as a share of it, below.
    before = np.square(np.abs(left + after))
    alone = power * (own.far & (power > _SHARE**2 * before))
    at = np.unravel_index(alone.argmax(), power.shape)
    peaks = _sharp(remaining, own.far, rings(*scaled.shape).labels)
    signs = np.sqrt(2 / remaining.ravel()[peaks]) * across.ravel()[peaks]
    removed = signs - _SHARE * np.sqrt(2 * before.ravel()[peaks])
    return (
        sums / strength / scatter,
        strength,
        {
            "peak": float(alone[at]),
            "peak_added": float(abs(after[at]) > abs(after[at] + left[at])),
            "peak_y": float(np.fft.fftfreq(scaled.shape[0])[at[0]]),
            "peak_x": float(at[1] / scaled.shape[1]),
            "lattice_removed": float(removed.max(initial=0.0)),
            "lattice_added": float((-signs).max(initial=0.0)),
        },
    )


def _sharp(power: Floats, far: Mask, labels: NDArray[np.intp]) -> list[int]:
    """Return the flat indices of the sharpest peaks of a denoised frame's power spectrum."""
    flat = power.ravel()
    highest = ndimage.maximum_filter(power, 3, mode="wrap")
    candidates = np.flatnonzero((power == highest) & far)
    sharp: list[int] = []
    usual: dict[int, float] = {0: np.inf}
    for one in candidates[np.argsort(flat[candidates])[::-1][: 4 * _PEAKS]]:
        ring = int(labels[one])
        if ring not in usual:
            usual[ring] = float(np.median(flat[labels == ring]))
        if flat[one] > _SHARP * usual[ring]:
            sharp.append(int(one))
    return sharp[:_PEAKS]
