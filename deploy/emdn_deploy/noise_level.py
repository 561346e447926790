"""The noise of a stack: its variance in small blocks of pixels, and its power spectrum.

White noise, as that of counts, has the same power at every frequency, and as much after a
high-pass filter as before it; a lattice is a few spots, and smooth structure lies at low
frequencies. Differences of neighbouring frames hold no fixed structure. Where they are not white,
the specimen moves, lines of a scan change, or the noise is correlated from pixel to pixel. What
motion leaves in differences lies within `INSIDE` along x, so that further out only the camera, or
what has resampled the frames, makes the power uneven.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from itertools import pairwise
from math import sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

MAX_FRAMES, MAX_PIXELS = 64, 8 * 2**20  # of a sample
RUN = 3  # neighbouring frames of a sample: lags 1 and 2
BLOCK = 16
_PIXELS = 2**20  # of all runs, that are measured: they tell the noise to 0.2 %
_SPREAD = 0.7549, 0.5698  # shares of a frame from one part that is measured to the next
_HIGH_PASS = np.outer([1, -2, 1], [1, -2, 1]) / 6  # of unit gain for white noise

SMALLEST = 32  # side of frames whose differences have a spectrum
INSIDE = 0.25  # cycles per pixel: below, structure
_LARGEST = 1024  # side of the part of a single frame that has a spectrum
_CORNER = 0.4  # beyond, neither an image's tail nor motion reaches
_SKIP = 3  # frequencies next to an axis that the window mixes with it
_MEDIAN = 0.45  # of a mean's precision, that of the median of few spectra
_RANK = 0.8  # of two differences that share a frame, as if independent
_EDGE = 0.25  # of a window of differences, that is not flat
_RING = 0.03  # cycles per pixel
# Where a fall of a frame's noise is looked for, and by how much, at least and beyond chance.
_FALL = (INSIDE, 0.35), (0.4, 0.5)
_FALLS, _CLEAR = 1.25, 8.0
_IMAGE = 0.1, 0.15  # where images are, but little of what is smooth in them
_CELLS = 16  # per cycle per pixel
_CORRELATION_F, _LEAST_CORRELATION = 12.0, 0.02  # from where it is no chance, and matters
_LINE_Z, _LINE_SHARE = 4.5, 0.03  # the same of lines, the second in parts of the noise

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Stack = NDArray[np.float32]


def sample(read: Callable[[int, int], Stack], count: int, size: tuple[int, ...]) -> list[Stack]:
    """Read runs (k, H, W) of neighbouring frames, spread over a stack, by ``read(start, stop)``.

    There are at most `MAX_FRAMES` of the ``count`` frames (H, W), or one run.
    """
    run = min(RUN, count)
    frames = int(np.clip(MAX_PIXELS // max(1, size[0] * size[1]), run, MAX_FRAMES))
    runs = min(frames // run, max(1, count // run))
    starts = np.linspace(0, count - run, runs).round().astype(int)
    return [read(start, start + run) for start in starts.tolist()]


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
    """Statistics of sampled runs of finite frames (k, H, W); ``bad`` pixels (H, W) do not count.

    Attributes
    ----------
    level, low
        Mean intensity of all pixels, and their 0.1 % quantile.
    integers
        Whether all pixels are whole numbers.
    blocks
        Means and variances of small blocks, in another part of each run; none for one frame.
    whiteness
        What the spectrum of differences says; None where there are none, and for small frames.
    """

    def __init__(self, runs: Sequence[Stack], bad: Mask | None = None) -> None:
        size = runs[0].shape[1:]
        self._good = good = np.ones(size, bool) if bad is None else ~bad
        self._runs = [_changing(run) for run in runs]
        wanted = _PIXELS // sum(map(len, self._runs))
        width = min(size[1], max(int(sqrt(wanted)), wanted // size[0], 2 * BLOCK))
        height = min(size[0], max(wanted // width, 2 * BLOCK))
        levels, lows, self.integers = [], [], True
        measured, changes = list[Blocks](), list[tuple[Array, Mask]]()
        for number, frames in enumerate(self._runs):
            pixels = frames[:, good]
            levels.append(pixels.mean(dtype=np.float64))
            lows.append(np.quantile(pixels, 0.001))
            self.integers &= bool(np.equal(pixels, np.rint(pixels)).all())
            top = round((size[0] - height) * (number * _SPREAD[0] % 1))
            left = round((size[1] - width) * (number * _SPREAD[1] % 1))
            part = slice(top, top + height), slice(left, left + width)
            found, differences = blocks(frames[:, *part].astype(np.float64), good[part])
            measured.append(found)
            if good[part][1:-1, 1:-1].any():
                changes += [(one, good[part]) for one in differences]
        self.blocks = Blocks(*map(np.concatenate, zip(*measured, strict=True)))
        self.level, self.low = float(np.mean(levels)), float(np.median(lows))
        spectrum = None
        if changes and min(height, width) >= SMALLEST:
            spectrum = _spectrum(
                changes, len(changes) * (_RANK if len(self._runs[0]) > 2 else 1.0), _EDGE
            )
        self.whiteness = whiteness(spectrum) if spectrum else None
        self.lines = [line_noise(spectrum, axis) if spectrum else 0.0 for axis in (0, 1)]

    @cached_property
    def single(self) -> tuple[float, float, float]:
        """Return `frame_noise` of single frames."""
        found = [frame_noise(frames[0], self._good) for frames in self._runs[:2]]
        variance, mean, spread = np.median(found, axis=0).tolist()
        return variance, mean, spread

    @cached_property
    def moves(self) -> bool:
        """Return whether frames two apart differ more than neighbours do, beyond chance."""
        return _exceeds(self.blocks.lagged, self.blocks.temporal, 1.03)

    @cached_property
    def uneven(self) -> bool:
        """Return whether the differences are not the pixels' white noise."""
        rough = _exceeds(self.blocks.temporal, self.blocks.high, 1.01)
        return self.moves or rough or bool(self.whiteness and self.whiteness.uneven)

    @property
    def white_variance(self) -> float:
        """Return the variance of the pixels' noise in differences that hold more than that.

        That of their high-passed part, or, where motion reaches it, the power at the highest
        frequencies.
        """
        high, share = trimmed_mean(self.blocks.high), self.whiteness.share if self.whiteness else 1
        least = share * trimmed_mean(self.blocks.temporal)
        return least if least < 0.97 * high else high


def _changing(frames: Stack) -> Stack:
    """Leave out frames that repeat the one before, as those of a video may."""
    new = [True, *(not np.array_equal(*pair) for pair in pairwise(frames))]
    return frames if all(new) else frames[new]


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


def blocks(frames: Array, good: Mask) -> tuple[Blocks, list[Array]]:
    """Measure a run of frames (k, h, w) in blocks, of which a quarter or more is good.

    Returned are the `difference` of neighbouring frames, too.
    """
    inner = ndimage.binary_erosion(good, np.ones((3, 3)))  # where the filter's window is good
    used = _block_means(inner if inner.any() else good) > 0.25
    if len(frames) < 2 or not used.any():
        return Blocks(*np.zeros((4, 0))), []
    centred = (frames - frames.mean(axis=(1, 2), where=good, keepdims=True)) * good
    changes = [difference(*pair, used) for pair in pairwise(centred)]
    high = [ndimage.convolve(one, _HIGH_PASS) for one in changes] if inner.any() else []
    lagged = [difference(centred[0], centred[2], used)] if len(frames) > 2 else []

    def means(images: Iterable[Array], where: Mask) -> Array:
        share = _block_means(where)[used]
        found = [_block_means(image * where)[used] / share for image in images]
        return np.concatenate([np.zeros(0), *found])

    found = Blocks(
        means(((before + after) / 2 for before, after in pairwise(frames)), good),
        means((one * one for one in changes), good),
        means((one * one for one in high), inner),
        means((one * one for one in lagged), good),
    )
    return found, changes


def _block_means(image: NDArray[np.generic]) -> Array:
    """Average (h, w) over blocks, (B,); the odd pixels at the end are left out."""
    down, across = (max(1, length // BLOCK) for length in image.shape)
    high, wide = image.shape[0] // down, image.shape[1] // across
    cut = image[: down * high, : across * wide].reshape(down, high, across, wide)
    return np.asarray(cut.mean(axis=(1, 3))).ravel()


def difference(before: Array, after: Array, used: Mask) -> Array:
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

    ``rank``: how many independent ones it is the mean of.
    """

    power: Array
    shape: tuple[int, int]
    rank: float


def _spectrum(images: list[tuple[Array, Mask]], rank: float, edge: float) -> Spectrum:
    """Add up the power of images (h, w), each with its good pixels, through a window."""
    height, width = shape = images[0][0].shape
    flat = np.outer(*(_taper(length, edge) for length in shape))
    power, norm = np.zeros((height, width // 2 + 1)), 0.0
    for image, good in images:
        # What is filled in has no white noise, and a window with holes mixes frequencies.
        window = flat if np.average(good, weights=flat) > 0.98 else flat * good
        mean = np.average(image, weights=window)
        power += np.abs(np.fft.rfft2((image - mean) * window)) ** 2
        norm += np.square(window).sum()
    return Spectrum(power / norm, shape, rank)


def _taper(length: int, edge: float) -> Array:
    """Return a window (length,), of which the share ``edge`` is not flat: Hann's for 1."""
    place = np.arange(length) + 0.5
    rise = np.minimum(np.minimum(place, length - place) / (0.5 * edge * length), 1)
    return np.asarray(np.sin(0.5 * np.pi * rise) ** 2)


def _frequencies(shape: tuple[int, int]) -> tuple[Array, Array]:
    """Return qy and qx, (h, w // 2 + 1) each, in cycles per pixel."""
    qy, qx = np.meshgrid(np.fft.fftfreq(shape[0]), np.fft.rfftfreq(shape[1]), indexing="ij")
    return qy, qx


def _mean_power(power: Array) -> float:
    """Return the mean power of noise: it is distributed exponentially, its median is ln 2 of it."""
    return float(np.median(power) / np.log(2))


def frame_noise(frame: Stack, good: Mask) -> tuple[float, float, float]:
    """Return the noise variance of (H, W) where its spectrum holds no image, mean and spread.

    The median over rings of the power passes between the spots of a lattice. Interpolated or
    blurred frames have noise that falls off outwards: its rings are added up as they are. Hot and
    dead pixels, whose spectrum is white, are replaced by their surroundings: what differs from
    these by more than most ``good`` pixels do.

    The spread is the power at low frequencies over the variance, which is 1 unless the power
    clearly falls off outside `INSIDE`. Fewer than 8 pixels a side have no noise.
    """
    corner = (max(0, length - _LARGEST) // 2 for length in good.shape)
    part = tuple(slice(start, start + _LARGEST) for start in corner)
    good, image = good[part], frame[part].astype(np.float64)
    if min(good.shape) < 8 or not good[1:-1, 1:-1].any():
        return 0.0, float(frame.mean()), 1.0
    near = ndimage.median_filter(image, 3)
    if limit := 12 * float(np.median(np.abs(image - near)[good])):
        image = np.where(np.abs(image - near) > limit, near, image)
    mean = float(np.average(image, weights=good * np.outer(*map(np.hanning, image.shape))))
    power, shape, _ = _spectrum(
        [(image, good)], 1.0, 1.0
    )  # Hann's window: spots are far above the noise
    qy, qx = _frequencies(shape)
    radius = np.hypot(qy, qx)
    # The first ring stands for what lies further inside.
    ring = np.floor((radius - INSIDE) / _RING).astype(int)
    levels = ndimage.median(power, ring, range(int(ring.max()) + 1)) / np.log(2)
    # All but the first and last columns of a half spectrum stand for two frequencies.
    weight = np.where((qx > 0) & (qx < 0.5), 2.0, 1.0)
    variance = float(np.average(levels[np.maximum(ring, 0)], weights=weight))
    near, far = (power[(radius >= low) & (radius < high)] for low, high in _FALL)
    chance = 1 + _CLEAR * np.sqrt(1 / near.size + 1 / far.size) / np.log(2)
    if variance <= 0 or _mean_power(near) < max(_FALLS, chance) * _mean_power(far):
        return max(variance, 0.0), mean, 1.0
    # Followed inwards as a Lorentz function, which a camera's resolution nearly is. Where an image
    # without spots reaches far out, this is less than what lies between the spots there; where it
    # does not, that is less: of a CCD's noise, half.
    middles = np.arange(INSIDE + _RING / 2, 0.5 + _RING / 2, _RING)
    slope, least = np.polyfit(middles**2, 1 / levels[: middles.size], 1)
    inner = _mean_power(power[(radius >= _IMAGE[0]) & (radius < _IMAGE[1])])
    if slope > 0 and least > 0:
        inner = min(inner, float(1 / least))
    return variance, mean, max(1.0, inner / variance)


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
    in squares. Left out are the axes, and frequencies that a real frame's spectrum holds twice.
    """
    power, (height, width), rank = spectrum
    qy, qx = _frequencies(spectrum.shape)
    free = (np.abs(qy) * height >= _SKIP) & (qx * width >= _SKIP) & (qx < 0.5) & (qy > -0.5)
    outer = free & (qx >= INSIDE)
    cell = (np.floor((qy + 0.5) * _CELLS) * _CELLS + np.floor(qx * _CELLS)).astype(int)[outer]
    labels, counts = np.unique(cell, return_counts=True)
    labels, counts = labels[counts >= 4], counts[counts >= 4]
    values = ndimage.median(power[outer], cell, labels)
    cx, cy = (np.cos(2 * np.pi * q[outer]) for q in (qx, qy))
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
    far = power[outer & (np.hypot(qy, qx) >= _CORNER)]
    level = float(np.median(far)) / (1 - 1 / (9 * rank)) ** 3
    chance = 2 / np.sqrt(far.size * rank * _MEDIAN)
    every, mean = float(power[1:, 1:].mean()), float(power[free].mean())
    inner = power[free & (np.hypot(qy, qx) < 0.08)]
    spread = float(np.median(inner)) / mean if inner.size and mean else 1.0
    share, uneven = level / every if every > 0 else 1.0, every > (1.03 + chance) * level
    return Whiteness(x, y, correlated, share, bool(uneven), spread or 1.0)


def line_noise(spectrum: Spectrum, axis: int) -> float:
    """Compare the power of rows' offsets (axis 0) or columns' (axis 1) with that beside them.

    Only from `INSIDE` outwards: structure is smoother. Returns the RMS of the offsets beyond the
    pixels' noise, in intensity units; 0 where it is not beyond chance, or too weak to matter.
    """
    power, shape, rank = spectrum
    plane = power if axis == 0 else power.T
    length, across = shape[axis], shape[1 - axis]
    band = np.arange(int(np.ceil(INSIDE * length)), (length + 1) // 2)
    near = np.arange(_SKIP, max(_SKIP + 4, across // 16))
    mirrored = band if axis else np.concatenate([band, -band])
    beside = plane[np.ix_(mirrored, np.concatenate([near, -near]) if axis else near)]
    level = float(np.median(beside))
    if level <= 0:
        return 0.0
    ratio = float(np.median(plane[band, 0])) / level
    spread = 1 / (3 * sqrt(band.size * rank * _MEDIAN))
    sigma = sqrt(max(0.0, ratio - 1) * level * 1.1 / across)  # 1.1: by the window's edges
    # Wilson and Hilferty, PNAS 17 (1931) 684: the cube root is nearly normal.
    clear = (ratio ** (1 / 3) - 1) / spread > _LINE_Z and sigma > _LINE_SHARE * sqrt(level)
    return sigma if clear else 0.0
