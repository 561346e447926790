"""How a frame is cut for its tests, and what the tests need that depends on the size only."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from emdn_models.metrics.rings import label

SCALES = (2.0, 4.0, 8.0)  # pixels, the Gaussians of the local test: an atom, and larger
MATCHES = (0.03, 0.1, 0.2, 0.5)  # cycles/pixel, ends of the bands of the test for structure
BANDS = 12  # of the residual's power
LARGEST = 640  # side of a frame that is tested in one piece
BLOCK = 8  # side of a pixel of the map

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Panel:
    """Filters and bands for frames of one size, all for ``numpy.fft.rfft2``.

    Attributes
    ----------
    smooth
        (S, H, W // 2 + 1) transfer functions of the Gaussians, over the standard deviation
        that they leave of white noise of unit variance.
    window
        (H, W) Hann window, over the root of the sum of its squares.
    match
        (H, W // 2 + 1) band of `MATCHES` of each Fourier pixel, 0 for none, and weights.
    ring
        (H, W // 2 + 1) ring of each Fourier pixel.
    members
        Flat indices of the Fourier pixels of each ring, from ring 1.
    far
        (H, W // 2 + 1) whether a peak there is no large-scale structure.
    """

    smooth: NDArray[np.float32]
    window: NDArray[np.float32]
    match: NDArray[np.intp]
    weight: NDArray[np.float32]
    ring: NDArray[np.intp]
    members: tuple[NDArray[np.intp], ...]
    far: NDArray[np.bool_]


@lru_cache(maxsize=4)
def panel(height: int, width: int) -> Panel:
    """Prepare the tests of panels (H, W)."""
    y, x = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    radius = np.hypot(y, x)
    weight = np.full(radius.shape, 2.0)
    weight[:, 0] = 1
    if width % 2 == 0:
        weight[:, -1] = 1
    smooth = []
    for scale in SCALES:
        transfer = np.exp(-2 * (np.pi * scale * radius) ** 2)
        smooth.append(transfer / np.sqrt((weight * transfer**2).sum() / (height * width)))
    window = np.outer(_hann(height), _hann(width))
    match = 1 + np.searchsorted(MATCHES, radius)
    match[match > len(MATCHES)] = 0
    match[0, 0] = 0
    ring = label(height, width, width // 2 + 1)
    order = np.argsort(ring, axis=None, kind="stable")
    return Panel(
        np.asarray(smooth, np.float32),
        np.asarray(window / np.sqrt(np.square(window).sum()), np.float32),
        match.astype(np.intp),
        weight.astype(np.float32),
        ring,
        tuple(np.split(order, np.cumsum(np.bincount(ring.ravel())))[1:-1]),
        (radius > 0.02) & (radius * min(height, width) > 4),
    )


def _hann(length: int) -> Floats:
    return np.asarray(np.sin(np.pi * (np.arange(length) + 0.5) / length) ** 2)


def cut(height: int, width: int) -> list[tuple[slice, slice]]:
    """Cut frames (H, W) into panels of one size, which may overlap by a few pixels."""
    down, right = (_spans(length) for length in (height, width))
    return [(one, two) for one in down for two in right]


def _spans(length: int) -> list[slice]:
    count = -(-length // LARGEST)
    side = -(-length // count)
    return [
        slice(int(start), int(start) + side)
        for start in np.linspace(0, length - side, count).round()
    ]
