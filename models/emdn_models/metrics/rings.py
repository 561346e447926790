"""Rings of spatial frequency in the transform of a real frame, for any height and width."""

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
    pixels: NDArray[np.int64]

    def total(self, values: Floats) -> Floats:
        """Sum values (..., H, W // 2 + 1) over both halves of each ring: (..., R)."""
        count = values.shape[:-2]
        sums = np.empty((*count, self.pixels.size))
        for at in np.ndindex(count):
            weighted = (values[at] * self.weights).ravel()
            sums[at] = np.bincount(self.labels, weighted, self.pixels.size + 1)[1:]
        return sums


def label(height: int, width: int, columns: int) -> NDArray[np.intp]:
    """Ring of each Fourier pixel, (H, columns) of the W columns; 0 for none."""
    along_y, along_x = np.fft.fftfreq(height), np.fft.fftfreq(width)[:columns]
    step = 1 / min(height, width)
    found: NDArray[np.intp] = np.rint(np.hypot(along_y[:, None], along_x) / step).astype(np.intp)
    found[found > int(0.5 / step - 0.5)] = 0
    return found


@lru_cache(maxsize=16)
def rings(height: int, width: int) -> Rings:
    """Divide the transform of a frame (H, W) into rings; H and W at least 4."""
    columns = width // 2 + 1
    labels = label(height, width, columns)
    weights = np.full((height, columns), 2.0)
    weights[:, 0] = 1
    if width % 2 == 0:
        weights[:, -1] = 1
    pixels = np.bincount(labels.ravel(), weights.ravel())[1:]
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency = np.bincount(labels.ravel(), (weights * radius).ravel())[1:] / pixels
    for array in (labels, weights, frequency, pixels):
        array.flags.writeable = False
    return Rings(labels.ravel(), weights, frequency, pixels.astype(np.int64))
