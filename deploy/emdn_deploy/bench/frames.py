"""Noisy frames to time with: never zeros, which some processors multiply faster."""

import numpy as np
from numpy.typing import NDArray

from emdn_deploy.intensity import Intensity

ELECTRONS = 40.0
CONTRAST = 0.1
SCALE = Intensity(ELECTRONS, 1.0, 0.0, ELECTRONS**0.5, "known")
"""What a run would find of them."""


def noisy(count: int, height: int, width: int, seed: int = 0) -> NDArray[np.float32]:
    """Return counts of a hexagonal lattice, (count, height, width), other noise in each.

    With 40 electrons a pixel and a contrast of 0.1 the signal to noise per pixel is 0.6.
    """
    y, x = np.mgrid[:height, :width].astype(np.float32)
    waves = sum(
        np.cos(2 * np.pi / 12 * (np.cos(angle) * y + np.sin(angle) * x))
        for angle in np.deg2rad((10, 70, 130))
    )
    expected = ELECTRONS * (1 + CONTRAST * waves / np.std(waves))
    rng = np.random.default_rng(seed)
    frames = np.empty((count, height, width), np.float32)
    for frame in frames:
        frame[:] = rng.poisson(np.maximum(expected, 0))
    return frames
