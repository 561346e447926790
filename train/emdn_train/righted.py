"""A model less what it is wrong by on average, which the truth tells: sound by construction.

What ``emdn-deploy check`` finds in its results are false alarms, whatever the model. They keep
as much of the noise as the model does, and the honest denoisings that they are judged by are
made in the same way.
"""

import numpy as np
from numpy.typing import NDArray

from emdn_deploy.intensity import Intensity
from emdn_train.judging import Model

DRAWS = 48
"""Denoisings that are averaged: what they leave of a frame's noise is below 0.15 of it."""

Stack = NDArray[np.float32]


class Righted:
    """Denoises frames of one scene that stands still, in electrons.

    Parameters
    ----------
    denoiser
        What is put right.
    clean
        (H, W) expected electrons.
    seed
        Of the noise of what is averaged.
    """

    def __init__(self, denoiser: Model, clean: Stack, seed: int) -> None:
        self._denoiser, self._clean, self._seed = denoiser, clean, seed
        self._wrong: dict[Intensity, Stack] = {}

    def run(self, frames: Stack, scale: Intensity) -> Stack:
        """Denoise (n, H, W)."""
        if scale not in self._wrong:
            self._wrong[scale] = self._error(scale)
        return np.asarray(self._denoiser.run(frames, scale) - self._wrong[scale])

    def _error(self, scale: Intensity) -> Stack:
        chance = np.random.default_rng(self._seed)
        total = np.zeros(self._clean.shape)
        for _ in range(DRAWS):
            drawn = chance.poisson(self._clean).astype(np.float32)
            total += self._denoiser.run(drawn[None], scale)[0]
        return np.asarray(total / DRAWS - self._clean, dtype=np.float32)
