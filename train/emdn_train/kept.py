"""Whether a model keeps a specimen's reflections, by the truth: not every result is honest."""

import numpy as np
from numpy.typing import NDArray

CLEAR = 5.0  # amplitude of a true reflection, in standard deviations of the noise there
LEAST = 0.85  # of it that is kept; ``check`` lets as much be lost
_NEAR = 3  # pixels of the spectrum that belong to one reflection
_LARGE = 0.03  # cycles/pixel, below which there is structure and no lattice

Stack = NDArray[np.float32]


def kept(clean: Stack, denoised: Stack) -> float:
    """Return the least share of a clear reflection that is left, in the mean of the frames.

    Parameters
    ----------
    clean, denoised
        (N, H, W), expected counts and what was made of them, in electrons.

    Returns
    -------
    float
        1 where there is no clear reflection.
    """
    height, width = clean.shape[1:]
    window = np.outer(np.hanning(height), np.hanning(width))
    true, left = (
        np.fft.rfft2((stack - stack.mean(axis=(1, 2), keepdims=True)) * window)
        for stack in (clean, denoised)
    )
    noise = np.sqrt((window**2).sum() * float(clean.mean()))
    y, x = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    strength = np.abs(true).mean(axis=0) / noise
    strength[np.hypot(y, x) < _LARGE] = 0
    least = 1.0
    while strength.max() > CLEAR:
        row, column = np.unravel_index(strength.argmax(), strength.shape)
        one = true[:, row, column]
        share = (left[:, row, column] * one.conj()).real.sum() / (np.abs(one) ** 2).sum()
        least = min(least, float(share))
        rows = np.arange(row - _NEAR, row + _NEAR + 1) % height
        strength[rows, max(0, column - _NEAR) : column + _NEAR + 1] = 0
    return least
