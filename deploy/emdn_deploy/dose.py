"""From intensities to electrons: noise, gain, offset and dose of a stack.

A net expects x = (e - s) / sqrt(s), with e the electrons of a pixel and s their mean, so that the
noise has unit variance at the mean. Frames are gain * e + offset, and gain is their variance over
their mean above the offset. It is rarely written down, so noise is measured on frames sampled over
the stack, in small blocks of pixels and in power spectra.

White noise, as that of counts, has the same power at every frequency; a lattice is a few spots,
and smooth structure lies at low frequencies. Differences of neighbouring frames hold no fixed
structure. Where they are not white, the specimen moves, rows of a scan flicker, or the noise is
correlated from pixel to pixel. What motion leaves in them lies within `INSIDE` along x: further
out, only the camera, or what has resampled the frames, makes the power uneven. Where a camera
spreads an electron over pixels, each has less noise than its electrons: the gain is then that of
the power at low frequencies, where images are.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import nan, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from emdn_models.errors import EmdnError

MAX_FRAMES, MAX_PIXELS = 64, 8 * 2**20  # of a sample
RUN = 3  # neighbouring frames of a sample: lags 1 and 2
BLOCK = 16
_PIXELS = 2**21  # of all runs, that are measured: they tell the noise to 0.2 %
_SPREAD = 0.7549, 0.5698  # shares of a frame from one part that is measured to the next
_HIGH_PASS = np.outer([1, -2, 1], [1, -2, 1]) / 6  # of unit gain for white noise

SMALLEST = 32  # side of frames whose differences have a spectrum
INSIDE = 0.25  # cycles per pixel: below, structure
_LARGEST = 1024  # side of the part of a single frame that has a spectrum
_CORNER = 0.4  # beyond, neither an image's tail nor motion reaches
_SKIP = 3  # frequencies next to an axis that the window mixes with it
_MEDIAN = 0.45  # of a mean's precision, that of the median of few spectra
_EDGE = 0.25  # of a window of differences, that is not flat
_RANK = 0.8  # of two differences that share a frame, as if independent
_RING = 0.03  # cycles per pixel
# Where a fall of a frame's noise is looked for, and by how much, at least and beyond chance.
_FALL = (INSIDE, 0.35), (0.4, 0.5)
_FALLS, _CLEAR = 1.25, 8.0
_IMAGE = 0.1, 0.15  # where images are, but little of what is smooth in them
_CELLS = 16  # per cycle per pixel
_CORRELATION_F, _LEAST_CORRELATION = 12.0, 0.02  # from where it is no chance, and matters
_ROW_Z, _ROW_SHARE = 4.5, 0.03  # the same of rows, the second in parts of the noise

NO_NOISE = "no noise found: a constant or synthetic stack, whose frames are left as they are"
_COUNTS_TOLERANCE = 0.2  # estimated gains this close to 1 are counts, of whole numbers
_LOST = 0.05  # counting cameras lose a few electrons that arrive together
_ROUNDING = 1e-7  # noise of this part of the mean is the rounding of float32
_FLOAT32 = 1e-16, 1e16  # gains between which float32 holds the square of an intensity
_MOVED = 1.1  # times a frame's noise, from which on differences of frames that move hold more
_DARK = 0.1  # of the mean, less than which no part of a frame tells the gain
_FLICKER = 0.02  # of the mean: what the models saw at most (`emdn_train.noise`)

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

    ``mean``: (B,) mean intensity. ``temporal``: (B,) noise variance by differences of neighbouring
    frames; ``high``: (B,) of that after a high-pass filter (Immerkaer, Computer Vision and Image
    Understanding 64 (1996) 300), empty for frames too small. ``lagged``: (B',) of frames two apart.
    """

    mean: Array
    temporal: Array
    high: Array
    lagged: Array


class NoiseLevel:
    """Statistics of sampled runs of finite frames (k, H, W); ``bad`` pixels (H, W) do not count.

    ``level`` and ``low``: mean intensity of all pixels, and their 0.1 % quantile; ``integers``:
    whether all are whole numbers; ``blocks``: of another part of each run; ``measured``: the mean
    of these parts; ``whiteness``: None where there are no differences, and for small frames.
    """

    def __init__(self, runs: Sequence[Stack], bad: Mask | None = None) -> None:
        size = runs[0].shape[1:]
        self._good = good = np.ones(size, bool) if bad is None else ~bad
        self._runs = runs = [_changing(run) for run in runs]
        wanted = _PIXELS // sum(map(len, runs))
        width = min(size[1], max(int(sqrt(wanted)), wanted // size[0], 2 * BLOCK))
        height = min(size[0], max(wanted // width, 2 * BLOCK))
        pixels = [run[:, good] for run in runs]
        self.level = float(np.mean([one.mean(dtype=np.float64) for one in pixels]))
        self.low = float(np.median([np.quantile(one, 0.001) for one in pixels]))
        self.integers = all(np.array_equal(one, np.rint(one)) for one in pixels)
        measured, changes, means = list[Blocks](), list[tuple[Array, Mask]](), list[float]()
        for number, frames in enumerate(runs):
            top = round((size[0] - height) * ((0.5 + number * _SPREAD[0]) % 1))
            left = round((size[1] - width) * ((0.5 + number * _SPREAD[1]) % 1))
            part = slice(top, top + height), slice(left, left + width)
            found, differences = blocks(frames[:, *part].astype(np.float64), good[part])
            measured.append(found)
            if good[part].any():
                means.append(frames[:, *part].mean(where=good[part], dtype=np.float64))
            changes += [(one, good[part]) for one in differences]
        self.blocks = Blocks(*map(np.concatenate, zip(*measured, strict=True)))
        self.measured = float(np.mean(means)) if means else self.level
        self.whiteness = None
        if changes and min(height, width) >= SMALLEST:
            rank = len(changes) * (_RANK if len(runs[0]) > 2 else 1.0)
            self.whiteness = whiteness(_power(changes, _EDGE), (height, width), rank)

    @cached_property
    def single(self) -> tuple[float, float, float]:
        """Return `frame_noise` of single frames."""
        found = [frame_noise(frames[0], self._good) for frames in self._runs[:2]]
        variance, mean, spread = np.mean(found, axis=0).tolist()
        return variance, mean, spread

    @cached_property
    def moves(self) -> bool:
        """Return whether frames two apart differ more than neighbours do, beyond chance."""
        return _exceeds(self.blocks.lagged, self.blocks.temporal, 1.03)


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

    Returned are the differences of neighbouring frames, too.
    """
    inner = ndimage.binary_erosion(good, np.ones((3, 3)))  # where the filter's window is good
    used = _block_means(inner if inner.any() else good) > 0.25
    if len(frames) < 2 or not used.any():
        return Blocks(*np.zeros((4, 0))), []
    centred = (frames - frames.mean(axis=(1, 2), where=good, keepdims=True)) * good
    changes = [_difference(*pair, used) for pair in pairwise(centred)]
    high = [ndimage.convolve(one, _HIGH_PASS) for one in changes] if inner.any() else []

    def means(images: Iterable[Array], where: Mask) -> Array:
        share = _block_means(where)[used]
        found = [_block_means(image * where)[used] / share for image in images]
        return np.concatenate([np.zeros(0), *found])

    lagged = [_difference(centred[0], centred[2], used)] if len(frames) > 2 else []
    found = Blocks(
        means((frames[1:] + frames[:-1]) / 2, good),
        means((one * one for one in changes), good),
        means((one * one for one in high), inner),
        means((one * one for one in lagged), good),
    )
    return found, changes


def _difference(before: Array, after: Array, used: Mask) -> Array:
    """Subtract centred frames (h, w) so that white noise keeps its variance.

    A beam that has changed in between is taken out: the contrast, by regression on the sum of both
    in the blocks that are ``used``; but not where a few pixels that flare up decide on it.
    """
    plain, both = (after - before) / 2**0.5, (before + after) / 2
    if not (weight := _block_means(both * both)[used].sum()) > 0:
        return plain
    steady = plain - both * (_block_means(plain * both)[used].sum() / weight)
    left, had = (np.quantile(_block_means(one * one)[used], 0.5) for one in (steady, plain))
    return steady if left < had else plain


def _block_means(image: NDArray[np.generic]) -> Array:
    """Average (h, w) over blocks, (B,); the odd pixels at the end are left out."""
    down, across = (max(1, length // BLOCK) for length in image.shape)
    high, wide = image.shape[0] // down, image.shape[1] // across
    cut = image[: down * high, : across * wide].reshape(down, high, across, wide)
    return np.asarray(cut.mean(axis=(1, 3))).ravel()


def _power(images: list[tuple[Array, Mask]], edge: float) -> Array:
    """Return the power spectrum (h, w // 2 + 1) of images (h, w): for white noise its variance.

    Each has its good pixels; a window is flat but for the share ``edge``.
    """
    height, width = images[0][0].shape
    flat = np.outer(_taper(height, edge), _taper(width, edge))
    power, norm = np.zeros((height, width // 2 + 1)), 0.0
    for image, good in images:
        # What is filled in has no white noise, and a window with holes mixes frequencies.
        window = flat if np.average(good, weights=flat) > 0.98 else flat * good
        mean = np.average(image, weights=window)
        power += np.abs(np.fft.rfft2((image - mean) * window)) ** 2
        norm += np.square(window).sum()
    return power / norm


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
    power = _power([(image, good)], 1.0)  # Hann's window: spots are far above the noise
    qy, qx = _frequencies(image.shape)
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
    their noise; the RMS of offsets of ``rows`` that change from frame to frame.
    """

    x: float
    y: float
    correlated: bool
    share: float
    uneven: bool
    spread: float
    rows: float


def whiteness(power: Array, shape: tuple[int, int], rank: float) -> Whiteness:
    """Say how white differences (h, w) are, by the mean power of ``rank`` independent ones.

    Fits a(1 + 2x cos 2 pi qx + 2y cos 2 pi qy + 4d cos cos) to the medians of the outer spectrum
    in squares. Left out are the axes, and frequencies that a real frame's spectrum holds twice.
    """
    (height, width), (qy, qx) = shape, _frequencies(shape)
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
    return Whiteness(
        x, y, correlated, share, bool(uneven), spread or 1.0, _row_noise(power, shape, rank)
    )


def _row_noise(power: Array, shape: tuple[int, int], rank: float) -> float:
    """Compare the power of rows' offsets with that beside them.

    Only from `INSIDE` outwards: structure is smoother. Returns the RMS of the offsets beyond the
    pixels' noise, in intensity units; 0 where it is not beyond chance, or too weak to matter.
    """
    height, width = shape
    band = np.arange(int(np.ceil(INSIDE * height)), (height + 1) // 2)
    near = np.arange(_SKIP, max(_SKIP + 4, width // 16))
    level = float(np.median(power[np.ix_(np.concatenate([band, -band]), near)]))
    if level <= 0:
        return 0.0
    ratio = float(np.median(power[band, 0])) / level
    spread = 1 / (3 * sqrt(band.size * rank * _MEDIAN))
    sigma = sqrt(max(0.0, ratio - 1) * level * 1.1 / width)  # 1.1: by the window's edges
    # Wilson and Hilferty, PNAS 17 (1931) 684: the cube root is nearly normal.
    clear = (ratio ** (1 / 3) - 1) / spread > _ROW_Z and sigma > _ROW_SHARE * sqrt(level)
    return sigma if clear else 0.0


@dataclass(frozen=True)
class Intensity:
    """The affine scale of a stack and where it comes from."""

    scale: float  # mean electrons per pixel
    gain: float  # intensity units per electron
    offset: float  # intensity of a pixel without electrons
    sigma: float  # standard deviation of a pixel's noise at the mean, intensity units
    note: str  # what was measured and what was assumed, for people

    @property
    def pixel_gain(self) -> float:
        """Return a pixel's variance over its mean: less than ``gain`` where pixels share noise."""
        return self.sigma**2 / (self.gain * self.scale) if self.sigma else self.gain


def estimate(
    level: NoiseLevel, gain: float | None = None, offset: float | None = None
) -> Intensity:
    """Turn the noise of a stack into its scale; gain and offset are estimated where they are None.

    EmdnError if ``gain`` is not a positive number of float32, or ``offset`` not below the mean.
    """
    mean, found = level.level, noise(level)
    sigma = sqrt(found.variance)
    if sigma <= _ROUNDING * abs(mean):
        unit = gain or abs(mean) or 1.0
        return Intensity(1.0, unit, mean - unit, 0.0, NO_NOISE)
    if offset is None:
        offset, note = _offset(level, found)
    elif offset >= mean:
        raise EmdnError(
            f"offset {offset:g} is not below the mean of the frames, {mean:g}; "
            "give the intensity of a pixel without electrons"
        )
    else:
        note = "offset given"
    if gain is not None:
        note += ", gain given"
    else:
        gain = found.spread * found.variance / max(found.mean - offset, _DARK * (mean - offset))
        if level.integers and offset == 0 and abs(gain - 1) <= _COUNTS_TOLERANCE:
            gain = 1.0
            note += ", whole numbers with the noise of counts"
        else:
            note += f", gain from {found.method}"
    if not _FLOAT32[0] < gain < _FLOAT32[1]:
        raise EmdnError(
            f"gain is {gain:g} units per electron, expected {_FLOAT32[0]:g} to {_FLOAT32[1]:g}; "
            "give the frames in another unit"
        )
    scale = (mean - offset) / gain
    return Intensity(scale, gain, offset, gain * sqrt(scale / found.spread), note)


class Noise(NamedTuple):
    """A pixel's noise.

    ``variance``, at which ``mean`` intensity, and the ``method`` that it is from; ``spread``: the
    power at low frequencies over it. ``blocks``: (B,) variances for those of `Blocks`, empty where
    none are known; ``filtered``: whether they were high-passed, which leaves a little of motion.
    """

    variance: float
    mean: float
    method: str
    spread: float = 1.0
    blocks: Array = np.zeros(0)
    filtered: bool = False


def noise(level: NoiseLevel) -> Noise:
    """Choose and average the estimate of the noise.

    Where differences of frames are not white, either the noise is correlated from pixel to pixel,
    and they stand, or the specimen moves, and what is white in them does: their high-passed part,
    which smooth structure does not reach, or the power where no image is. Where both is so, a
    single frame's spectrum has to do.
    """
    blocks, white = level.blocks, level.whiteness
    if not blocks.temporal.size:
        variance, mean, spread = level.single
        shared = "" if spread == 1 else ", its large scales (the noise is correlated)"
        return Noise(variance, mean, "the spectrum of the frame" + shared, spread)
    mean, variance = level.measured, trimmed_mean(blocks.temporal)
    method = "differences of neighbouring frames"
    rough = level.moves or _exceeds(blocks.temporal, blocks.high, 1.01)
    if not white or not blocks.high.size or not (rough or white.uneven):
        return Noise(variance, mean, method, blocks=blocks.temporal)
    if not white.correlated:
        least, high = white.share * variance, trimmed_mean(blocks.high)
        pure = least if least < 0.97 * high else high
        method = f"the white part of {method} (the frames move or flicker)"
        return Noise(pure, mean, method, blocks=blocks.high * (pure / high), filtered=True)
    single, middle, spread = level.single
    if variance > (_MOVED if level.moves or not blocks.lagged.size else 2) * single > 0:
        method = "the spectrum of the frame (the noise is correlated, frames differ by more)"
        return Noise(single, middle, method, spread)
    method = f"{method}, their large scales (the noise is correlated)"
    values = np.zeros(0) if level.moves else blocks.temporal
    return Noise(variance, mean, method, white.spread, values)


def _offset(level: NoiseLevel, found: Noise) -> tuple[float, str]:
    """Choose the reading without electrons: zero unless the data say otherwise.

    That is, unless variance = gain * (mean - offset) over the blocks says so, which it cannot
    where the frames are too even or too few.
    """
    slope, constant, error = _relate(level.blocks.mean, found.blocks) or (1.0, 0.0, 1.0)
    if abs(constant) >= max(5 * error, 1e-3 * found.variance):
        fitted = -constant / slope
        # Moving structure and saturation bend the relation; electrons are not negative. What the
        # filter leaves of the motion adds to the constant.
        least = min(level.low + 3 * error / slope, found.mean)
        if fitted < least and not (found.filtered and fitted < 0):
            return fitted, "offset from the variance-mean relation"
    sigma = sqrt(found.variance)
    if min(level.level, found.mean) > 0 and level.low > -0.5 * sigma:
        return 0.0, "offset taken as 0"
    # Below zero there are no electrons: the darkest pixels stand for none.
    dark = min(level.low, level.level - sigma, found.mean - sigma)
    return dark, "offset taken from the darkest pixels"


def _relate(means: Array, variances: Array) -> tuple[float, float, float] | None:
    """Fit variance = slope * mean + constant through 12 bins of blocks (B,).

    Returns slope, constant and its standard error; None for few blocks or an unknown slope.
    """
    if variances.size < 256:
        return None
    bins = np.array_split(np.argsort(means), 12)
    centres = np.array([means[one].mean() for one in bins])
    levels = np.array([trimmed_mean(variances[one]) for one in bins])
    errors = np.array([variances[one].std(ddof=1) / sqrt(one.size) for one in bins])
    if not (errors > 0).all() or centres[0] == centres[-1]:
        return None
    (slope, constant), covariance = np.polyfit(centres, levels, 1, w=1 / errors, cov="unscaled")
    chi = float(np.mean(((levels - slope * centres - constant) / errors) ** 2))
    slope_error, constant_error = np.sqrt(np.diag(covariance) * max(1.0, chi))
    return None if slope < 10 * slope_error else (slope, constant, float(constant_error))


class NoiseModel(NamedTuple):
    """The noise of a stack's pixels, and what of it the shipped models have not seen.

    Theirs is white counting noise, and scans whose rows flicker by up to 2 % (`emdn_train.noise`).
    """

    gain: float  # variance over mean: intensity units per electron, less where it is spread out
    gain_error: float  # its standard error; NaN where it cannot be told
    offset: float  # intensity of a pixel without electrons; read noise lowers it
    method: str  # what gain and offset come from, and what was assumed
    counting: bool  # whether pixels are counts of electrons: whole numbers, gain 1
    correlated: bool  # whether the noise of neighbouring pixels is correlated
    findings: tuple[str, ...]  # in plain words


def noise_model(level: NoiseLevel, offset: float | None = None) -> NoiseModel:
    """Say what kind of noise a stack has, whose ``offset`` is measured where it is None.

    EmdnError if the offset is not below the mean.
    """
    scale, found, white = estimate(level, None, offset), noise(level), level.whiteness
    gain, error, above = scale.pixel_gain, nan, level.level - scale.offset
    if found.blocks.size and scale.sigma:
        gain = found.variance / max(found.mean - scale.offset, _DARK * above)
        # Blocks differ by their mean, too, and that is no error.
        rest = found.blocks - gain * (level.blocks.mean - scale.offset)
        error = float(rest.std(ddof=1)) / sqrt(rest.size) / above if rest.size > 1 else nan
    correlated = white.correlated if white else found.spread > 1
    near = 3 * error + _LOST if found.blocks.size else _COUNTS_TOLERANCE
    counting = level.integers and scale.gain == 1 and scale.offset == 0 and level.low >= 0
    findings = [] if scale.sigma else ["no noise: a constant or synthetic stack"]
    if correlated:
        amount = f" ({white.x:.2f} along x, {white.y:.2f} along y)" if white else ""
        findings.append(
            f"the noise of neighbouring pixels is correlated{amount}, as by a camera's blur, "
            "interpolation or filtering"
        )
    if white and white.rows > _FLICKER * above:
        findings.append(
            f"rows flicker from frame to frame, by {white.rows / above:.2%} of the mean beyond "
            "counting noise: denoising takes out only a part of it"
        )
    return NoiseModel(
        gain, error, scale.offset, scale.note,
        counting and not correlated and abs(gain - 1) <= near, correlated, tuple(findings),
    )  # fmt: skip
