"""What is measured on a sample of a stack: means and noise of small blocks of pixels.

At most `MAX_FRAMES` frames, spread over the stack in runs of neighbours, a few in memory
at a time, whatever the stack's length. Noise is measured on a band of each run, another
one every time, so that looking costs a few per cent of denoising at most.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from emdn_deploy import moments, spectrum, stacks
from emdn_deploy.lanes import ordered
from emdn_deploy.moments import BLOCK

MAX_FRAMES = 64
MAX_PIXELS = 8 * 2**20
MAX_SPECTRA = 8
_MANY = 2**17  # pixels, over all samples, that tell a quantile
# Pixels that tell the noise to 0.3 %, and the share of a stack that more of them may be.
_LEAST, _SHARE = 2**18, 16
RUN = 3  # neighbouring frames per sample: lags 1 and 2

Reader = Callable[[int, int], NDArray[np.float32]]
Watch = Callable[[NDArray[np.float64], NDArray[np.bool_]], None]
_PARTS = ("mean", "temporal", "lagged", "temporal_high", "high")
_GOLDEN = 0.5 * (5**0.5 - 1)


@dataclass(frozen=True)
class Blocks:
    """Statistics of blocks of about `BLOCK` x `BLOCK` pixels, over all samples.

    Attributes
    ----------
    level
        Mean intensity of all pixels.
    mean
        (B,) mean intensity.
    temporal
        (B,) half the mean square difference of neighbouring frames (see
        `emdn_deploy.moments.difference`); empty for one frame.
    lagged
        (B',) the same for frames two apart.
    temporal_high
        (B,) noise variance from the high-passed differences; empty for frames too small.
    high
        (B'',) noise variance from single frames that were high-passed.
    low
        0.1 % quantile of the pixels.
    whole
        Whether every pixel that was looked at is a whole number.
    step
        The largest number that all of them are multiples of; 0 where there is none.
    singles
        Some frames, or their middles, large enough for a spectrum; empty if none is.
    good
        (H, W), the pixels of these that count; None for all.
    """

    level: float
    mean: NDArray[np.float64]
    temporal: NDArray[np.float64]
    lagged: NDArray[np.float64]
    temporal_high: NDArray[np.float64]
    high: NDArray[np.float64]
    low: float
    whole: bool
    step: float
    singles: tuple[NDArray[np.float32], ...]
    good: NDArray[np.bool_] | None = None

    @cached_property
    def single(self) -> float:
        """Return the noise variance of single frames (see `emdn_deploy.spectrum`).

        For frames too small for that it is that of their high-passed blocks.
        """
        values = [variance for variance, _ in self._spectral] or self.high
        # The median: structure raises the variance of some blocks, noise that of all.
        return float(np.median(values)) if len(values) else 0.0

    @cached_property
    def spread(self) -> float:
        """Return the noise's power at low frequencies over its variance, of single frames."""
        return float(np.median([spread for _, spread in self._spectral] or [1.0]))

    @cached_property
    def _spectral(self) -> list[tuple[float, float]]:
        return [spectrum.noise(one.astype(np.float64), self.good) for one in self.singles]


def sample_starts(count: int, size: tuple[int, int]) -> tuple[list[int], int]:
    """Spread runs of neighbouring frames over a stack: their starts and their length."""
    run = min(RUN, count)
    frames = int(np.clip(MAX_PIXELS // max(1, size[0] * size[1]), run, MAX_FRAMES))
    runs = min(frames // run, max(1, count // run))
    return [int(start) for start in np.linspace(0, count - run, runs).round()], run


def middle(size: tuple[int, int], pixels: int) -> tuple[slice, slice]:
    """Return the middle of a frame (H, W), about ``pixels`` large, or all of it."""
    shrink = min(1.0, (pixels / (size[0] * size[1])) ** 0.5)
    kept = [max(min(length, 3), int(length * shrink)) for length in size]
    low = [(length - keep) // 2 for length, keep in zip(size, kept, strict=True)]
    return slice(low[0], low[0] + kept[0]), slice(low[1], low[1] + kept[1])


def collect(
    read: Reader,
    count: int,
    size: tuple[int, int],
    bad: NDArray[np.bool_] | None = None,
    watch: Watch | None = None,
    lanes: int = 1,
) -> Blocks:
    """Measure the blocks of at most `MAX_FRAMES` frames, a few in memory at a time.

    ``watch`` is shown every run of neighbouring frames, (k, h, w), the middle of large
    ones, and which of their pixels are good, (h, w); blocks are then all over these. Runs
    are read in the caller's thread, and measured in ``lanes`` (see `emdn_deploy.lanes`).

    Raises
    ------
    FormatError
        If a pixel is not finite.
    """
    starts, run = sample_starts(count, size)
    good = np.ones(size, bool) if bad is None else ~bad
    part = middle(size, MAX_PIXELS // run)
    height, width = (side.stop - side.start for side in part)
    rows, every = height, 1
    if watch is None:
        rows, every = _bands(height, width * run, len(starts), count * good.size)
    thin = max(1, round((len(starts) * run * good.size / _MANY) ** 0.5))
    lost = None if good.all() else ~good

    def measure(frames: NDArray[np.float32], number: int) -> _Sample:
        level, blocks = _level(frames, starts[number], lost), {}
        if number % every == 0:
            top = part[0].start + round((height - rows) * (number * _GOLDEN % 1))
            band = slice(top, top + rows), part[1]
            wide = frames[:, *band].astype(np.float64)
            if watch is not None:
                watch(wide, good[band])
            blocks = moments.measure(wide, good[band])
        pixels = frames[:, ::thin, ::thin]
        pixels = pixels.ravel() if lost is None else pixels[:, good[::thin, ::thin]].ravel()
        single = min(size) >= spectrum.SMALLEST and number < max(1, MAX_SPECTRA // run)
        return _Sample(
            level, _low(pixels),
            bool(np.equal(pixels, np.rint(pixels)).all()), np.unique(pixels), blocks,
            spectrum.middle(frames[0]).copy() if single else None,
        )  # fmt: skip

    runs = ((read(start, start + run), number) for number, start in enumerate(starts))
    samples = list(ordered(lambda one: measure(*one), runs, 1 if watch else lanes))
    joined = {
        name: np.concatenate([np.zeros(0), *(one.blocks[name] for one in samples if one.blocks)])
        for name in _PARTS
    }
    return Blocks(
        float(np.mean([one.level for one in samples])),
        **joined,
        low=float(np.median([one.low for one in samples])),
        whole=all(one.whole for one in samples),
        step=common_step(np.unique(np.concatenate([one.values for one in samples]))),
        singles=tuple(one.single for one in samples if one.single is not None),
        good=None if lost is None else spectrum.middle(good),
    )


@dataclass(frozen=True)
class _Sample:
    """What is measured on one run of frames."""

    level: float
    low: float
    whole: bool
    values: NDArray[np.float32]
    blocks: dict[str, NDArray[np.float64]]
    single: NDArray[np.float32] | None


def _bands(rows: int, width: int, runs: int, stack: int) -> tuple[int, int]:
    """Choose how many rows of how many runs to measure noise on: in all of n-th ones.

    Parameters
    ----------
    rows
        Of the frames' part that is looked at.
    width
        Pixels of a row, of all frames of a run.
    stack
        Pixels of the whole stack.
    """
    wanted = max(_LEAST, stack // _SHARE)
    # Few wide bands take less time than many narrow ones.
    every = max(1, runs * 4 * BLOCK * width // wanted)
    blocks = -(-wanted // (-(-runs // every) * BLOCK * width))
    return min(rows, max(2, blocks) * BLOCK), every


def _level(frames: NDArray[np.float32], start: int, lost: NDArray[np.bool_] | None) -> float:
    """Return the mean of the good pixels of frames (k, H, W).

    Raises
    ------
    FormatError
        If a pixel is not finite.
    """
    means = stacks.means(frames, start)
    if lost is None:
        return float(means.mean())
    kept = frames.size - len(frames) * int(np.count_nonzero(lost))
    whole = float(means.sum()) * frames[0].size
    return float(whole - frames[:, lost].sum(dtype=np.float64)) / kept


def _low(pixels: NDArray[np.float32]) -> float:
    """Return the 0.1 % quantile."""
    place = 0.001 * (pixels.size - 1)
    below = int(place)
    above = min(below + 1, pixels.size - 1)
    # By hand: numpy.quantile goes through all pixels several times more.
    ranked = np.partition(pixels, (below, above))
    low, high = float(ranked[below]), float(ranked[above])
    return low + (place - below) * (high - low)


def common_step(values: NDArray[np.float32]) -> float:
    """Return the largest number that all ``values``, sorted, are multiples of to rounding, or 0."""
    marks = np.union1d(values.astype(np.float64), 0.0)
    rounding = 2.0**-22 * float(np.abs(marks).max())
    marks = marks[np.append(True, np.diff(marks) > rounding)]
    gaps = np.diff(marks)
    if not gaps.size or float(gaps.min()) < 100 * rounding:
        return 0.0
    counts = np.append(0.0, np.cumsum(np.rint(gaps / gaps.min())))
    counts -= counts[np.argmin(np.abs(marks))]
    step = float(marks @ counts / (counts @ counts))
    return step if np.abs(marks - step * counts).max() <= rounding else 0.0


def trimmed_mean(values: NDArray[np.float64]) -> float:
    """Average all but the upper and lower 2 %: a few hot or dead pixels do no harm."""
    if not values.size:
        return 0.0
    cut = int(0.02 * values.size)
    return float(np.sort(values)[cut : values.size - cut].mean())
