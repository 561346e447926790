"""The noise of a stack: its variance in small blocks of pixels, and its power spectrum.

White noise, as that of counts, has the same power at every frequency, and as much after a
high-pass filter as before it; a lattice is a few spots, and smooth structure lies at low
frequencies. Differences of neighbouring frames hold no fixed structure. Where they are not white,
the specimen moves, lines of a scan change, or the noise is correlated from pixel to pixel. What
motion leaves in differences lies within `INSIDE` along x, so that further out only the camera, or
what has resampled the frames, makes the power uneven.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

MAX_FRAMES = 64
MAX_PIXELS = 8 * 2**20
RUN = 3  # neighbouring frames of a sample: lags 1 and 2
BLOCK = 16
# Pixels that tell the noise to 0.3 %, and the share of a stack that more of them may be.
_LEAST, _SHARE = 2**18, 16
_MANY = 2**17  # pixels, of all runs, that tell a quantile
_GOLDEN = 0.5 * (5**0.5 - 1)
_HIGH_PASS = np.outer([1, -2, 1], [1, -2, 1]) / 6  # of unit gain for white noise

SMALLEST = 32  # side of a frame that has a spectrum
INSIDE = 0.25  # cycles per pixel: below, structure
_LARGEST = 1024  # side of the part of a single frame that has a spectrum
_MAX_DIFFERENCES = 2**20  # pixels of the frames whose differences' spectra are added up
_CORNER = 0.4  # beyond, neither an image's tail nor motion reaches
_SKIP = 3  # frequencies next to an axis that the window mixes with it
_MEDIAN = 0.45  # of a mean's precision, that of the median of few spectra
_RANK = 0.8  # of two differences that share a frame, as if independent
_HANN_RANK = 0.55  # of a spectrum in a Hann window, against one in `_taper`
_RING = 0.03  # cycles per pixel
# Where a fall of a frame's noise is looked for, and by how much, at least and beyond chance.
_FALL = (INSIDE, 0.35), (0.4, 0.5)
_FALLS, _CLEAR = 1.25, 8.0
_IMAGE = 0.1, 0.15  # where images are, but little of what is smooth in them
_CELLS = 16  # per cycle per pixel
_CORRELATION_F, _LEAST_CORRELATION = 12.0, 0.02  # from where it is no chance, and matters
_LINE_Z, _LINE_SHARE = 4.5, 0.03  # the same of lines, the second in parts of the noise
_HIDDEN = 1.5  # how far structure may raise the power beside the lines of a single frame

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Stack = NDArray[np.float32]


@dataclass(frozen=True)
class Sample:
    """Runs of at most `RUN` neighbouring frames (k, H, W), spread over a stack of ``count``."""

    runs: Sequence[Stack]
    count: int

    @classmethod
    def of(cls, read: Callable[[int, int], Stack], count: int, size: tuple[int, ...]) -> "Sample":
        """Read at most `MAX_FRAMES` of a stack's frames (H, W), by ``read(start, stop)``."""
        starts, run = sample_starts(count, size)
        return cls([read(start, start + run) for start in starts], count)


def sample_starts(count: int, size: tuple[int, ...]) -> tuple[list[int], int]:
    """Spread runs of neighbouring frames over a stack: their starts and their length."""
    run = min(RUN, count)
    frames = int(np.clip(MAX_PIXELS // max(1, size[0] * size[1]), run, MAX_FRAMES))
    runs = min(frames // run, max(1, count // run))
    return [int(start) for start in np.linspace(0, count - run, runs).round()], run


class Blocks(NamedTuple):
    """Measured in blocks of about `BLOCK` x `BLOCK` pixels, one value a block and pair of frames.

    ``mean``: (B,) mean intensity. ``temporal``: (B,) noise variance by `difference` of neighbouring
    frames; ``high``: (B,) of that after a high-pass filter (Immerkaer, Computer Vision and Image
    Understanding 64 (1996) 300), empty for frames too small. ``lagged``: (B',) of frames two apart.
    """

    mean: Array
    temporal: Array
    high: Array
    lagged: Array


class NoiseLevel:
    """Statistics of a sample of finite frames, in blocks and of spectra.

    Pixels that are ``bad``, (H, W), do not count. Noise is measured on a band of each run, another
    one every time, which takes a few per cent of the time of denoising.

    Attributes
    ----------
    level, low
        Mean intensity of all pixels, and their 0.1 % quantile.
    blocks
        Means and variances of small blocks; none for one frame.
    repeats
        Pairs of neighbouring frames that are equal; these do not count.
    integers
        Whether every pixel that was looked at is a whole number.
    """

    def __init__(self, sample: Sample, bad: Mask | None = None) -> None:
        self._runs = runs = sample.runs
        run, *size = runs[0].shape
        self._good = good = np.ones(size, bool) if bad is None else ~bad
        wanted = max(_LEAST, sample.count * good.size // _SHARE) // (len(runs) * run * size[1])
        rows = min(size[0], max(2 * BLOCK, wanted))
        thin = max(1, round((len(runs) * run * good.size / _MANY) ** 0.5))
        thin = thin if good[::thin, ::thin].any() else 1
        counted = True if good.all() else good
        levels, lows, parts, self.repeats, self.integers = [], [], list[Blocks](), 0, True
        for number, frames in enumerate(runs):
            levels.append(frames.mean(where=counted, dtype=np.float64))
            self.repeats += sum(_repeats(*pair) for pair in pairwise(frames))
            top = round((size[0] - rows) * (number * _GOLDEN % 1))
            band = slice(top, top + rows)
            parts.append(blocks(frames[:, band].astype(np.float64), good[band]))
            pixels = frames[:, ::thin, ::thin][:, good[::thin, ::thin]].astype(np.float64)
            lows.append(np.quantile(pixels, 0.001))
            self.integers &= bool(np.equal(pixels, np.rint(pixels)).all())
        self.blocks = Blocks(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
        self.level, self.low = float(np.mean(levels)), float(np.median(lows))

    @cached_property
    def single(self) -> tuple[float, float]:
        """Return the noise variance of single frames, and their ``spread`` (see `Whiteness`)."""
        found = [frame_noise(frames[0], self._good) for frames in self._runs[:2]]
        variance, spread = np.median(found, axis=0)
        return float(variance), float(spread)

    @cached_property
    def moves(self) -> bool:
        """Return whether frames two apart differ more than neighbours do, beyond chance."""
        return _exceeds(self.blocks.lagged, self.blocks.temporal, 1.03)

    @cached_property
    def uneven(self) -> bool:
        """Return whether the differences are not the pixels' white noise."""
        rough = _exceeds(self.blocks.temporal, self.blocks.high, 1.01)
        return self.moves or rough or bool(self.whiteness and self.whiteness.uneven)

    @cached_property
    def spectrum(self) -> "Spectrum | None":
        """Return that of differences, or of a lone frame; None for small frames and for repeats."""
        run, runs = len(self._runs[0]), self._runs
        if min(self._good.shape) < SMALLEST:
            return None
        if run == 1:
            return frame_spectrum(runs[0][0], self._good)
        part = _middle(self._good.shape, int(sqrt(_MAX_DIFFERENCES / run)))
        good = self._good[part]
        step = max(1, -(-len(runs) * run * good.size // _MAX_DIFFERENCES))
        counted, changes = True if good.all() else good, []
        for frames in runs[::step]:
            for pair in pairwise(frames[:, *part].astype(np.float64)):
                if good.any() and not _repeats(*pair):
                    before, after = ((one - one.mean(where=counted)) * good for one in pair)
                    changes.append(difference(before, after))
        rank = len(changes) * (_RANK if run > 2 else 1.0)
        return _spectrum(changes, good, _taper, rank) if changes else None

    @cached_property
    def whiteness(self) -> "Whiteness | None":
        """Return what the spectrum of differences says; None where there is none."""
        return whiteness(self.spectrum) if self.blocks.temporal.size and self.spectrum else None

    @property
    def white_variance(self) -> float:
        """Return the variance of the pixels' noise in differences that hold more than that.

        That of their high-passed part, or, where motion reaches it, the power at the highest
        frequencies.
        """
        high, share = trimmed_mean(self.blocks.high), self.whiteness.share if self.whiteness else 1
        least = share * trimmed_mean(self.blocks.temporal)
        return least if least < 0.97 * high else high


def trimmed_mean(values: Array) -> float:
    """Average all but the upper and lower 2 %: a few hot or dead pixels do no harm."""
    if not values.size:
        return 0.0
    cut = int(0.02 * values.size)
    return float(np.sort(values)[cut : values.size - cut].mean())


def _exceeds(values: Array, others: Array, factor: float) -> bool:
    """Say whether values are on average more than so many times the others, beyond chance."""
    if not (values.size and others.size):
        return False
    chance = sqrt(sum(float(part.var()) / part.size for part in (others, values)))
    return trimmed_mean(values) > factor * trimmed_mean(others) + 3 * chance


def _middle(size: tuple[int, ...], side: int) -> tuple[slice, slice]:
    """Return the middle of a frame (H, W), at most ``side`` pixels a side."""
    top, left = (max(0, length - side) // 2 for length in size)
    return slice(top, top + side), slice(left, left + side)


def _repeats(before: NDArray[np.floating], after: NDArray[np.floating]) -> bool:
    return bool(np.array_equal(before, after) and np.ptp(after))


def blocks(frames: Array, good: Mask) -> Blocks:
    """Measure a run of frames (k, h, w) in blocks, of which a quarter or more is good."""
    inner = ndimage.binary_erosion(good, np.ones((3, 3)))  # where the filter's window is good
    used = _block_means(inner if inner.any() else good) > 0.25
    counted = True if good.all() or not good.any() else good
    centred = [(frame - frame.mean(where=counted)) * good for frame in frames]
    pairs = [pair for pair in pairwise(range(len(frames))) if not _repeats(*frames[[*pair]])]
    changes = [difference(centred[first], centred[second], used) for first, second in pairs]
    high = [ndimage.convolve(one, _HIGH_PASS) for one in changes] if inner.any() else []
    lagged = [difference(centred[0], centred[2], used)] if len(frames) > 2 else []

    def means(images: list[Array], where: Mask) -> Array:
        share = _block_means(where)[used]
        found = [_block_means(image * where)[used] / share for image in images]
        return np.concatenate([np.zeros(0), *found])

    def squares(images: list[Array], where: Mask) -> Array:
        return means([image * image for image in images], where)

    averages = [(frames[first] + frames[second]) / 2 for first, second in pairs]
    return Blocks(
        means(averages, good), squares(changes, good), squares(high, inner), squares(lagged, good)
    )


def _block_means(image: NDArray[np.generic]) -> Array:
    """Average (h, w) over blocks, (B,); the odd pixels at the end are left out."""
    down, across = (max(1, length // BLOCK) for length in image.shape)
    high, wide = image.shape[0] // down, image.shape[1] // across
    cut = image[: down * high, : across * wide].reshape(down, high, across, wide)
    return np.asarray(cut.mean(axis=(1, 3))).ravel()


def difference(before: Array, after: Array, used: Mask | slice = slice(None)) -> Array:
    """Subtract centred frames (H, W) so that white noise keeps its variance.

    A beam that has changed in between is taken out: the contrast, by regression on the sum of
    both, with which the difference of their noise is not correlated, in the blocks that are
    ``used``. So a camera's offset need not be known. Where a few pixels that flare up have decided
    on the contrast, most blocks differ more than before: it is left alone.
    """
    plain, both = (after - before) / 2**0.5, (before + after) / 2
    weight = _block_means(both * both)[used].sum()
    if not weight > 0:
        return plain
    steady = plain - both * (_block_means(plain * both)[used].sum() / weight)
    energies = [
        np.quantile(_block_means(one * one)[used], 0.5, method="higher") for one in (steady, plain)
    ]
    return steady if energies[0] < energies[1] else plain


class Spectrum(NamedTuple):
    """The power spectrum (h, w // 2 + 1) of images (h, w), for white noise its variance.

    ``rank``: how many independent ones it is the mean of. ``edges``: (h,) and (w,), the window.
    """

    power: Array
    shape: tuple[int, int]
    rank: float
    edges: tuple[Array, Array]


def _spectrum(
    images: list[Array], good: Mask, taper: Callable[[int], Array], rank: float
) -> Spectrum:
    height, width = good.shape
    edges = taper(height), taper(width)
    window = np.outer(*edges)
    if np.average(good, weights=window**2) < 0.98:  # what is filled in has no white noise
        window *= good
    power: Array = np.zeros((height, width // 2 + 1))
    for image in images:
        power += np.abs(np.fft.rfft2((image - np.average(image, weights=window)) * window)) ** 2
    return Spectrum(power / len(images) / (window**2).sum(), (height, width), rank, edges)


def _taper(length: int) -> Array:
    """Return a window (length,) that is flat but for an eighth at each end."""
    edge = max(1, length // 8)
    rise = np.sin(np.pi / 2 * (np.arange(edge) + 0.5) / edge) ** 2
    return np.concatenate([rise, np.ones(length - 2 * edge), rise[::-1]])


def frame_spectrum(frame: Stack, good: Mask) -> Spectrum | None:
    """Return that of the middle of one frame, whose spots are far above the noise; None if bad.

    Hot and dead pixels, whose spectrum is white, are replaced by their surroundings: what differs
    from its neighbours by more than most ``good`` pixels do.
    """
    part = _middle(good.shape, _LARGEST)
    good, image = good[part], frame[part].astype(np.float64)
    if not np.average(good, weights=np.outer(*(np.hanning(n) for n in good.shape))):
        return None
    wide = np.pad(image, 1, mode="reflect")
    up, down, left, right = wide[:-2, 1:-1], wide[2:, 1:-1], wide[1:-1, :-2], wide[1:-1, 2:]
    # The middle two of four are what the pairs' extremes leave: one bad one does not count.
    low = np.maximum(np.minimum(up, down), np.minimum(left, right))
    near = (low + np.minimum(np.maximum(up, down), np.maximum(left, right))) / 2
    distance = image - near
    most = distance[good]
    if limit := 8 * 1.4826 * float(np.median(np.abs(most - np.median(most)))):
        image = np.where(np.abs(distance) > limit, near, image)
    return _spectrum([image], good, np.hanning, _HANN_RANK)


def _frequencies(shape: tuple[int, int]) -> tuple[Array, Array]:
    """Return qy (h, 1) and qx (1, w // 2 + 1) in cycles per pixel."""
    qy, qx = np.fft.fftfreq(shape[0]), np.fft.rfftfreq(shape[1])
    return qy[:, None].astype(np.float64), qx[None, :].astype(np.float64)


def _free(shape: tuple[int, int]) -> Mask:
    """Leave out the axes, and frequencies that a real frame's spectrum holds twice."""
    qy, qx = _frequencies(shape)
    free = (np.abs(qy) * shape[0] >= _SKIP) & (qx * shape[1] >= _SKIP)
    return np.asarray(free & (qx < 0.5) & (np.abs(qy) < 0.5))


def _corner(shape: tuple[int, int]) -> Mask:
    """Return the frequencies that neither motion nor jitter reach."""
    qy, qx = _frequencies(shape)
    return np.asarray(_free(shape) & (np.hypot(qy, qx) >= _CORNER) & (qx >= INSIDE))


def _mean_power(power: Array) -> float:
    """Return the mean power of noise: it is distributed exponentially, its median is ln 2 of it."""
    return float(np.median(power) / np.log(2))


def frame_noise(frame: Stack, good: Mask) -> tuple[float, float]:
    """Return the noise variance of (H, W) where its spectrum holds no image, and its spread.

    The median over rings of the power passes between the spots of a lattice. Interpolated or
    blurred frames have noise that falls off outwards: its rings are added up as they are, while
    a high-pass filter would see only the outermost, as has to do for frames below `SMALLEST`.

    The spread is the power at low frequencies over the variance, which is 1 unless the power
    clearly falls off outside `INSIDE`.
    """
    if min(good.shape) < SMALLEST:
        passed = ndimage.convolve(frame.astype(np.float64), _HIGH_PASS)[1:-1, 1:-1]
        return float(np.square(passed).mean()) if passed.size else 0.0, 1.0
    if (spectrum := frame_spectrum(frame, good)) is None:
        return 0.0, 1.0
    power = spectrum.power
    qy, qx = _frequencies(spectrum.shape)
    radius = np.hypot(qy, qx)
    ring, outside = ((radius - INSIDE) / _RING).astype(int), radius >= INSIDE
    # All but the first and last columns of a half spectrum stand for two frequencies.
    weight = np.broadcast_to(np.where((qx > 0) & (qx < 0.5), 2.0, 1.0), power.shape)
    numbers = range(int(ring[outside].max()) + 1)
    levels = np.array([_mean_power(power[outside & (ring == number)]) for number in numbers])
    # The first ring stands for what lies further inside.
    total = levels[ring[outside]] @ weight[outside] + levels[0] * weight[~outside].sum()
    variance = float(total / weight.sum())
    near, far = (power[(radius >= low) & (radius < high)] for low, high in _FALL)
    chance = 1 + _CLEAR * np.sqrt(1 / near.size + 1 / far.size) / np.log(2)
    if variance <= 0 or _mean_power(near) < max(_FALLS, chance) * _mean_power(far):
        return max(variance, 0.0), 1.0
    # Followed inwards as a Lorentz function, which a camera's resolution nearly is. Where an image
    # without spots reaches far out, this is less than what lies between the spots there; where it
    # does not, that is less: of a CCD's noise, half.
    middles = INSIDE + _RING * (np.arange(int(np.ceil((0.5 - INSIDE) / _RING))) + 0.5)
    slope, least = np.polyfit(middles**2, 1 / levels[: middles.size], 1)
    inner = _mean_power(power[(radius >= _IMAGE[0]) & (radius < _IMAGE[1])])
    if slope > 0 and least > 0:
        inner = min(inner, float(1 / least))
    return variance, max(1.0, inner / variance)


class Whiteness(NamedTuple):
    """What the spectrum of differences says where no image reaches.

    The correlation of neighbouring pixels along ``x`` and ``y``, and whether it is beyond chance
    and matters; the ``share`` of white noise in the power, and whether the rest is beyond chance;
    the ``spread``, power at low frequencies over the mean power, which is how many pixels share
    their noise.
    """

    x: float
    y: float
    correlated: bool
    share: float
    uneven: bool
    spread: float


def whiteness(spectrum: Spectrum) -> Whiteness:
    """Say how white differences are.

    Fits a(1 + 2x cos 2 pi qx + 2y cos 2 pi qy + 4d cos cos) to the medians of the outer spectrum
    in squares.
    """
    power, shape, rank, _ = spectrum
    qy, qx = _frequencies(shape)
    free = _free(shape)
    outer = free & (qx >= INSIDE)
    cell = (np.floor((qy + 0.5) * _CELLS) * _CELLS + np.floor(qx * _CELLS)).astype(int)[outer]
    labels, counts = np.unique(cell, return_counts=True)
    labels, counts = labels[counts >= 4], counts[counts >= 4]
    values = ndimage.median(power[outer], cell, labels)
    cx, cy = (np.cos(2 * np.pi * np.broadcast_to(q, power.shape)[outer]) for q in (qx, qy))
    terms = [ndimage.mean(term, cell, labels) for term in (cx**0, cx, cy, cx * cy)]
    design, weight = np.stack(terms, axis=1), np.sqrt(counts)
    a, b = design * weight[:, None], values * weight
    fit = np.linalg.lstsq(a, b)[0]
    rest = float(((b - a @ fit) ** 2).sum())
    explained = float(((values - np.average(values, weights=counts)) ** 2) @ counts) - rest
    x = y = f = 0.0
    if rest > 0 and fit[0] > 0:
        x, y = float(fit[1] / fit[0] / 2), float(fit[2] / fit[0] / 2)
        f = explained / 3 / (rest / max(1, labels.size - 4))  # of 3 and many degrees of freedom
    correlated = f > _CORRELATION_F and max(abs(x), abs(y)) > _LEAST_CORRELATION
    far = power[_corner(shape)]
    level = float(np.median(far)) / (1 - 1 / (9 * rank)) ** 3
    chance = 2 / np.sqrt(far.size * rank * _MEDIAN)
    every, mean = float(power[1:, 1:].mean()), float(power[free].mean())
    inner = power[free & (np.hypot(qy, qx) < 0.08)]
    spread = float(np.median(inner)) / mean if inner.size and mean else 1.0
    share, uneven = level / every if every > 0 else 1.0, every > (1.03 + chance) * level
    return Whiteness(x, y, correlated, share, bool(uneven), spread or 1.0)


def line_noise(spectrum: Spectrum, axis: int) -> tuple[float, float] | None:
    """Compare the power of rows' offsets (axis 0) or columns' (axis 1) with that beside them.

    Only from `INSIDE` outwards: structure is smoother. In a lone frame, not where it is not.
    Returns the RMS of the offsets beyond the pixels' noise, in intensity units, and its standard
    error; None where they are not beyond chance, or too weak to matter.
    """
    power, shape, rank, edges = spectrum
    plane = power if axis == 0 else power.T
    length, across = shape[axis], shape[1 - axis]
    band = np.arange(int(np.ceil(INSIDE * length)), (length + 1) // 2)
    near = np.arange(_SKIP, max(_SKIP + 4, across // 16))
    mirrored = band if axis else np.concatenate([band, -band])
    beside = plane[np.ix_(mirrored, np.concatenate([near, -near]) if axis else near)]
    level = float(np.median(beside))
    lone = rank == _HANN_RANK
    if level <= 0 or (lone and level > _HIDDEN * np.median(power[_corner(shape)])):
        return None
    ratio = float(np.median(plane[band, 0])) / level
    spread = 1 / (3 * sqrt(band.size * rank * _MEDIAN))
    edge = edges[1 - axis]
    unit = level * float((edge**2).sum() / edge.sum() ** 2)  # variance of a line's mean
    sigma = sqrt(max(0.0, ratio - 1) * unit)
    # Wilson and Hilferty, PNAS 17 (1931) 684: the cube root is nearly normal.
    if (ratio ** (1 / 3) - 1) / spread <= _LINE_Z or sigma <= _LINE_SHARE * sqrt(level):
        return None
    return sigma, 3 * spread * ratio * unit / (2 * sigma)
