"""The noise of a stack: its variance in small blocks of pixels, and its power spectrum.

White noise, as that of counts, has the same power at every frequency, and as much after a
high-pass filter as before it; a lattice is a few spots, and smooth structure lies at low
frequencies. Differences of neighbouring frames hold no fixed structure. Where they are not white,
the specimen moves, lines of a scan change, or the noise is correlated from pixel to pixel. Frames
two apart differ more than neighbours where the specimen drifts slowly. Where it has moved by more
than its own structure within one frame, or shakes, they do not; what that leaves in differences
lies within `INSIDE` along x, so that further out only the camera, or what has resampled the
frames, makes the power uneven.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import sqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from emdn_deploy import bad_pixels, stacks

MAX_FRAMES = 64
MAX_PIXELS = 8 * 2**20
RUN = 3  # neighbouring frames of a sample: lags 1 and 2
BLOCK = 16
_MAX_SPECTRA = 8  # of single frames
_DIFFERENCES = 2**20  # pixels of the frames whose differences' spectra are added up
_MANY = 2**17  # pixels, of all runs, that tell a quantile
# Pixels that tell the noise to 0.3 %, and the share of a stack that more of them may be.
_LEAST, _SHARE = 2**18, 16
_GOLDEN = 0.5 * (5**0.5 - 1)
_ROUNDING = 1e-13  # products of equal frames cancel to this, not to zero
_LEFT = 0.03  # how much more than white noise high-passed differences may hold

SMALLEST = 32  # side of a frame that has a spectrum
INSIDE = 0.25  # cycles per pixel: below, structure
SKIP = 3  # frequencies next to an axis that the taper mixes with it
MEDIAN = 0.45  # of a mean's precision, that of the median of few spectra
_LARGEST = 1024  # of a single frame's sides
_RING = 0.03  # cycles per pixel
# Where a fall of a frame's noise is looked for, and by how much, at least and beyond chance.
_FALL = (INSIDE, 0.35), (0.4, 0.5)
_FALLS, _CLEAR = 1.25, 8.0
_GOOD = 0.98  # share of good pixels, from which on the others are single ones and do not matter
_IMAGE = 0.1, 0.15  # where images are, but little of what is smooth in them
_TAPER = 8  # an edge of 1/8 on each side
_CELLS = 16  # per cycle per pixel
_RANK = 0.8  # of two differences that share a frame, as if independent
_BLUR_F, _LEAST_CORRELATION = 12.0, 0.02  # from which on a correlation is no chance, and matters
_CORNER = 0.4  # beyond, neither an image's tail nor motion reaches

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Stack = NDArray[np.float32]
Size = tuple[int, int]


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


class NoiseLevel:
    """Statistics of a sample, in blocks of about `BLOCK` x `BLOCK` pixels and of spectra.

    Pixels that are ``bad``, (H, W), do not count. Noise is measured on a band of each run, another
    one every time, which takes a few per cent of the time of denoising; or ``everywhere``.
    FormatError if a pixel is not finite.

    Attributes
    ----------
    level
        Mean intensity of all pixels.
    mean
        (B,) mean intensity of blocks.
    temporal, lagged
        (B,) half the mean square difference of neighbouring frames (see `difference`), and
        (B',) of frames two apart; empty for one frame.
    temporal_high, high
        (B,) noise variance from the high-passed differences, and (B'',) from single frames that
        were high-passed; empty for frames too small.
    low
        0.1 % quantile of the pixels.
    integers
        Whether every pixel that was looked at is a whole number.
    step
        The largest number that all of them are multiples of; 0 where there is none.
    """

    def __init__(self, sample: Sample, bad: Mask | None = None, *, everywhere: bool = False):
        self._sample, self._everywhere = sample, everywhere
        size, runs = sample.runs[0].shape[1:], len(sample.runs)
        starts, run = sample_starts(sample.count, size)
        self._good = good = np.ones(size, bool) if bad is None else ~bad
        part = _middle(size, MAX_PIXELS // run)
        height, width = (side.stop - side.start for side in part)
        rows, every = height, 1
        if not everywhere:
            rows, every = _bands(height, width * run, runs, sample.count * good.size)
        thin = max(1, round((runs * run * good.size / _MANY) ** 0.5))
        levels, lows, values, parts = [], [], [], []
        for number, (start, frames) in enumerate(zip(starts, sample.runs, strict=True)):
            means = stacks.means(frames, start)
            total = means.sum() * good.size - frames[:, ~good].sum(dtype=np.float64)
            each = len(frames) * np.count_nonzero(good)
            levels.append(means.mean() if good.all() else total / each)
            if number % every == 0:
                top = part[0].start + round((height - rows) * (number * _GOLDEN % 1))
                band = slice(top, top + rows), part[1]
                parts.append(block_moments(frames[:, *band].astype(np.float64), good[band]))
            pixels = frames[:, ::thin, ::thin][:, good[::thin, ::thin]].astype(np.float64)
            lows.append(np.quantile(pixels, 0.001))
            values.append(np.unique(pixels))
        pixels = np.unique(np.concatenate(values))
        joined = {name: np.concatenate([one[name] for one in parts]) for name in parts[0]}
        self.mean, self.temporal, self.lagged = (joined[n] for n in ("mean", "temporal", "lagged"))
        self.temporal_high, self.high = joined["temporal_high"], joined["high"]
        self.level, self.low = float(np.mean(levels)), float(np.median(lows))
        self.integers = bool(np.equal(pixels, np.rint(pixels)).all())
        self.step = common_step(pixels)

    @cached_property
    def single(self) -> float:
        """Return the noise variance of single frames, from their spectra if they are large."""
        values = [variance for variance, _ in self._frames] or self.high
        # The median: structure raises the variance of some blocks, noise that of all.
        return float(np.median(values)) if len(values) else 0.0

    @cached_property
    def spread(self) -> float:
        """Return the noise's power at low frequencies over its variance, of single frames."""
        return float(np.median([spread for _, spread in self._frames] or [1.0]))

    @cached_property
    def _frames(self) -> list[tuple[float, float]]:
        if min(self._good.shape) < SMALLEST:
            return []
        some = self._sample.runs[: max(1, _MAX_SPECTRA // len(self._sample.runs[0]))]
        return [frame_noise(frames[0], self._good) for frames in some]

    @cached_property
    def moves(self) -> bool:
        """Return whether frames two apart differ more than neighbours do, beyond chance."""
        return _exceeds(self.lagged, self.temporal, 1.03)

    @cached_property
    def rough(self) -> bool:
        """Return whether the differences have less power at high frequency than white noise."""
        return _exceeds(self.temporal, self.temporal_high, 1.01)

    @property
    def uneven(self) -> bool:
        """Return whether the differences are not the pixels' white noise."""
        return self.rough or self.moves

    @property
    def beyond_frames(self) -> bool:
        """Return whether differences hold twice what the spectrum of single frames calls noise.

        This errs by a third where the noise is correlated.
        """
        return trimmed_mean(self.temporal) > 2 * self.single > 0

    @cached_property
    def spectra(self) -> "Spectra | None":
        """Return the spectra of some of the frames; None where they are too small."""
        size, runs = self._good.shape, self._sample.runs
        most = MAX_PIXELS if self._everywhere else _DIFFERENCES
        part = _middle(size, most // len(runs[0]))
        good = self._good[part]
        if min(size) < SMALLEST or not good.any():
            return None
        step = max(1, -(-len(runs) * len(runs[0]) * good.size // most))
        return Spectra((frames[:, *part].astype(np.float64) for frames in runs[::step]), good)

    @cached_property
    def whiteness(self) -> "Whiteness | None":
        """Return what the spectra of differences say; None where there are none."""
        return whiteness(self.spectra) if self.spectra and self.spectra.pairs else None

    def white_variance(self, share: float) -> float:
        """Return the variance of the pixels' noise in differences that hold more than that.

        That of their high-passed part, or, where motion reaches it, the power at the highest
        frequencies, of which ``share`` is white.
        """
        high, least = trimmed_mean(self.temporal_high), share * trimmed_mean(self.temporal)
        return least if least < (1 - _LEFT) * high else high


def _exceeds(values: Array, others: Array, factor: float) -> bool:
    """Say whether values are on average more than so many times the others, beyond chance."""
    if not (values.size and others.size):
        return False
    chance = sqrt(sum(float(part.var()) / part.size for part in (others, values)))
    return trimmed_mean(values) > factor * trimmed_mean(others) + 3 * chance


def _middle(size: tuple[int, ...], pixels: int) -> tuple[slice, slice]:
    """Return the middle of a frame (H, W), about ``pixels`` large, or all of it."""
    shrink = min(1.0, (pixels / (size[0] * size[1])) ** 0.5)
    sides = [max(min(length, 3), int(length * shrink)) for length in size]
    low = [(length - side) // 2 for length, side in zip(size, sides, strict=True)]
    return slice(low[0], low[0] + sides[0]), slice(low[1], low[1] + sides[1])


def _bands(rows: int, width: int, runs: int, stack: int) -> tuple[int, int]:
    """Choose how many of the rows, of ``width`` pixels, to measure noise on, and in each n-th run.

    More of them for a large ``stack``, in pixels.
    """
    wanted = max(_LEAST, stack // _SHARE)
    # Few wide bands take less time than many narrow ones.
    every = max(1, runs * 4 * BLOCK * width // wanted)
    blocks = -(-wanted // (-(-runs // every) * BLOCK * width))
    return min(rows, max(2, blocks) * BLOCK), every


def common_step(values: Array) -> float:
    """Return the largest number that all ``values``, sorted, are multiples of to rounding, or 0."""
    marks = np.union1d(values, 0.0)
    rounding = 2.0**-22 * float(np.abs(marks).max())
    marks = marks[np.append(True, np.diff(marks) > rounding)]
    gaps = np.diff(marks)
    if not gaps.size or float(gaps.min()) < 100 * rounding:
        return 0.0
    counts = np.append(0.0, np.cumsum(np.rint(gaps / gaps.min())))
    counts -= counts[np.argmin(np.abs(marks))]
    step = float(marks @ counts / (counts @ counts))
    return step if np.abs(marks - step * counts).max() <= rounding else 0.0


def trimmed_mean(values: Array) -> float:
    """Average all but the upper and lower 2 %: a few hot or dead pixels do no harm."""
    if not values.size:
        return 0.0
    cut = int(0.02 * values.size)
    return float(np.sort(values)[cut : values.size - cut].mean())


def block_moments(frames: Array, good: Mask) -> dict[str, Array]:
    """Measure a run of frames (k, h, w) in blocks, of which a quarter or more is good.

    A block is k vectors, and the k x k matrix of their products holds the mean square of every
    linear combination of the frames in it, so that each frame is gone through once. What is
    returned is as the attributes of `NoiseLevel`: one value a block and pair, or a block and frame.
    """
    count = len(frames)
    means = frames.mean(axis=(1, 2), where=True if good.all() else good)
    frames = (frames - means[:, None, None]) * good
    # A filter's output is good where its window is.
    inner = ndimage.binary_erosion(good, np.ones((3, 3)))
    passed = np.zeros_like(frames)
    passed[:, 1:-1, 1:-1] = high_pass(frames)
    passed *= inner
    shares, inside = (
        _cut(mask[None].astype(np.float64)).sum(axis=(1, 2)) for mask in (good, inner)
    )
    cells, edges = _cut(frames), _cut(passed)
    used = 4 * (inside if inside.any() else shares) > cells.shape[2]
    filtered = used & (inside > 0)
    cells, shares, edges, inside = cells[used], shares[used], edges[filtered], inside[filtered]
    products, high = cells @ cells.swapaxes(1, 2), edges @ edges.swapaxes(1, 2)
    each = cells.sum(axis=2).T / shares + means[:, None]
    pairs = [_steady_difference(products, *pair) for pair in pairwise(range(count))]
    lag = [_steady_difference(products, 0, 2)] if count > 2 else []

    def variances(products: Array, weights: Iterable[Array], pixels: Array) -> Array:
        parts = [_squares(products, one) / pixels for one in weights]
        return np.concatenate([np.zeros(0), *parts])

    return {
        "mean": (each if count == 1 else (each[:-1] + each[1:]) / 2).ravel(),
        "temporal": variances(products, pairs, shares),
        "lagged": variances(products, lag, shares),
        "temporal_high": variances(high, pairs, inside),
        "high": variances(high, np.eye(count), inside),
    }


def difference(before: Array, after: Array) -> Array:
    """Subtract (H, W) frames so that white noise keeps its variance.

    A beam that has changed in between is taken out: the mean, and the contrast by
    regression on the sum of both, with which the difference of their noise is not
    correlated. So a camera's offset need not be known. Where a few pixels that flare up
    have decided on the contrast, most blocks differ more than before: it is left alone.
    """
    frames = np.stack([before, after])
    frames -= frames.mean(axis=(1, 2))[:, None, None]
    cells = _cut(frames)
    weights = _steady_difference(cells @ cells.swapaxes(1, 2), 0, 1)
    return np.asarray(np.tensordot(weights, frames, 1))


def high_pass(frames: Array) -> Array:
    """Filter (k, H, W) by [1, -2, 1] along both axes, with unit gain for white noise.

    After Immerkaer, Computer Vision and Image Understanding 64 (1996) 300. Lines
    along an axis and anything smooth are removed. Gives (k, H - 2, W - 2).
    """
    return np.asarray(np.diff(np.diff(frames, 2, axis=1), 2, axis=2) / 6)


def _steady_difference(products: Array, first: int, second: int) -> Array:
    """Weigh k frames, of products (B, k, k), so that their sum is a `difference` of two: (k,)."""
    plain, both = np.zeros((2, products.shape[1]))
    plain[[first, second]] = -(0.5**0.5), 0.5**0.5
    both[[first, second]] = 0.5
    total = products.sum(axis=0)
    weight = both @ total @ both
    if not weight > 0:
        return plain
    steady = plain - both * (plain @ total @ both / weight)
    half = len(products) // 2
    energies = [np.partition(_squares(products, one), half)[half] for one in (steady, plain)]
    return steady if energies[0] < energies[1] else plain


def _squares(products: Array, weights: Array) -> Array:
    """Return the sum of squares of the weighted sum of frames, block by block, (B,)."""
    squares: Array = products @ weights @ weights
    least = _ROUNDING * (products.diagonal(axis1=1, axis2=2) @ (weights * weights))
    return np.where(squares > least, squares, 0.0)


def _cut(images: Array) -> Array:
    """Cut (k, h, w) into blocks (B, k, pixels); the odd pixels at the end are left out."""
    count, height, width = images.shape
    down, across = (max(1, length // BLOCK) for length in (height, width))
    sides = height // down, width // across
    cut = images[:, : down * sides[0], : across * sides[1]]
    cells = cut.reshape(count, down, sides[0], across, sides[1]).transpose(1, 3, 0, 2, 4)
    return cells.reshape(down * across, count, sides[0] * sides[1])


def frame_noise(frame: Stack, good: Mask) -> tuple[float, float]:
    """Return the noise variance of (H, W), at least `SMALLEST`, where its spectrum holds no image.

    The median over rings of the power passes between the spots of a lattice. Interpolated or
    blurred frames have noise that falls off outwards: its rings are added up as they are, while
    a high-pass filter would see only the outermost. Pixels that are not ``good`` were filled in,
    which leaves them less noise.

    Also returned is the power at low frequencies over the variance, which is 1 unless the power
    clearly falls off outside `INSIDE`.
    """
    good = _central(good)
    flat = without_outliers(_central(frame).astype(np.float64), good)
    window = np.outer(*(np.hanning(length) for length in good.shape))
    # Areas that were filled in have little noise; single pixels do not matter.
    if np.average(good, weights=window**2) < _GOOD and good.any():
        window *= good
    flat = (flat - np.average(flat, weights=window)) * window
    power = np.abs(np.fft.rfft2(flat)) ** 2 / (window**2).sum()
    qy, qx = frequencies(good.shape)
    radius = np.hypot(qy, qx)
    ring = ((radius - INSIDE) / _RING).astype(int)
    outside = radius >= INSIDE
    # All but the first and last columns of a half spectrum stand for two frequencies.
    weight = np.broadcast_to(np.where((qx > 0) & (qx < 0.5), 2.0, 1.0), power.shape)
    numbers = range(int(ring[outside].max()) + 1)
    levels = np.array([_level(power[outside & (ring == number)]) for number in numbers])
    # The first ring stands for what lies further inside.
    total = levels[ring[outside]] @ weight[outside] + levels[0] * weight[~outside].sum()
    variance = float(total / weight.sum())
    if variance <= 0:
        return 0.0, 1.0
    near, far = (power[(radius >= low) & (radius < high)] for low, high in _FALL)
    chance = 1 + _CLEAR * np.sqrt(1 / near.size + 1 / far.size) / np.log(2)
    if _level(near) < max(_FALLS, chance) * _level(far):
        return variance, 1.0
    # Followed inwards as a Lorentz function, which a camera's resolution nearly is. Where an image
    # without spots reaches far out, this is less than what lies between the spots there; where it
    # does not, that is less: of a CCD's noise, half.
    middles = INSIDE + _RING * (np.arange(int(np.ceil((0.5 - INSIDE) / _RING))) + 0.5)
    slope, least = np.polyfit(middles**2, 1 / levels[: middles.size], 1)
    inner = _level(power[(radius >= _IMAGE[0]) & (radius < _IMAGE[1])])
    if slope > 0 and least > 0:
        inner = min(inner, float(1 / least))
    return variance, max(1.0, inner / variance)


def _level(power: Array) -> float:
    """Return the mean power of noise: it is distributed exponentially, its median is ln 2 of it."""
    return float(np.median(power) / np.log(2))


def _central(frame: NDArray[Any]) -> NDArray[Any]:
    """Return the middle of a large frame (H, W)."""
    top, left = (max(0, (length - _LARGEST) // 2) for length in frame.shape)
    return frame[top : top + _LARGEST, left : left + _LARGEST]


def without_outliers(frame: Array, good: Mask | None = None) -> Array:
    """Replace hot and dead pixels of (H, W), whose spectrum is white, by their surroundings.

    Far off is what differs from its neighbours by more than most ``good`` pixels do.
    """
    wide = np.pad(frame, 1, mode="reflect")
    up, down, left, right = wide[:-2, 1:-1], wide[2:, 1:-1], wide[1:-1, :-2], wide[1:-1, 2:]
    # The middle two of four are what the pairs' extremes leave: one bad one does not count.
    low = np.maximum(np.minimum(up, down), np.minimum(left, right))
    around = (low + np.minimum(np.maximum(up, down), np.maximum(left, right))) / 2
    distance = frame - around
    most = distance if good is None else distance[good]
    limit = 8 * 1.4826 * float(np.median(np.abs(most - np.median(most))))
    return np.where(np.abs(distance) > limit, around, frame) if limit else frame


class Spectra:
    """Power spectra of runs of neighbouring frames (k, h, w), each (h, w // 2 + 1).

    ``power`` is the mean of those of differences of neighbours, ``pairs`` in number, and of
    ``rank`` independent ones; of ``frames``, those that ``repeats`` counts are the one before
    again. ``average`` is the power of the mean of all frames, as large as a single one's for white
    noise, in a Hann window, as spots are far above the noise here.
    """

    def __init__(self, runs: Iterable[Array], good: Mask) -> None:
        self.shape: Size = (good.shape[0], good.shape[1])
        self.pairs = self.frames = self.repeats = 0
        self.power: Array = np.zeros((good.shape[0], good.shape[1] // 2 + 1))
        window = np.outer(*(taper(length) for length in good.shape))
        if good.mean() < _GOOD:  # what is filled in has no white noise
            window *= good
        fill, run, total = bad_pixels.plan(~good), 0, np.zeros(good.shape)
        for frames in runs:
            fill.apply(frames)
            for before, after in pairwise(frames):
                if np.ptp(after) and np.array_equal(before, after):
                    self.repeats += 1
                    continue
                self.pairs += 1
                self.power += np.abs(_transform(difference(before, after), window)) ** 2
            total += frames.sum(axis=0)
            self.frames, run = self.frames + len(frames), max(run, len(frames))
        self.rank = self.pairs * (_RANK if run > 2 else 1.0)
        self.power /= max(1, self.pairs)
        mean, hann = total / self.frames, np.outer(*(np.hanning(side) for side in good.shape))
        average = _transform(without_outliers(mean - mean.mean()), hann)
        self.average: Array = np.abs(average) ** 2 * self.frames


def _transform(image: Array, window: Array) -> NDArray[np.complex128]:
    scaled = np.fft.rfft2(image * window) / np.sqrt((window**2).sum())
    return np.asarray(scaled, np.complex128)


def taper(length: int) -> Array:
    """Return a window (length,) that is flat but for an edge."""
    edge = max(1, length // _TAPER)
    rise = np.sin(np.pi / 2 * (np.arange(edge) + 0.5) / edge) ** 2
    return np.concatenate([rise, np.ones(length - 2 * edge), rise[::-1]])


def frequencies(shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Return qy (h, 1) and qx (1, w // 2 + 1) in cycles per pixel."""
    qy, qx = np.fft.fftfreq(shape[0]), np.fft.rfftfreq(shape[1])
    return qy[:, None].astype(np.float64), qx[None, :].astype(np.float64)


def off_axes(shape: Size) -> Mask:
    """Leave out the axes, and frequencies that a real frame's spectrum holds twice."""
    qy, qx = frequencies(shape)
    free = (np.abs(qy) * shape[0] >= SKIP) & (qx * shape[1] >= SKIP)
    return np.asarray(free & (qx < 0.5) & (np.abs(qy) < 0.5))


def corner(power: Array, shape: Size) -> Array:
    """Return the power (n,) at frequencies far out where neither motion nor jitter reach."""
    qy, qx = frequencies(shape)
    return power[off_axes(shape) & (np.hypot(qy, qx) >= _CORNER) & (qx >= INSIDE)]


def cells(shape: Size) -> NDArray[np.intp]:
    """Number the cell of every frequency: squares in which the power of noise changes little."""
    qy, qx = frequencies(shape)
    across = _CELLS // 2 + 1
    return np.asarray(np.floor((qy + 0.5) * _CELLS) * across + np.floor(qx * _CELLS), np.intp)


def cell_medians(power: Array, cell: NDArray[np.intp]) -> tuple[NDArray[Any], NDArray[Any], Array]:
    """Return cells of four frequencies and more, how many each has, and their median power."""
    labels, counts = np.unique(cell, return_counts=True)
    labels, counts = labels[counts >= 4], counts[counts >= 4]
    return labels, counts, np.asarray(ndimage.median(power, cell, labels))


class Blur(NamedTuple):
    """The correlation of neighbouring pixels along x and y, and whether it is beyond chance."""

    x: float
    y: float
    clear: bool


def blur(power: Array, shape: Size, *, single: bool = False) -> Blur:
    """Fit a(1 + 2x cos 2 pi qx + 2y cos 2 pi qy + 4d cos cos) to the outer spectrum.

    That of a ``single`` frame only farther out, as its image's tail reaches far.
    """
    qy, qx = frequencies(shape)
    where = off_axes(shape) & (qx >= INSIDE)
    if single:
        where &= np.hypot(qy, qx) >= _CORNER
    cell = cells(shape)[where]
    labels, counts, values = cell_medians(power[where], cell)
    cx, cy = np.cos(2 * np.pi * qx), np.cos(2 * np.pi * qy)
    terms = [np.broadcast_to(term, power.shape)[where] for term in (cx**0, cx, cy, cx * cy)]
    design = np.stack([np.bincount(cell, term)[labels] / counts for term in terms], axis=1)
    weight = np.sqrt(counts)
    a, b = design * weight[:, None], values * weight
    fit = np.linalg.pinv(a.T @ a) @ a.T @ b
    left = float(((b - a @ fit) ** 2).sum()) / max(1, len(labels) - 4)
    level = float((b * weight).sum() / (weight**2).sum())
    explained = float(((b - weight * level) ** 2).sum()) - left * (len(labels) - 4)
    if left <= 0 or fit[0] <= 0:
        return Blur(0.0, 0.0, clear=False)
    x, y = float(fit[1] / fit[0] / 2), float(fit[2] / fit[0] / 2)
    # Fisher's F with 3 and many degrees of freedom.
    clear = explained / 3 / left > _BLUR_F and max(abs(x), abs(y)) > _LEAST_CORRELATION
    return Blur(x, y, clear)


class Whiteness(NamedTuple):
    """What the spectrum of the differences says where no image reaches.

    Whether neighbouring pixels' noise is correlated; the share of white noise in the power, and
    whether the rest is beyond chance; the power at low frequencies over the mean power, which is
    how many pixels share their noise.
    """

    correlated: bool
    share: float
    uneven: bool
    spread: float


def whiteness(spectra: Spectra) -> Whiteness:
    """Say how white the differences are, of which there must be some."""
    power, shape, rank = spectra.power, spectra.shape, spectra.rank
    far, where = corner(power, shape), off_axes(shape)
    level = float(np.median(far)) / (1 - 1 / (9 * rank)) ** 3
    every, mean = float(power[1:, 1:].mean()), float(power[where].mean())
    chance = 2 / np.sqrt(far.size * rank * MEDIAN)
    inner = power[where & (np.hypot(*frequencies(shape)) < 0.08)]
    spread = float(np.median(inner)) / mean if inner.size and mean else 1.0
    return Whiteness(
        blur(power, shape).clear,
        level / every if every > 0 else 1.0,
        every > (1.03 + chance) * level,
        spread if spread > 0 else 1.0,
    )
