"""The noise variance of a single frame, from the part of its spectrum that holds no image.

Counting noise has the same power at all frequencies; a lattice is a few spots, and smooth
structure lies at low frequencies. The median over rings of the power spectrum passes
between the spots. Interpolated or blurred frames have noise that falls off outwards:
its rings are added up as they are, while a high-pass filter would see only the outermost.
"""

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

# Cycles per pixel: below, structure; the first ring stands for what lies below.
LOWEST, WIDTH = 0.25, 0.03
SMALLEST = 32
_LARGEST = 1024

_Real = TypeVar("_Real", bound=np.floating[Any])


def noise_variance(frame: NDArray[np.float64]) -> float:
    """Estimate the mean variance of the noise of (H, W), both at least `SMALLEST`."""
    frame = without_outliers(middle(frame))
    window = np.outer(np.hanning(frame.shape[0]), np.hanning(frame.shape[1]))
    flat = (frame - np.average(frame, weights=window)) * window
    power = np.abs(np.fft.rfft2(flat)) ** 2 / (window**2).sum()
    y = np.fft.fftfreq(frame.shape[0])[:, None]
    x = np.fft.rfftfreq(frame.shape[1])[None, :]
    ring = ((np.hypot(y, x) - LOWEST) / WIDTH).astype(int)
    outside = np.hypot(y, x) >= LOWEST
    # All but the first and last columns of a half spectrum stand for two frequencies.
    weight = np.broadcast_to(np.where((x > 0) & (x < 0.5), 2.0, 1.0), power.shape)
    # The power of noise is distributed exponentially: its median is ln 2 of its mean.
    levels = np.array(
        [
            np.median(power[outside & (ring == number)]) / np.log(2)
            for number in range(int(ring[outside].max()) + 1)
        ]
    )
    total = levels[ring[outside]] @ weight[outside] + levels[0] * weight[~outside].sum()
    return float(total / weight.sum())


def without_outliers(frame: NDArray[np.float64]) -> NDArray[np.float64]:
    """Replace hot and dead pixels of (H, W), whose spectrum is white, by their surroundings."""
    wide = np.pad(frame, 1, mode="reflect")
    up, down, left, right = wide[:-2, 1:-1], wide[2:, 1:-1], wide[1:-1, :-2], wide[1:-1, 2:]
    # The middle two of four are what the pairs' extremes leave: one bad one does not count.
    low = np.maximum(np.minimum(up, down), np.minimum(left, right))
    around = (low + np.minimum(np.maximum(up, down), np.maximum(left, right))) / 2
    distance = frame - around
    limit = 8 * 1.4826 * float(np.median(np.abs(distance - np.median(distance))))
    if not limit:
        return frame
    return np.where(np.abs(distance) > limit, around, frame)


def middle(frame: NDArray[_Real]) -> NDArray[_Real]:
    """Return the part of (H, W) that is looked at, all of a small frame."""
    height, width = (min(length, _LARGEST) for length in frame.shape)
    top, left = (frame.shape[0] - height) // 2, (frame.shape[1] - width) // 2
    return frame[top : top + height, left : left + width]
