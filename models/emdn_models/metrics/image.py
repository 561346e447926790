"""Metrics of denoised frames: PSNR, SSIM and gains by the truth; rings of spectra.

All take frames (H, W) or stacks (N, H, W) of finite pixels and give a number or (N,) numbers;
`EmdnError` names an argument that is of another shape, has a pixel that is not finite or, as a
range, is not positive. ``valid``, (H, W) or (N, H, W), are the pixels that count; all if not given.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from emdn_models.errors import EmdnError

Floats = NDArray[np.float64]

_SIGMA = 1.5
_RADIUS = 5  # pixels at which the window of SSIM ends: 3.5 sigma


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


def as_mask(valid: ArrayLike | None, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return which pixels count, of ``shape``; every frame must have one."""
    good = np.asarray(True if valid is None else valid, dtype=np.bool_)
    if valid is not None and good.shape not in (shape, shape[-2:]):
        raise EmdnError(f"valid: found shape {good.shape}, expected {shape[-2:]} or {shape}")
    good = np.broadcast_to(good, shape)
    if not good.any(axis=(-2, -1)).all():
        raise EmdnError("valid: found a frame without a good pixel, expected at least one")
    return good


def _ranges(data_range: ArrayLike, count: tuple[int, ...]) -> Floats:
    ranges = np.asarray(data_range, dtype=np.float64)
    if ranges.shape not in ((), count) or not ((ranges > 0) & np.isfinite(ranges)).all():
        raise EmdnError(
            f"data_range: found {data_range!r}, expected finite numbers above 0, one or one a frame"
        )
    return np.broadcast_to(ranges, count)


def psnr(frame: ArrayLike, truth: ArrayLike, data_range: ArrayLike) -> Floats:
    """Peak signal-to-noise ratio in dB; infinite for frames that are equal.

    ``data_range`` is the largest minus the smallest possible value, one number or (N,), in the
    frames' units. Of electron counts it is a choice: state it beside the result.
    """
    found, clean = as_frames(frame=frame, truth=truth)
    peak = _ranges(data_range, found.shape[:-2])
    with np.errstate(divide="ignore"):
        return np.asarray(10 * np.log10(peak**2 / np.square(found - clean).mean(axis=(-2, -1))))


def ssim(frame: ArrayLike, truth: ArrayLike, data_range: ArrayLike) -> Floats:
    """Structural similarity, at most 1, of frames of at least 11 x 11.

    Wang, Bovik, Sheikh, Simoncelli, IEEE TIP 13(4), 2004, equation 13 with K1 = 0.01, K2 = 0.03
    and an 11 x 11 Gaussian window of 1.5 pixels, averaged over the pixels whose window lies in the
    frame. The constants hang on the data range (see `psnr`): values of different ranges cannot be
    compared.
    """
    found, clean = as_frames(frame=frame, truth=truth)
    if min(found.shape[-2:]) < 2 * _RADIUS + 1:
        raise EmdnError(f"frame: found shape {found.shape}, expected at least 11 x 11 for SSIM")
    count = found.shape[:-2]
    ranges, values = _ranges(data_range, count), np.empty(count)
    for at in np.ndindex(count):
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


def dose_gain(
    noisy: ArrayLike, denoised: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None
) -> Floats:
    """How many times the dose a raw frame would need to be as near to the truth.

    MSE(noisy) / MSE(denoised): the squared error of counts, relative to the dose, falls as
    1 / dose. It is also the number of frames whose average is as good; infinite where ``denoised``
    is exact. ``truth`` is the expected value of ``noisy``, and not a frame of higher dose scaled
    to it.
    """
    before, after, clean = as_frames(noisy=noisy, denoised=denoised, truth=truth)
    good = as_mask(valid, clean.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(
            np.square(before - clean).mean(axis=(-2, -1), where=good)
            / np.square(after - clean).mean(axis=(-2, -1), where=good)
        )


def gain_db(
    noisy: ArrayLike, denoised: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None
) -> Floats:
    """10 log10 of `dose_gain`: the improvement in dB of the squared error."""
    with np.errstate(divide="ignore"):
        return np.asarray(10 * np.log10(dose_gain(noisy, denoised, truth, valid)))


def mean_ratio(denoised: ArrayLike, raw: ArrayLike, valid: ArrayLike | None = None) -> Floats:
    """Mean out over mean in: 1 where no intensity is made or lost."""
    out, given = as_frames(denoised=denoised, raw=raw)
    good = as_mask(valid, given.shape)
    below = given.mean(axis=(-2, -1), where=good)
    if np.any(below == 0):
        raise EmdnError("raw: found a frame whose mean is 0, expected intensities to compare with")
    return np.asarray(out.mean(axis=(-2, -1), where=good) / below)


class Rings(NamedTuple):
    """Which ring each Fourier pixel of ``numpy.fft.rfft2`` lies in.

    Rings are circles in cycles/pixel, as wide as the coarser of the two steps 1 / H and 1 / W, so
    that a rectangular frame, whose Fourier pixels are not square, is treated alike in all
    directions.
    """

    # (H * (W // 2 + 1),) ring of each pixel, from 1; 0 for the zero frequency and for those beyond
    # the last ring, which ends at 0.5.
    labels: NDArray[np.intp]
    weights: Floats  # (H, W // 2 + 1), 2 for pixels that stand for their Hermitian partner too
    frequency: Floats  # (R,) mean of each ring's spatial frequencies, cycles/pixel
    pixels: Floats  # (R,) Fourier pixels, both of each Hermitian pair

    def total(self, values: Floats) -> Floats:
        """Sum values (H, W // 2 + 1) over both halves of each ring: (R,)."""
        weighted = (values * self.weights).ravel()
        return np.asarray(np.bincount(self.labels, weighted, self.pixels.size + 1)[1:], np.float64)


@lru_cache(maxsize=16)
def rings(height: int, width: int) -> Rings:
    """Divide the transform of a frame (H, W) into rings; H and W at least 4."""
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    step = 1 / min(height, width)
    labels = np.rint(radius / step).astype(np.intp)
    labels[labels > int(0.5 / step - 0.5)] = 0
    weights = np.full(radius.shape, 2.0)
    weights[:, 0] = 1
    if width % 2 == 0:
        weights[:, -1] = 1
    pixels = np.bincount(labels.ravel(), weights.ravel())[1:].astype(np.float64)
    frequency = np.bincount(labels.ravel(), (weights * radius).ravel())[1:] / pixels
    found = Rings(labels.ravel(), weights, frequency, pixels)
    for array in found:
        array.flags.writeable = False
    return found
