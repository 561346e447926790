"""The noise that a camera adds: how large it is expected, and draws of it."""

from dataclasses import dataclass
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from emdn_deploy.dose import Intensity
from emdn_deploy.noise_model import NoiseModel
from emdn_models.errors import EmdnError

_DARK = 0.01  # lowest noise variance, relative to the frame's mean
_UNKNOWN = 0.01  # error of one frame's noise, which is told from its structure by assumption


@dataclass(frozen=True)
class Camera:
    """Counting noise times gain, and read noise.

    Attributes
    ----------
    gain
        Intensity units per electron; below 0 where electrons darken the picture.
    offset
        Intensity of a pixel without electrons.
    read
        Standard deviation of the read noise, intensity units.
    uncertainty
        Relative standard error of the noise's standard deviation.
    integer
        Whether pixels are whole numbers.
    """

    gain: float
    offset: float
    read: float
    uncertainty: float
    integer: bool

    @classmethod
    def of(cls, noise: "NoiseModel", scale: "Intensity", integer: bool) -> "Camera":
        """Take from a noise model what the noise's size depends on.

        Parameters
        ----------
        scale
            What the stack was denoised with; stands in where the noise model has no gain.
        """
        if noise.counting:
            error = noise.gain_error if isfinite(noise.gain_error) else 0.0
            return cls(1.0, 0.0, 0.0, error / 2, integer)
        if not (isfinite(noise.gain) and noise.gain > 0):
            return cls(scale.gain, scale.offset, 0.0, _UNKNOWN, integer)
        error = noise.gain_error / noise.gain / 2 if isfinite(noise.gain_error) else _UNKNOWN
        read = noise.read_noise_electrons
        read = noise.gain * read if isfinite(read) else 0.0
        return cls(noise.gain, noise.offset, read, error, integer)

    def noise(self, expected: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the noise's standard deviation at expected values, intensity units."""
        electrons = np.maximum((expected - self.offset) / self.gain, 0.01)
        return np.asarray(np.sqrt(self.gain**2 * electrons + self.read**2), np.float32)

    def in_sigma(
        self, raw: NDArray[np.float32], denoised: NDArray[np.float32]
    ) -> NDArray[np.float64]:
        """Divide raw - denoised (H, W) by the noise that is expected there.

        Raises
        ------
        EmdnError
            If the denoised frame is on average not brighter than the offset.
        """
        clean = denoised.astype(np.float64)
        variance = self.gain * (clean - self.offset) + self.read**2
        level = float(variance.mean())
        if not level > 0:
            raise EmdnError(
                f"denoised: found a frame with mean {clean.mean():g}, expected more than the "
                f"offset, {self.offset:g}; give the offset of the camera"
            )
        scaled: NDArray[np.float64] = raw - clean
        scaled /= np.sqrt(np.maximum(variance, _DARK * level))
        return scaled

    def draw(self, truth: NDArray[np.float32], chance: np.random.Generator) -> NDArray[np.float32]:
        """Draw a frame of which ``truth`` (H, W) is the expected value."""
        electrons = np.maximum((truth.astype(np.float64) - self.offset) / self.gain, 0)
        drawn = self.gain * chance.poisson(electrons) + self.offset
        if self.read:
            drawn = drawn + self.read * chance.standard_normal(truth.shape)
        return np.asarray(np.rint(drawn) if self.integer else drawn, dtype=np.float32)
