"""Rings of spatial frequency: sums of a frame's spectrum over circles."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from emdn_models.metrics.accept import Floats


@dataclass(frozen=True)
class Rings:
    """Which ring each Fourier pixel of ``numpy.fft.rfft2`` lies in.

    Rings are circles in cycles/pixel, as wide as the coarser of the two steps 1 / H and
    1 / W, so that a rectangular frame, whose Fourier pixels are not square, is treated
    alike in all directions.

    Attributes
    ----------
    labels
        (H * (W // 2 + 1),) ring of each pixel, from 1; 0 for the zero frequency and for
        those beyond the last ring, which ends at 0.5.
    weights
        (H, W // 2 + 1), 2 for pixels that stand for themselves and for their Hermitian
        partner.
    frequency
        (R,) mean of each ring's spatial frequencies, cycles/pixel.
    pixels
        (R,) Fourier pixels, both of each Hermitian pair.
    """

    labels: NDArray[np.intp]
    weights: Floats
    frequency: Floats
    pixels: Floats

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
    for array in (labels, weights, frequency, pixels):
        array.flags.writeable = False
    return Rings(labels.ravel(), weights, frequency, pixels)
