"""What is measured on a sample of a stack: means and noise of small blocks of pixels.

At most `MAX_FRAMES` frames, spread over the stack in runs of neighbours, a few in memory
at a time, whatever the stack's length.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from emdn_deploy import spectrum
from emdn_models.errors import EmdnError

BLOCK = 16
MAX_FRAMES = 64
MAX_PIXELS = 8 * 2**20
MAX_SPECTRA = 8
_MANY = 2**19  # pixels, over all samples, that tell a quantile
RUN = 3  # neighbouring frames per sample: lags 1 and 2

Reader = Callable[[int, int], NDArray[np.float32]]
Watch = Callable[[NDArray[np.float64], NDArray[np.bool_]], None]
_PARTS = ("mean", "temporal", "lagged", "temporal_high", "spatial")


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
        (B,) half the mean square difference of neighbouring frames (see `difference`);
        empty for one frame.
    lagged
        (B',) the same for frames two apart.
    temporal_high
        (B,) noise variance from the high-passed differences; empty for frames too small.
    spatial
        (B'',) noise variance from single frames (see `emdn_deploy.spectrum`), or, for
        frames too small for that, from their high-passed blocks.
    low
        0.1 % quantile of the pixels.
    whole
        Whether every pixel is a whole number.
    """

    level: float
    mean: NDArray[np.float64]
    temporal: NDArray[np.float64]
    lagged: NDArray[np.float64]
    temporal_high: NDArray[np.float64]
    spatial: NDArray[np.float64]
    low: float
    whole: bool


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
) -> Blocks:
    """Measure the blocks of at most `MAX_FRAMES` frames, a few in memory at a time.

    ``watch`` is shown every run of neighbouring frames, (k, h, w), the middle of large
    ones, and which of their pixels are good, (h, w).
    """
    starts, run = sample_starts(count, size)
    parts: dict[str, list[NDArray[np.float64]]] = {name: [] for name in _PARTS}
    levels, quantiles, whole = [], [], True
    good = np.ones(size, bool) if bad is None else ~bad
    part = middle(size, MAX_PIXELS // run)
    core = good[part]
    thin = max(1, round((len(starts) * run * good.size / _MANY) ** 0.5))
    spectra = MAX_SPECTRA if run == 1 else MAX_SPECTRA // 3
    # A filter's output is good where its whole window is.
    inner = np.zeros_like(core)
    if min(size) > 2:
        windows = np.lib.stride_tricks.sliding_window_view(core, (3, 3))
        inner[1:-1, 1:-1] = windows.all(axis=(2, 3))
    kept = _share(inner) > 0.25 if inner.any() else _share(core) > 0.25
    for start in starts:
        frames = read(start, start + run)
        if not np.isfinite(frames).all():
            number = start + int(np.flatnonzero(~np.isfinite(frames).all(axis=(1, 2)))[0])
            raise EmdnError(
                f"frame {number} has pixels that are not finite (NaN or infinity); "
                "replace them before denoising"
            )
        levels.append(float(frames.sum(axis=0, dtype=np.float64).mean(where=good)) / len(frames))
        pixels = frames[:, ::thin, ::thin][:, good[::thin, ::thin]]
        whole = whole and bool(np.equal(pixels, np.rint(pixels)).all())
        quantiles.append(float(np.quantile(pixels, 0.001)))
        wide = frames[:, *part].astype(np.float64)
        if watch is not None:
            watch(wide, core)
        pairs = [difference(*two, core) for two in pairwise(wide)]
        centres = wide if run == 1 else (wide[:-1] + wide[1:]) / 2
        parts["mean"].append(_block_means(centres, core, kept))
        parts["temporal"] += [_block_means(pair[None] ** 2, core, kept) for pair in pairs]
        if run > 2:
            lagged = difference(wide[0], wide[2], core)[None]
            parts["lagged"].append(_block_means(lagged**2, core, kept))
        if inner.any():
            parts["temporal_high"] += [_high_blocks(pair[None], inner, kept) for pair in pairs]
        if min(size) < spectrum.SMALLEST:
            parts["spatial"].append(_high_blocks(wide, inner, kept))
        elif len(parts["spatial"]) < spectra:
            parts["spatial"].append(np.array([spectrum.noise_variance(wide[0])]))
    joined = {name: np.concatenate([np.zeros(0), *arrays]) for name, arrays in parts.items()}
    level, low = float(np.mean(levels)), float(np.median(quantiles))
    return Blocks(level, **joined, low=low, whole=whole)


def difference(
    before: NDArray[np.float64], after: NDArray[np.float64], good: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Subtract (H, W) frames so that white noise keeps its variance.

    A beam that has changed in between is taken out: the mean, and the contrast by
    regression on the sum of both, with which the difference of their noise is not
    correlated. So a camera's offset need not be known. Where a few pixels that flare up
    have decided on the contrast, most blocks differ more than before: it is left alone.
    """
    pair: NDArray[np.float64] = (after - before) / np.sqrt(2)
    both: NDArray[np.float64] = (before + after) / 2
    pair -= pair.mean(where=good)
    both -= both.mean(where=good)
    weight = float((both * both).sum(where=good))
    if not weight:
        return pair
    steady = pair - both * (float((pair * both).sum(where=good)) / weight)
    energies = [np.median(_blocks((image**2 * good)[None])) for image in (steady, pair)]
    return steady if energies[0] < energies[1] else pair


def high_pass(frames: NDArray[np.float64]) -> NDArray[np.float64]:
    """Filter (k, H, W) by [1, -2, 1] along both axes, with unit gain for white noise.

    After Immerkaer, Computer Vision and Image Understanding 64 (1996) 300. Lines
    along an axis and anything smooth are removed.
    """
    size = frames.shape[1:]
    if min(size) < 3:
        return np.zeros((len(frames), 0, 0))
    rows = frames[:, :-2] - 2 * frames[:, 1:-1] + frames[:, 2:]
    return (rows[:, :, :-2] - 2 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 6


def _high_blocks(
    stack: NDArray[np.float64], inner: NDArray[np.bool_], kept: NDArray[np.bool_]
) -> NDArray[np.float64]:
    if not inner.any():
        return np.zeros(0)
    squares = np.pad(high_pass(stack) ** 2, ((0, 0), (1, 1), (1, 1)))
    return _block_means(squares, inner, kept)


def _block_means(
    stack: NDArray[np.float64], good: NDArray[np.bool_], kept: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Average the good pixels of (k, H, W) over those blocks that are kept."""
    means: NDArray[np.float64] = _blocks(stack * good)[:, kept] / _share(good)[kept]
    return means.ravel()


def _share(good: NDArray[np.bool_]) -> NDArray[np.float64]:
    share: NDArray[np.float64] = _blocks(good[None].astype(np.float64))[0]
    return share


def _blocks(stack: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average (k, H, W) over blocks of about `BLOCK` pixels that cover all of it."""
    for axis in (1, 2):
        length = stack.shape[axis]
        edges = np.linspace(0, length, max(1, length // BLOCK) + 1).astype(int)
        widths = np.diff(edges).reshape((-1, 1) if axis == 1 else (-1,))
        stack = np.add.reduceat(stack, edges[:-1], axis=axis) / widths
    return stack


def trimmed_mean(values: NDArray[np.float64]) -> float:
    """Average all but the upper and lower 2 %: a few hot or dead pixels do no harm."""
    if not values.size:
        return 0.0
    cut = int(0.02 * values.size)
    return float(np.sort(values)[cut : values.size - cut].mean())
