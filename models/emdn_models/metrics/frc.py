"""Fourier ring correlation: at which spatial frequencies two frames agree.

Saxton, Baumeister, Journal of Microscopy 127, 1982; van Heel, Schatz, Journal of Structural
Biology 151, 2005.

Between two denoised frames it is never a resolution: a denoiser that draws the same lattice
into both makes them agree. Compare FRC(denoised A, raw B) with FRC(raw A, raw B), for
frames A and B with independent noise. Of a lattice only a few rings hold signal, so that
"the first crossing of a threshold" says nothing; no function here gives it.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emdn_models.errors import EmdnError
from emdn_models.metrics import accept
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


def ring_correlation(first: ArrayLike, second: ArrayLike) -> tuple[Floats, Floats]:
    """Correlate the Fourier transforms of two frames, ring by ring.

    Saxton and Baumeister 1982: the sum of F conj(G) over a ring, over the root of the
    product of the sums of abs(F)**2 and abs(G)**2. A Hann window fades the frames out towards
    their edges, which removes the cross that unequal opposite edges leave.

    Parameters
    ----------
    first, second
        (H, W), at least 4 x 4. Never both denoised: see the module's head.

    Returns
    -------
    ndarray, ndarray
        (R,) each: mean spatial frequency of each ring, cycles/pixel, the last ring ending at
        0.5; and correlation, from -1 to 1, NaN where a frame has no power.

    Raises
    ------
    EmdnError
        If the shapes differ or are too small.
    """
    one, two = accept.frames(first=first, second=second)
    if one.ndim != 2 or min(one.shape) < 4:
        raise EmdnError(f"first: found shape {one.shape}, expected a frame of at least 4 x 4")
    circles = rings(*one.shape)
    window = np.outer(
        *(0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(n) + 0.5) / n) for n in one.shape)
    )
    f, g = (np.fft.rfft2((frame - frame.mean()) * window) for frame in (one, two))
    cross, power_one, power_two = (
        circles.total(part)
        for part in ((f * g.conj()).real, f.real**2 + f.imag**2, g.real**2 + g.imag**2)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        return circles.frequency, cross / np.sqrt(power_one * power_two)
