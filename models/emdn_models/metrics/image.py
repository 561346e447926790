"""Frames against the truth: PSNR, SSIM, and the gain over the noisy frame; means out and in."""

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage

from emdn_models.errors import EmdnError
from emdn_models.metrics import accept
from emdn_models.metrics.accept import Floats

SIGMA = 1.5
RADIUS = 5  # pixels at which the window of SSIM ends: 3.5 sigma


def psnr(frame: ArrayLike, truth: ArrayLike, data_range: ArrayLike) -> Floats:
    """Peak signal-to-noise ratio of each frame.

    Parameters
    ----------
    frame, truth
        (H, W) or (N, H, W).
    data_range
        Largest minus smallest possible value, (N,) or one number, in the frames' units.
        Of electron counts it is a choice: state it beside the result.

    Returns
    -------
    (N,) or (), dB; infinite for frames that are equal.

    Raises
    ------
    EmdnError
        If the frames differ in shape or the range is not positive.
    """
    found, clean = accept.frames(frame=frame, truth=truth)
    peak = accept.positive("data_range", data_range, found.shape[:-2])
    with np.errstate(divide="ignore"):
        return np.asarray(10 * np.log10(peak**2 / np.square(found - clean).mean(axis=(-2, -1))))


def ssim(frame: ArrayLike, truth: ArrayLike, data_range: ArrayLike) -> Floats:
    """Structural similarity of each frame.

    Wang, Bovik, Sheikh, Simoncelli, IEEE TIP 13(4), 2004, equation 13 with K1 = 0.01,
    K2 = 0.03 and an 11 x 11 Gaussian window of 1.5 pixels, averaged over the pixels
    whose window lies in the frame. The constants hang on the data range: values of
    different ranges cannot be compared.

    Returns
    -------
    (N,) or (), at most 1, of frames as for `psnr`, at least 11 x 11; else EmdnError.
    """
    found, clean = accept.frames(frame=frame, truth=truth)
    if min(found.shape[-2:]) < 2 * RADIUS + 1:
        raise EmdnError(
            f"frame: found {found.shape[-2]} x {found.shape[-1]} pixels, expected at least "
            f"{2 * RADIUS + 1} x {2 * RADIUS + 1} for SSIM"
        )
    count = found.shape[:-2]
    ranges = accept.positive("data_range", data_range, count)
    values = np.empty(count)
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
    smooth = ndimage.gaussian_filter(field, SIGMA, radius=RADIUS)
    return np.asarray(smooth[RADIUS:-RADIUS, RADIUS:-RADIUS])


def dose_gain(
    noisy: ArrayLike, denoised: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None
) -> Floats:
    """How many times the dose a raw frame would need to be as near to the truth.

    MSE(noisy) / MSE(denoised): the squared error of counts, relative to the dose, falls
    as 1 / dose. It is also the number of frames whose average is as good.

    Parameters
    ----------
    noisy, denoised, truth
        (H, W) or (N, H, W), in the same units; ``truth`` is the expected value of
        ``noisy``, and not a frame of higher dose scaled to it.
    valid
        (H, W) or (N, H, W), the pixels that count; None for all.

    Returns
    -------
    (N,) or (); infinite where ``denoised`` is exact.

    Raises
    ------
    EmdnError
        If the shapes differ, or a frame has no valid pixel.
    """
    before, after, clean = accept.frames(noisy=noisy, denoised=denoised, truth=truth)
    good = accept.mask(valid, clean.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(
            np.square(before - clean).mean(axis=(-2, -1), where=good)
            / np.square(after - clean).mean(axis=(-2, -1), where=good)
        )


def gain_db(
    noisy: ArrayLike, denoised: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None
) -> Floats:
    """10 log10 of `dose_gain`: the improvement in dB of the squared error, (N,) or ()."""
    with np.errstate(divide="ignore"):
        return np.asarray(10 * np.log10(dose_gain(noisy, denoised, truth, valid)))


def mean_ratio(denoised: ArrayLike, raw: ArrayLike, valid: ArrayLike | None = None) -> Floats:
    """Mean out over mean in, of each frame: (N,) or (), 1 where no intensity is made or lost.

    Raises
    ------
    EmdnError
        If the shapes differ, a frame has no valid pixel, or the mean of a raw frame is 0.
    """
    out, given = accept.frames(denoised=denoised, raw=raw)
    good = accept.mask(valid, given.shape)
    below = given.mean(axis=(-2, -1), where=good)
    if np.any(below == 0):
        raise EmdnError("raw: found a frame whose mean is 0, expected intensities to compare with")
    return np.asarray(out.mean(axis=(-2, -1), where=good) / below)
