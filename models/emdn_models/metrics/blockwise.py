"""Means over stacks with standard errors that hold for correlated pixels and shared frames."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emdn_models.metrics.accept import Floats


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error, in the same units."""

    value: float
    se: float


@dataclass(frozen=True)
class Blocks:
    """Frames cut into rectangles of nearly equal size.

    Attributes
    ----------
    good
        (H, W), 1 for pixels that count and 0 for others.
    pixels
        (B,) pixels that count, in each block.
    down, right
        First row and first column of the blocks.
    """

    good: Floats
    pixels: Floats
    down: NDArray[np.intp]
    right: NDArray[np.intp]

    def sums(self, values: Floats) -> Floats:
        """Sum the pixels that count of a frame (H, W) over each block: (B,)."""
        return _sums(values * self.good, self.down, self.right)


def partition(good: Floats, side: int) -> Blocks:
    """Cut frames into blocks of about ``side``, four or more along each axis if they fit."""
    down, right = (
        np.linspace(0, length, min(length, max(4, round(length / side))), endpoint=False)
        .astype(np.intp) for length in good.shape
    )  # fmt: skip
    return Blocks(good, _sums(good, down, right), down, right)


def _sums(values: Floats, down: NDArray[np.intp], right: NDArray[np.intp]) -> Floats:
    rows = np.add.reduceat(values, down, axis=0)
    return np.asarray(np.add.reduceat(rows, right, axis=1).ravel())


def estimate(sums: Floats, blocks: Blocks, reach: int) -> Estimate:
    """Average sums over blocks (P, B) of P comparisons in time order.

    The standard error is that of the mean over all noise with the scene as it is: from the
    scatter of each block in time, so that parts of the scene that are harder than others do
    not count as chance. Comparisons share frames with the next ``reach`` ones, and are
    correlated with those only. With fewer than ``reach`` + 4 comparisons the scatter between
    blocks is taken instead, which is too large where the scene is uneven.
    """
    weight = blocks.pixels / blocks.pixels.sum()
    used = blocks.pixels > 0
    value = float(sums.sum() / len(sums) / blocks.pixels.sum())
    if len(sums) < reach + 4:
        if used.sum() < 2:
            return Estimate(value, float("nan"))
        over = (sums.mean(axis=0) / blocks.pixels.sum() - value * weight)[used]
        return Estimate(value, float(np.sqrt(np.square(over).sum() * over.size / (over.size - 1))))
    series = (sums / blocks.pixels.sum())[:, used]
    return Estimate(value, float(np.sqrt(_variance_of_mean(series, reach))))


def _variance_of_mean(series: Floats, reach: int) -> float:
    """Variance of the sum over B of means over P of series (P, B), correlated up to a lag.

    Subtracting the mean of a short series hides part of its correlation. What is left of
    each autocovariance c_k is linear in all of them, E[x' M T_j M x] = sum over k of
    c_k tr(M T_j M T_k), with T_k the ones at lag k and M = 1 - 11'/P; solved for c.
    """
    count = len(series)
    centred = series - series.mean(axis=0)
    lags = range(reach + 1)
    ends = np.arange(count)
    # Row k: how many partners at lag k each member of the series has.
    degree = np.array([(ends >= lag) * 1.0 + (ends < count - lag) for lag in lags])
    degree[0] = 1
    total = degree.sum(axis=1)
    traces = np.diag(total) - 2 * degree @ degree.T / count + np.outer(total, total) / count**2
    seen = np.array(
        [np.sum(centred[lag:] * centred[: count - lag]) * (2 if lag else 1) for lag in lags]
    )
    covariance = np.linalg.solve(traces, seen)
    # Shared frames add to the variance of an error and take a tenth from that of a drift;
    # anything far below is the chance of a short series.
    return float(max(covariance @ total, 0.75 * covariance[0] * count) / count**2)
