"""Power spectra of a stack's differences, frames and average, added up run by run."""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from emdn_deploy import defects, spectrum
from emdn_deploy.moments import difference

INSIDE = 0.25  # cycles per pixel: an image's information lies within
SKIP = 3  # frequencies next to an axis that the taper mixes with it
MEDIAN = 0.45  # of a mean's precision, that of the median of few spectra
_TAPER = 8  # an edge of 1/8 on each side
_CELLS = 16  # per cycle per pixel
HANN_RANK = 0.55  # of one spectrum in a Hann window, against one in `taper`
_HOLES = 0.98  # of good pixels: the others are areas, not single ones
_RANK = 0.8  # of two differences that share a frame, as if independent

Array = NDArray[np.float64]


class Spectra:
    """Power of the differences, of their frames and of the average, (h, w // 2 + 1) each.

    Nothing is added up of frames smaller than `emdn_deploy.spectrum.SMALLEST`.

    Attributes
    ----------
    pairs, frames, repeats
        How many differences and frames were added up; how many frames are the one before
        again, which no difference counts.
    pixels
        How many of a frame are good.
    levels
        Means of the frames, run by run.
    """

    def __init__(self) -> None:
        self.pairs = self.frames = self.repeats = 0
        self.shared = False
        self._fill: defects.Fill | None = None
        self._sums: list[Array] = []
        self._cross: NDArray[np.complex128] = np.zeros(0, np.complex128)
        self._total: Array = np.zeros(0)
        self.levels: list[Array] = []

    def add(self, frames: Array, good: NDArray[np.bool_]) -> None:
        """Add a run of neighbouring frames (k, h, w), of which some pixels are good."""
        self.levels.append(frames.mean(axis=(1, 2), where=good))
        self.pixels = int(good.sum())
        if min(good.shape) < spectrum.SMALLEST:
            return
        if self._fill is None:
            self._fill = defects.plan(~good)
            self.shape = good.shape
            self.window = np.outer(*(taper(length) for length in good.shape))
            if good.mean() < _HOLES:  # what is filled in has no white noise
                self.window *= good
            shape = (good.shape[0], good.shape[1] // 2 + 1)
            self._sums = [np.zeros(shape), np.zeros(shape)]
            self._cross = np.zeros(shape, np.complex128)
            self._total = np.zeros(good.shape)
        if not good.all():
            frames = frames.copy()
            self._fill.apply(frames)  # type: ignore[arg-type]
        whole = np.ones_like(good)
        transforms = [_transform(frame - self.levels[-1].mean(), self.window) for frame in frames]
        for transform in transforms:
            self._sums[0] += np.abs(transform) ** 2
        for (before, after), (left, right) in zip(
            pairwise(frames), pairwise(transforms), strict=True
        ):
            if np.ptp(after) and np.array_equal(before, after):
                self.repeats += 1
                continue
            self.pairs += 1
            self._sums[1] += np.abs(_transform(difference(before, after, whole), self.window)) ** 2
            self._cross += left * right.conj()
        self._total += frames.sum(axis=0)
        self.frames += len(frames)
        self.shared = self.shared or len(frames) > 2

    @property
    def rank(self) -> float:
        """How many independent spectra ``power`` averages."""
        return self.pairs * (_RANK if self.shared else 1.0)

    @property
    def power(self) -> Array:
        """Mean power of the differences."""
        return np.asarray(self._sums[1] / max(1, self.pairs))

    @property
    def cross(self) -> NDArray[np.complex128]:
        """Mean cross spectrum of neighbours: what they share."""
        return self._cross / max(1, self.pairs)

    @property
    def single(self) -> Array:
        """Mean power of the frames."""
        return np.asarray(self._sums[0] / max(1, self.frames))

    @property
    def average(self) -> Array:
        """Power of the mean of all frames, as large as a single one's for white noise.

        In a Hann window, as spots are far above the noise here.
        """
        mean = self._total / self.frames
        centred = spectrum.without_outliers(mean - mean.mean())
        window = np.outer(*(np.hanning(length) for length in self.shape))
        return np.abs(_transform(centred, window)) ** 2 * self.frames


def _transform(image: Array, window: Array) -> NDArray[np.complex128]:
    scaled = np.fft.rfft2(image * window) / np.sqrt((window**2).sum())
    return np.asarray(scaled, np.complex128)


def taper(length: int) -> Array:
    """Return a window (length,) that is flat but for an edge."""
    edge = max(1, length // _TAPER)
    rise = np.sin(np.pi / 2 * (np.arange(edge) + 0.5) / edge) ** 2
    return np.concatenate([rise, np.ones(length - 2 * edge), rise[::-1]])


def frequencies(shape: tuple[int, int]) -> tuple[Array, Array]:
    """Return qy (h, 1) and qx (1, w // 2 + 1) in cycles per pixel."""
    qy: Array = np.fft.fftfreq(shape[0]).astype(np.float64)
    qx: Array = np.fft.rfftfreq(shape[1]).astype(np.float64)
    return qy[:, None], qx[None, :]


def cells(shape: tuple[int, int]) -> NDArray[np.intp]:
    """Number the cell, 1 / `_CELLS` wide, of every frequency."""
    qy, qx = frequencies(shape)
    across = _CELLS // 2 + 1
    return np.asarray(np.floor((qy + 0.5) * _CELLS) * across + np.floor(qx * _CELLS), np.intp)


def off_axes(shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Leave out the axes, and frequencies that a real frame's spectrum holds twice."""
    qy, qx = frequencies(shape)
    free = (np.abs(qy) * shape[0] >= SKIP) & (qx * shape[1] >= SKIP)
    return np.asarray(free & (qx < 0.5) & (np.abs(qy) < 0.5))


def medians(power: Array, cell: NDArray[np.intp], where: NDArray[np.bool_]) -> dict[int, float]:
    """Take the median of every cell: a lattice's spots do not reach it."""
    order = np.argsort(cell[where], kind="stable")
    labels, values = cell[where][order], power[where][order]
    edges = np.flatnonzero(np.diff(labels)) + 1
    return {
        int(one[0]): float(np.median(group))
        for one, group in zip(np.split(labels, edges), np.split(values, edges), strict=True)
        if len(group) >= 4
    }


def profile(power: Array, shape: tuple[int, int]) -> tuple[float, ...]:
    """Return the power in rings 0.1 cycles per pixel wide, in units of the outermost."""
    qy, qx = frequencies(shape)
    ring = np.minimum(np.hypot(qy, qx) / 0.1, 6).astype(int)
    where = off_axes(shape)
    parts = [power[where & (ring == one)] for one in range(7)]
    rings = [float(np.median(part)) if part.size else np.nan for part in parts]
    return tuple(value / rings[-1] for value in rings) if rings[-1] > 0 else ()


def autocorrelation(power: Array, shape: tuple[int, int]) -> tuple[float, float]:
    """Return the correlation of neighbouring pixels along x and y, from all of the power."""
    qy, qx = frequencies(shape)
    weight = off_axes(shape) * power
    total = float(weight.sum())
    return (
        float((weight * np.cos(2 * np.pi * qx)).sum() / total),
        float((weight * np.cos(2 * np.pi * qy)).sum() / total),
    )


def area(power: Array, shape: tuple[int, int]) -> float:
    """Return the power at low frequency by the mean power: pixels that share their noise."""
    low = np.hypot(*frequencies(shape)) < 0.08
    where = off_axes(shape)
    inner = power[where & low]
    mean = float(power[where].mean()) if inner.size else 0.0
    return float(np.median(inner)) / mean if mean else np.nan


def corner(power: Array, shape: tuple[int, int]) -> Array:
    """Return the power (n,) at frequencies far out where neither motion nor jitter reach."""
    qy, qx = frequencies(shape)
    far = (np.hypot(qy, qx) >= 0.4) & (qx >= INSIDE)
    return power[off_axes(shape) & far]


def white(power: Array, shape: tuple[int, int], rank: float) -> tuple[float, bool]:
    """Return the share of white noise in the power, and whether the rest is beyond chance."""
    far = corner(power, shape)
    level = float(np.median(far)) / (1 - 1 / (9 * rank)) ** 3
    whole = float(power[1:, 1:].mean())
    chance = 2 / np.sqrt(far.size * rank * MEDIAN)
    return level / whole if whole > 0 else 1.0, bool(whole > (1.03 + chance) * level)
