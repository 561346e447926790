"""The squared error of denoised frames without the truth: against frames held out (uMSE).

Neighbouring raw frames of a stack show the same scene with independent noise, so the distance of a
denoised frame from its raw neighbour is its error plus the noise, and the noise is known from the
raw frames alone. Marcos-Morales et al., ICML 2023, arXiv:2210.05553.

The estimate holds if a denoised frame was made without the frames that it is compared with: a
denoiser that sees several frames of the stack is compared with frames further ``apart``, and nets
that were trained on these frames cannot be judged by it. Motion of the scene is counted as error;
see `HeldOut.drift`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from emdn_models.errors import EmdnError
from emdn_models.metrics.image import Floats, as_frames, as_mask


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error, in the same units."""

    value: float
    se: float

    def below(self, noise: float) -> "Estimate":
        """Return by how many dB an error is below the noise; NaN if either is not above 0.

        The standard error is to first order, the noise taken as known.
        """
        if not (self.value > 0 and noise > 0):
            return Estimate(float("nan"), float("nan"))
        scale = 10 / np.log(10)
        return Estimate(float(scale * np.log(noise / self.value)), scale * self.se / self.value)


@dataclass(frozen=True)
class HeldOut:
    """What frames held out say of a denoised stack; intensity units squared, but for the gain."""

    # uMSE, which can fall below 0 by chance. Its standard error is that of an estimate of the
    # expected squared error: of this denoiser, on this scene, over all draws of the noise.
    error: Estimate
    gain_db: Estimate  # improvement over the raw frames, see `Estimate.below`
    noise: float  # half the mean square difference of neighbouring frames: with what motion adds
    # Half the mean square difference of frames two apart, less that of neighbours: 0 where the
    # scene stands still, whatever the noise. None for fewer than 3 frames.
    drift: Estimate | None
    comparisons: int  # pairs of frames that were averaged


def umse(
    raw: ArrayLike,
    denoised: ArrayLike,
    block: int = 32,
    valid: ArrayLike | None = None,
    apart: int = 1,
) -> HeldOut:
    """Estimate the mean squared error of a denoised stack whose noise is equal in all frames.

    Each pair of frames A, B, neighbours or further ``apart`` (by more than the denoiser sees to
    either side), gives mean((f(A) - B)**2) - mean((A - B)**2) / 2 and the same with A and B
    exchanged; their mean has half the variance of either. Brightness that changes from frame to
    frame adds half the square of its change. Motion adds ``drift`` / 3 if the scene moves steadily
    by steps that are small against its details (``apart`` squared times as much between frames
    further apart), ``drift`` if it jumps about at random.

    Both stacks are (N, H, W), at least 1 + ``apart`` frames in time order, else EmdnError. The
    standard error takes blocks of about ``block`` pixels a side, larger than the denoiser blurs, as
    independent. ``valid``, (H, W) or (N, H, W), are the pixels that count; one that is bad in one
    frame is left out of all. Leave out pixels that were filled from others.
    """
    noisy, clean, blocks = _stacks(raw, denoised, valid, 1 + apart, block)

    def compare(at: int) -> Floats:
        a, b = noisy[at], noisy[at + apart]
        across: Floats = np.square(clean[at] - b)
        across += np.square(clean[at + apart] - a)
        across -= np.square(a - b)
        across *= 0.5
        return across

    return _summary(compare, len(noisy) - apart, 2 * apart - 1, noisy, blocks)


def umse_difference(
    raw: ArrayLike,
    denoised: ArrayLike,
    other: ArrayLike,
    block: int = 32,
    valid: ArrayLike | None = None,
    apart: int = 1,
) -> Estimate:
    """Estimate by how much the squared error of one denoised stack exceeds that of another.

    Each frame but the first and last gives mean((f(A) - B) * (f(A) - C)), B and C being the frames
    ``apart`` before and after, whose noise is independent and may differ from frame to frame. Of
    the difference, most of the noise of B and C cancels, and so does steady motion; where the scene
    jumps about at random, the smoother of the two comes out too well. Parameters and errors as of
    `umse`, for 1 + 2 ``apart`` frames or more.
    """
    noisy, clean, blocks = _stacks(raw, denoised, valid, 1 + 2 * apart, block)
    second = as_frames(raw=raw, other=other)[1]

    def compare(at: int) -> Floats:
        one, two = clean[at + apart], second[at + apart]
        return np.asarray((one - two) * (one + two - noisy[at] - noisy[at + 2 * apart]))

    return _summary(compare, len(noisy) - 2 * apart, 4 * apart - 2, noisy, blocks).error


class Blocks:
    """Frames cut into blocks of about ``side`` pixels, four or more along each axis if they fit.

    ``good``, (H, W), are the pixels that count, and ``pixels``, (B,), their number in each block.
    """

    def __init__(self, good: ArrayLike, side: int) -> None:
        self.good = np.asarray(good, np.float64)
        self._first = [
            np.linspace(0, n, min(n, max(4, round(n / side))), endpoint=False).astype(np.intp)
            for n in self.good.shape
        ]
        self.pixels = self.sums(np.ones_like(self.good))

    def sums(self, values: Floats) -> Floats:
        """Sum the pixels that count of a frame (H, W) over each block: (B,)."""
        rows = np.add.reduceat(values * self.good, self._first[0], axis=0)
        return np.asarray(np.add.reduceat(rows, self._first[1], axis=1).ravel())


def _stacks(
    raw: ArrayLike, denoised: ArrayLike, valid: ArrayLike | None, least: int, block: int
) -> tuple[Floats, Floats, Blocks]:
    noisy, clean = as_frames(raw=raw, denoised=denoised)
    if noisy.ndim != 3 or len(noisy) < least:
        raise EmdnError(
            f"raw: found shape {noisy.shape}, expected a stack (N, H, W) of {least} frames or more"
        )
    good = as_mask(valid, noisy.shape).all(axis=0)
    if not good.any():
        raise EmdnError("valid: found no pixel that is good in every frame, expected some")
    return noisy, clean, Blocks(good, block)


def _summary(
    compare: Callable[[int], Floats], count: int, reach: int, noisy: Floats, blocks: Blocks
) -> HeldOut:
    """Average comparisons; those more than ``reach`` apart share no frame."""
    error = estimate(np.stack([blocks.sums(compare(at)) for at in range(count)]), blocks, reach)
    near = np.stack([blocks.sums(np.square(b - a)) for a, b in pairwise(noisy)])
    drift = None
    if len(noisy) > 2:
        pairs = zip(noisy, noisy[2:], strict=False)
        far = np.stack([blocks.sums(np.square(b - a)) for a, b in pairs])
        drift = estimate(far / 2 - (near[1:] + near[:-1]) / 4, blocks, 2)
    noise = float(near.sum() / len(near) / 2 / blocks.pixels.sum())
    return HeldOut(error, error.below(noise), noise, drift, count)


def estimate(sums: Floats, blocks: Blocks, reach: int) -> Estimate:
    """Average sums over blocks (P, B) of P comparisons in time order.

    The standard error is from the scatter of each block in time, so that harder parts of the scene
    do not count as chance; comparisons are correlated with the next ``reach`` ones, with which they
    share frames. With fewer than ``reach`` + 4 of them it is from the scatter
    between blocks, and too large where the scene is uneven.
    """
    pixels, used = blocks.pixels.sum(), blocks.pixels > 0
    value = float(sums.sum() / len(sums) / pixels)
    if len(sums) >= reach + 4:
        return Estimate(value, float(np.sqrt(_variance_of_mean((sums / pixels)[:, used], reach))))
    if used.sum() < 2:
        return Estimate(value, float("nan"))
    over = (sums.mean(axis=0) / pixels - value * (blocks.pixels / pixels))[used]
    return Estimate(value, float(np.sqrt(np.square(over).sum() * over.size / (over.size - 1))))


def _variance_of_mean(series: Floats, reach: int) -> float:
    """Variance of the sum over B of means over P of series (P, B), correlated up to a lag.

    Subtracting the mean of a short series hides part of its correlation. What is left of each
    autocovariance c_k is linear in all, E[x' M T_j M x] = sum over k of c_k tr(M T_j M T_k),
    with T_k the ones at lag k and M = 1 - 11'/P; solved for c.
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
