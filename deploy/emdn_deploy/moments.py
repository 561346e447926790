"""Noise of small blocks of neighbouring frames, from their products.

Of k frames, a block of pixels is k vectors. The k x k matrix of their products holds the
mean square of every linear combination of the frames in that block, so that each frame is
gone through once, whatever differences are asked for, and whatever part of the frames'
sum is taken out of these.
"""

from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

BLOCK = 16
# Products of equal frames cancel to this, not to zero.
_ROUNDING = 1e-13

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


def measure(frames: Array, good: Mask) -> dict[str, Array]:
    """Measure a run of neighbouring frames in blocks of about `BLOCK` x `BLOCK` pixels.

    Parameters
    ----------
    frames
        (k, h, w), k at most 3.
    good
        (h, w), the pixels that count.

    Returns
    -------
    dict
        As the fields of `emdn_deploy.sampling.Blocks`, each (B,) or empty: one value a
        block and pair of neighbours, or a block and frame.
    """
    count, whole = len(frames), bool(good.all())
    means = frames.mean(axis=(1, 2)) if whole else frames.mean(axis=(1, 2), where=good)
    frames = frames - means[:, None, None]
    inner, shares, inside = _all_good(good.shape) if whole else _shares(good)
    if not whole:
        frames *= good
    passed = np.zeros_like(frames)
    passed[:, 1:-1, 1:-1] = high_pass(frames)
    if not whole:
        passed *= inner
    # A filter's output is good where its whole window is.
    filtered = bool(inside.any())
    cells, edges = _cut(frames), _cut(passed)
    kept = 4 * (inside if filtered else shares) > cells.shape[2]
    cells, shares, products = _products(cells, shares, kept)
    _, inside, high = _products(edges, inside, kept if filtered else np.zeros_like(kept))
    each = cells.sum(axis=2).T / shares + means[:, None]
    pairs = [_difference(products, *pair) for pair in pairwise(range(count))]
    lag = [_difference(products, 0, 2)] if count > 2 else []
    singles = np.eye(count)
    return {
        "mean": (each if count == 1 else (each[:-1] + each[1:]) / 2).ravel(),
        "temporal": _joined([_squares(products, pair) / shares for pair in pairs]),
        "lagged": _joined([_squares(products, pair) / shares for pair in lag]),
        "temporal_high": _joined([_squares(high, pair) / inside for pair in pairs]),
        "high": _joined([_squares(high, one) / inside for one in singles]),
    }


def difference(before: Array, after: Array, good: Mask) -> Array:
    """Subtract (H, W) frames so that white noise keeps its variance.

    A beam that has changed in between is taken out: the mean, and the contrast by
    regression on the sum of both, with which the difference of their noise is not
    correlated. So a camera's offset need not be known. Where a few pixels that flare up
    have decided on the contrast, most blocks differ more than before: it is left alone.
    """
    frames = np.stack([before, after])
    frames -= frames.mean(axis=(1, 2), where=good)[:, None, None]
    cells = _cut(frames * good)
    weights = _difference(cells @ cells.swapaxes(1, 2), 0, 1)
    mixed: Array = np.tensordot(weights, frames, 1)
    return mixed


def high_pass(frames: Array) -> Array:
    """Filter (k, H, W) by [1, -2, 1] along both axes, with unit gain for white noise.

    After Immerkaer, Computer Vision and Image Understanding 64 (1996) 300. Lines
    along an axis and anything smooth are removed.
    """
    size = frames.shape[1:]
    if min(size) < 3:
        return np.zeros((len(frames), max(0, size[0] - 2), max(0, size[1] - 2)))
    passed: Array = np.diff(np.diff(frames, 2, axis=1), 2, axis=2)
    passed /= 6
    return passed


def _difference(products: Array, first: int, second: int) -> Array:
    """Weigh k frames so that their sum is the difference of two (see `difference`).

    Parameters
    ----------
    products
        (B, k, k) of frames whose mean is zero.

    Returns
    -------
    ndarray
        (k,)
    """
    plain, both = np.zeros((2, products.shape[1]))
    plain[[first, second]] = -(0.5**0.5), 0.5**0.5
    both[[first, second]] = 0.5
    total = products.sum(axis=0)
    weight = both @ total @ both
    if not weight > 0:
        return plain
    steady = plain - both * (plain @ total @ both / weight)
    energies = [_median(_squares(products, weights)) for weights in (steady, plain)]
    return steady if energies[0] < energies[1] else plain


def _products(cells: Array, pixels: Array, kept: Mask) -> tuple[Array, Array, Array]:
    """Keep some blocks (B, k, pixels), and multiply their frames with each other, (B, k, k)."""
    if not kept.all():
        cells, pixels = cells[kept], pixels[kept]
    return cells, pixels, cells @ cells.swapaxes(1, 2)


def _squares(products: Array, weights: Array) -> Array:
    """Return the sum of squares of the weighted sum of frames, block by block, (B,)."""
    squares: Array = products @ weights @ weights
    least = _ROUNDING * (products.diagonal(axis1=1, axis2=2) @ (weights * weights))
    return np.where(squares > least, squares, 0.0)


def _median(values: Array) -> float:
    half = values.size // 2
    return float(np.partition(values, half)[half])


def _cut(images: Array) -> Array:
    """Cut (k, h, w) into blocks (B, k, pixels); the odd pixels at the end are left out."""
    count, height, width = images.shape
    down, across = (max(1, length // BLOCK) for length in (height, width))
    sides = height // down, width // across
    cut = images[:, : down * sides[0], : across * sides[1]]
    cells = cut.reshape(count, down, sides[0], across, sides[1]).transpose(1, 3, 0, 2, 4)
    return cells.reshape(down * across, count, sides[0] * sides[1])


@lru_cache(maxsize=8)
def _all_good(shape: tuple[int, int]) -> tuple[Mask, Array, Array]:
    return _shares(np.ones(shape, bool))


def _shares(good: Mask) -> tuple[Mask, Array, Array]:
    """Return where a filter's whole window is good, and the pixels of blocks (B,) that are so.

    The blocks' good pixels come first, then those with good windows.
    """
    inner = np.zeros_like(good)
    if min(good.shape) > 2:
        inner[1:-1, 1:-1] = _windows(good)
    counts = [_cut(mask[None].astype(np.float64)).sum(axis=(1, 2)) for mask in (good, inner)]
    return inner, *counts


def _windows(good: Mask) -> Mask:
    """Say where all of 3 x 3 pixels are good, (h - 2, w - 2)."""
    rows = good[:-2] & good[1:-1] & good[2:]
    windows: Mask = rows[:, :-2] & rows[:, 1:-1] & rows[:, 2:]
    return windows


def _joined(parts: list[Array]) -> Array:
    return np.concatenate([np.zeros(0), *parts])
