"""The noise variance of a single frame, from the part of its spectrum that holds no image.

Counting noise has the same power at all frequencies; a lattice is a few spots, and smooth
structure lies at low frequencies. The median over rings of the power spectrum passes
between the spots. Interpolated or blurred frames have noise that falls off outwards:
its rings are added up as they are, while a high-pass filter would see only the outermost.
"""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

# Cycles per pixel: below, structure; the first ring stands for what lies below.
LOWEST, WIDTH = 0.25, 0.03
SMALLEST = 32
_LARGEST = 1024
# Where a fall of the noise's power is looked for, and by how much, at least and beyond chance.
_FALL = (LOWEST, 0.35), (0.4, 0.5)
_FALLS, _CLEAR = 1.25, 8.0
_SHARE = 0.98  # of good pixels, from which on the others do not matter
_IMAGE = 0.1, 0.15  # where images are, but little of what is smooth in them

Floats = NDArray[np.float64]

_Real = TypeVar("_Real", bound=np.generic)


def noise(frame: Floats, good: NDArray[np.bool_] | None = None) -> tuple[float, float]:
    """Estimate the noise of (H, W), both at least `SMALLEST`.

    Parameters
    ----------
    good
        (H, W), pixels that were not filled in, which leaves them less noise; None for all.

    Returns
    -------
    float, float
        Its mean variance; and its power at low frequencies over that, which is 1 unless the
        power clearly falls off outside `LOWEST`.
    """
    frame = without_outliers(middle(frame))
    window = np.outer(np.hanning(frame.shape[0]), np.hanning(frame.shape[1]))
    flat = (frame - np.average(frame, weights=window)) * window
    power = np.abs(np.fft.rfft2(flat)) ** 2 / (window**2).sum()
    share = 1.0 if good is None else float(np.average(middle(good), weights=window**2))
    if 0.1 < share < _SHARE:
        power /= share
    y = np.fft.fftfreq(frame.shape[0])[:, None]
    x = np.fft.rfftfreq(frame.shape[1])[None, :]
    radius = np.hypot(y, x)
    ring = ((radius - LOWEST) / WIDTH).astype(int)
    outside = radius >= LOWEST
    # All but the first and last columns of a half spectrum stand for two frequencies.
    weight = np.broadcast_to(np.where((x > 0) & (x < 0.5), 2.0, 1.0), power.shape)
    numbers = range(int(ring[outside].max()) + 1)
    levels = np.array([_level(power[outside & (ring == number)]) for number in numbers])
    total = levels[ring[outside]] @ weight[outside] + levels[0] * weight[~outside].sum()
    variance = float(total / weight.sum())
    if variance <= 0:
        return 0.0, 1.0
    near, far = (power[(radius >= low) & (radius < high)] for low, high in _FALL)
    chance = 1 + _CLEAR * np.sqrt(1 / near.size + 1 / far.size) / np.log(2)
    if _level(near) < max(_FALLS, chance) * _level(far):
        return variance, 1.0
    inner = _level(power[(radius >= _IMAGE[0]) & (radius < _IMAGE[1])])
    return variance, max(1.0, min(inner, _inward(levels)) / variance)


def _inward(levels: Floats) -> float:
    """Follow rings outside `LOWEST` inwards to frequency 0.

    As a Lorentz function, which a camera's resolution nearly is. Where an image without spots
    reaches far out, this is less than what lies between the spots there; where it does not,
    that is less: of a CCD's noise, half.
    """
    inside = int(np.ceil((0.5 - LOWEST) / WIDTH))
    radius = LOWEST + WIDTH * (np.arange(inside) + 0.5)
    slope, least = np.polyfit(radius**2, 1 / levels[:inside], 1)
    return float(1 / least) if slope > 0 and least > 0 else np.inf


def _level(power: Floats) -> float:
    """Return the mean power of noise: it is distributed exponentially, its median is ln 2 of it."""
    return float(np.median(power) / np.log(2))


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
