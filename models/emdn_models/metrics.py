"""How good denoised frames are: against the truth (PSNR, SSIM, gain), and without it (uMSE).

Frames are (H, W) or stacks (N, H, W) of finite pixels, and each gives a number. ``valid``, (H, W),
are the pixels that count; all if not given. `EmdnError` names an argument of another shape, or
with a pixel that is not finite.

uMSE compares with frames held out. Neighbouring raw frames show the same scene with independent
noise, so the distance of a denoised frame from its raw neighbour is its error plus the noise, which
is known from the raw frames alone. Marcos-Morales et al., ICML 2023, arXiv:2210.05553. This holds
if a denoised frame was made without the frames that it is compared with: a denoiser that sees
several frames is compared with frames further ``apart``, and nets that were trained on these frames
cannot be judged. Motion of the scene counts as error; see `HeldOut.drift`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from emdn_models.errors import EmdnError

Floats = NDArray[np.float64]

_SIGMA = 1.5
_RADIUS = 5  # pixels at which the window of SSIM ends: 3.5 sigma
_BLOCK = 32  # pixels: errors further apart are independent


def as_frames(**named: ArrayLike) -> list[Floats]:
    """Return arrays (H, W) or (N, H, W), all of one shape and finite, as float64."""
    arrays = [np.asarray(given, dtype=np.float64) for given in named.values()]
    first = arrays[0].shape
    for name, array in zip(named, arrays, strict=True):
        wrong = np.count_nonzero(~np.isfinite(array))
        if array.ndim not in (2, 3) or array.size == 0 or array.shape != first or wrong:
            raise EmdnError(
                f"{name}: found shape {array.shape} with {wrong} pixels that are not finite, "
                f"expected (H, W) or (N, H, W) of finite pixels, as {next(iter(named))} {first}; "
                "fill bad pixels, or leave them out with valid after filling"
            )
    return arrays


def _mask(valid: ArrayLike | None, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return which pixels of frames of this shape count, (H, W)."""
    good = np.ones(shape[-2:], bool) if valid is None else np.asarray(valid, bool)
    if good.shape != shape[-2:] or not good.any():
        raise EmdnError(
            f"valid: found {good.sum()} good pixels in shape {good.shape}, expected some in "
            f"{shape[-2:]}"
        )
    return good


def psnr(frame: ArrayLike, truth: ArrayLike, data_range: ArrayLike) -> Floats:
    """Peak signal-to-noise ratio in dB; infinite for frames that are equal.

    ``data_range`` is the largest minus the smallest possible value, one number or (N,), in the
    frames' units. Of electron counts it is a choice: state it beside the result.
    """
    found, clean = as_frames(frame=frame, truth=truth)
    with np.errstate(divide="ignore"):
        square = np.square(found - clean).mean(axis=(-2, -1))
        return np.asarray(10 * np.log10(np.square(data_range) / square))


def ssim(frame: ArrayLike, truth: ArrayLike, data_range: ArrayLike) -> Floats:
    """Structural similarity, at most 1; NaN for frames smaller than 11 x 11.

    Wang, Bovik, Sheikh, Simoncelli, IEEE TIP 13(4), 2004, equation 13 with K1 = 0.01, K2 = 0.03
    and an 11 x 11 Gaussian window of 1.5 pixels, averaged over the pixels whose window lies in the
    frame. The constants hang on the data range (see `psnr`): values of different ranges cannot be
    compared.
    """
    found, clean = as_frames(frame=frame, truth=truth)
    values = np.full(found.shape[:-2], np.nan)
    ranges = np.broadcast_to(data_range, values.shape)
    for at in np.ndindex(values.shape) if min(found.shape[-2:]) > 2 * _RADIUS else ():
        values[at] = _similarity(found[at], clean[at], float(ranges[at]))
    return values


def _similarity(x: Floats, y: Floats, data_range: float) -> float:
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    mean_x, mean_y, mean_xy = _window(x), _window(y), _window(x * y)
    product, squares = mean_x * mean_y, mean_x**2 + mean_y**2
    variances = _window(x * x + y * y) - squares
    above = (2 * product + c1) * (2 * (mean_xy - product) + c2)
    return float((above / ((squares + c1) * (variances + c2))).mean())


def _window(field: Floats) -> Floats:
    """Gaussian mean of a field (H, W) where the window fits: (H - 10, W - 10)."""
    smooth = ndimage.gaussian_filter(field, _SIGMA, radius=_RADIUS)
    return np.asarray(smooth[_RADIUS:-_RADIUS, _RADIUS:-_RADIUS])


def gain_db(
    noisy: ArrayLike, denoised: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None
) -> Floats:
    """Improvement in dB of the squared error: 10 log10(MSE noisy / MSE denoised).

    The squared error of counts, relative to the dose, falls as 1 / dose: 10 dB are ten times the
    dose, or the average of ten frames. ``truth`` is the expected value of ``noisy``, and not a
    frame of higher dose scaled to it. Infinite where ``denoised`` is exact.
    """
    before, after, clean = as_frames(noisy=noisy, denoised=denoised, truth=truth)
    good = _mask(valid, clean.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        first, second = (
            np.square(one - clean).mean(axis=(-2, -1), where=good) for one in (before, after)
        )
        return np.asarray(10 * np.log10(first / second))


def mean_ratio(denoised: ArrayLike, raw: ArrayLike, valid: ArrayLike | None = None) -> Floats:
    """Mean out over mean in: 1 where no intensity is made or lost."""
    frames = as_frames(denoised=denoised, raw=raw)
    good = _mask(valid, frames[0].shape)
    out, given = (one.mean(axis=(-2, -1), where=good) for one in frames)
    if np.any(given == 0):
        raise EmdnError("raw: found a frame whose mean is 0, expected intensities to compare with")
    return np.asarray(out / given)


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error, in the same units."""

    value: float
    se: float


@dataclass(frozen=True)
class HeldOut:
    """What frames held out say of a denoised stack, in intensity units squared."""

    # uMSE, which can fall below 0 by chance. Its standard error is that of an estimate of the
    # expected squared error: of this denoiser, on this scene, over all draws of the noise.
    error: Estimate
    noise: float  # half the mean square difference of neighbouring frames: with what motion adds
    # Half the mean square difference of frames two apart, less that of neighbours: 0 where the
    # scene stands still, whatever the noise. None for fewer than 3 frames.
    drift: Estimate | None
    comparisons: int  # pairs of frames that were averaged

    @property
    def gain_db(self) -> Estimate:
        """Improvement over the raw frames in dB; NaN where the error is not above 0."""
        if not (self.error.value > 0 and self.noise > 0):
            return Estimate(float("nan"), float("nan"))
        scale = 10 / np.log(10)
        gain = float(scale * np.log(self.noise / self.error.value))
        return Estimate(gain, scale * self.error.se / self.error.value)

    @property
    def moves(self) -> bool:
        """Whether motion is beyond chance (3 standard errors): ``error`` then holds it too."""
        return self.drift is not None and self.drift.value > 3 * self.drift.se


def umse(
    raw: ArrayLike, denoised: ArrayLike, valid: ArrayLike | None = None, apart: int = 1
) -> HeldOut:
    """Estimate the mean squared error of a denoised stack whose noise is equal in all frames.

    Each pair of frames A, B, neighbours or further ``apart`` (by more than the denoiser sees to
    either side), gives mean((f(A) - B)**2) - mean((A - B)**2) / 2 and the same with A and B
    exchanged; their mean has half the variance of either. Brightness that changes from frame to
    frame adds half the square of its change. Motion adds ``drift`` / 3 if the scene moves steadily
    by steps that are small against its details (``apart`` squared times as much between frames
    further apart), ``drift`` if it jumps about at random.

    Both stacks are (N, H, W) of at least 1 + ``apart`` frames in time order, else EmdnError. Leave
    pixels out of ``valid`` that were filled from others.
    """
    noisy, clean = _stacks(apart, raw=raw, denoised=denoised)
    blocks = _Blocks(_mask(valid, noisy.shape))
    noise = (np.square(b - a) / 2 for a, b in zip(noisy, noisy[apart:], strict=False))
    pairs = zip(_distances(noisy, clean, apart), noise, strict=True)
    error = blocks.mean(blocks.sums(away - own for away, own in pairs), 2 * apart - 1)
    near = blocks.sums(0.5 * np.square(b - a) for a, b in pairwise(noisy))
    drift = None
    if len(noisy) > 2:
        far = blocks.sums(0.5 * np.square(b - a) for a, b in zip(noisy, noisy[2:], strict=False))
        drift = blocks.mean(far - (near[1:] + near[:-1]) / 2, 2)
    return HeldOut(error, blocks.mean(near, 1).value, drift, len(noisy) - apart)


def umse_difference(
    raw: ArrayLike,
    denoised: ArrayLike,
    other: ArrayLike,
    valid: ArrayLike | None = None,
    apart: int = 1,
) -> Estimate:
    """Estimate by how much the squared error of one denoised stack exceeds that of another.

    Each pair of frames gives the difference of what it gives for `umse`, in which most of the noise
    cancels, and so does steady motion; where the scene jumps about at random, the smoother of the
    two comes out too well. Parameters and errors as of `umse`.
    """
    noisy, clean, second = _stacks(apart, raw=raw, denoised=denoised, other=other)
    blocks = _Blocks(_mask(valid, noisy.shape))
    pairs = zip(_distances(noisy, clean, apart), _distances(noisy, second, apart), strict=True)
    return blocks.mean(blocks.sums(one - two for one, two in pairs), 2 * apart - 1)


def _stacks(apart: int, **named: ArrayLike) -> list[Floats]:
    stacks = as_frames(**named)
    if stacks[0].ndim != 3 or len(stacks[0]) <= apart:
        raise EmdnError(
            f"raw: found shape {stacks[0].shape}, expected a stack (N, H, W) of {1 + apart} frames "
            "or more"
        )
    return stacks


def _distances(noisy: Floats, clean: Floats, apart: int) -> Iterator[Floats]:
    """Compare each denoised frame (H, W) of a pair with the other's raw frame."""
    for a, b, clean_a, clean_b in zip(noisy, noisy[apart:], clean, clean[apart:], strict=False):
        yield (np.square(clean_a - b) + np.square(clean_b - a)) / 2


class _Blocks:
    """Frames cut into blocks, four or more along each axis if they fit, by their good pixels."""

    def __init__(self, good: NDArray[np.bool_]) -> None:
        self._good = good
        self._first = [
            np.linspace(0, n, min(n, max(4, round(n / _BLOCK))), endpoint=False).astype(np.intp)
            for n in good.shape
        ]
        self._pixels = self.sums([np.ones(good.shape)])[0]

    def sums(self, frames: Iterable[Floats]) -> Floats:
        """Sum each of P frames (H, W) over each of B blocks: (P, B)."""
        rows = [np.add.reduceat(one * self._good, self._first[0], axis=0) for one in frames]
        return np.stack([np.add.reduceat(one, self._first[1], axis=1).ravel() for one in rows])

    def mean(self, sums: Floats, reach: int) -> Estimate:
        """Average sums (P, B) of P comparisons in time order, over all pixels.

        Comparisons share frames with the next ``reach``. The standard error is from the scatter of
        each block in time, so that harder parts of the scene do not count as chance; of few
        comparisons from the scatter between blocks, and too large where the scene is uneven.
        """
        count, used = len(sums), self._pixels > 0
        pixels = self._pixels[used] / self._pixels.sum()
        series = sums[:, used] / self._pixels.sum()
        value = float(series.sum() / count)
        lags = 2 * reach + 1
        if count >= lags + 2:
            centred = series - series.mean(axis=0)
            parts = [np.sum(centred[lag:] * centred[: count - lag]) for lag in range(reach + 1)]
            # The mean of a short series hides the share lags / count of its correlation. Shared
            # frames add to the variance of an error and take a tenth from that of a drift.
            variance = max(
                (2 * sum(parts) - parts[0]) / (count - lags), 0.75 * parts[0] / (count - 1)
            )
            return Estimate(value, float(np.sqrt(variance / count)))
        if used.sum() < 2:
            return Estimate(value, float("nan"))
        over = series.mean(axis=0) - value * pixels
        return Estimate(value, float(np.sqrt(np.square(over).sum() * over.size / (over.size - 1))))
