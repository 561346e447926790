"""The spectra of a residual and of what was kept: peaks that were taken away or added."""

import numpy as np
from numpy.typing import NDArray

from emdn_deploy.checking.panel import MATCHES, Panel
from emdn_models.metrics.accept import Floats

_PEAKS = 16  # sharp peaks of a denoised frame that are compared one by one
_SHARP = 12.0  # how far above the median power of its ring a sharp peak is

_SHARE = 0.15  # of a peak's amplitude that a denoiser may take

Frame = NDArray[np.float32]


def compare(scaled: Frame, detail: Frame, shape: Panel) -> tuple[Floats, Floats, dict[str, float]]:
    """Compare the spectra of the residual and of the denoised frame, through a window.

    Parameters
    ----------
    scaled
        (H, W) the residual in units of its expected noise.
    detail
        (H, W) the denoised frame about its mean, in the same units.

    Returns
    -------
    ndarray, ndarray
        ``match`` and ``strength`` of `statistics.Measured`.
    dict
        ``peak``, the largest power of the residual, of white noise 1 on average, at
        (``peak_y``, ``peak_x``) cycles/pixel; ``lattice_removed`` and ``lattice_added``, the
        largest projections of the residual on a sharp peak of the denoised frame.
    """
    left, kept = (np.fft.rfft2(one * shape.window) for one in (scaled, detail))
    across = (left * kept.conj()).real
    power, held = (one.real**2 + one.imag**2 for one in (left, kept))
    ends = len(MATCHES) + 1
    labels = shape.match.ravel()
    sums = np.bincount(labels, (shape.weight * across).ravel(), ends)[1:]
    norms = np.bincount(labels, (shape.weight * held).ravel(), ends)[1:]
    strength = np.sqrt(np.maximum(norms, 1e-12))
    # Of a strong peak a denoiser may take a little: that is judged as a share of it, below.
    before = np.square(np.abs(left + kept))
    alone = power * (shape.far & (power > _SHARE**2 * before))
    at = np.unravel_index(alone.argmax(), power.shape)
    signs, allowed = _sharp(across, held, before, shape)
    return (
        sums / strength,
        strength,
        {
            "peak": float(alone[at]),
            "peak_added": float(abs(kept[at]) > abs(kept[at] + left[at])),
            "peak_y": float(np.fft.fftfreq(scaled.shape[0])[at[0]]),
            "peak_x": float(at[1] / scaled.shape[1]),
            "lattice_removed": float((signs - allowed).max(initial=0.0)),
            "lattice_added": float((-signs).max(initial=0.0)),
        },
    )


def _sharp(across: Floats, held: Floats, before: Floats, shape: Panel) -> tuple[Floats, Floats]:
    """Project the residual on each sharp peak of the denoised frame.

    Returns
    -------
    ndarray, ndarray
        (K,) each: the projection, for white noise of unit variance, and how much of it a
        denoiser may take.
    """
    around = held
    for axis in (0, 1):
        beside = np.maximum(np.roll(around, 1, axis), np.roll(around, -1, axis))
        around = np.maximum(around, beside)
    candidates = np.flatnonzero((held == around) & shape.far)
    best = candidates[np.argsort(held.ravel()[candidates])[::-1][: 4 * _PEAKS]]
    sharp: list[int] = []
    usual: dict[int, float] = {}
    for one in best:
        ring = int(shape.ring.ravel()[one])
        if ring and ring not in usual:
            usual[ring] = float(np.median(held.ravel()[shape.members[ring - 1]]))
        if ring and held.ravel()[one] > _SHARP * usual[ring]:
            sharp.append(int(one))
        if len(sharp) == _PEAKS:
            break
    amplitude = np.sqrt(held.ravel()[sharp])
    allowed = _SHARE * np.sqrt(2 * before.ravel()[sharp])
    return np.asarray(np.sqrt(2) * across.ravel()[sharp] / amplitude), np.asarray(allowed)
