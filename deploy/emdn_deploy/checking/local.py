"""Small places where a residual is not noise: a filled vacancy, an invented atom."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emdn_deploy.checking.panel import BLOCK, SCALES, panel

_MOST = 3.0  # standard deviations that a frame counts for at most in a run

Frame = NDArray[np.float32]


@dataclass(frozen=True)
class Spot:
    """A place of the smoothed residual.

    Attributes
    ----------
    y, x
        Pixels, in the frame.
    scale
        Standard deviation in pixels of the Gaussian that it was smoothed with.
    z
        The smoothed residual there, in standard deviations; negative where the denoised
        frame is brighter than the raw one.
    """

    y: int
    x: int
    scale: float
    z: float

    @property
    def added(self) -> bool:
        """Whether the denoised frame is brighter there than the raw one."""
        return self.z < 0


def smoothed(residual: Frame) -> Frame:
    """Smooth (H, W) at every scale: (S, H, W), in standard deviations of white noise.

    Parameters
    ----------
    residual
        In units of the expected noise; frames are taken to repeat beyond their edges.
    """
    transform = np.fft.rfft2(residual)
    parts = [
        np.fft.irfft2(transform * one, s=residual.shape) for one in panel(*residual.shape).smooth
    ]
    return np.stack(parts).astype(np.float32)


def spots(fields: Frame) -> tuple[Spot, ...]:
    """Find what is farthest from 0 at every scale of `smoothed` (S, H, W)."""
    found = []
    for scale, field in zip(SCALES, fields, strict=True):
        y, x = (int(i) for i in np.unravel_index(np.abs(field).argmax(), field.shape))
        found.append(Spot(y, x, scale, float(field[y, x])))
    return tuple(found)


def share(fields: Frame) -> Frame:
    """Limit what one frame's fields (S, H, W) count for in a sum over a run of frames.

    A faint atom counts in full; what stands out in one frame is not found in its neighbours.
    """
    return np.clip(fields, -_MOST, _MOST)


def blocks(fields: Frame) -> Frame:
    """Take of each block what is farthest from 0, over scales and pixels."""
    # Scales first, then whole rows: that is what a processor does fastest.
    high, low = (_coarse(part) for part in (fields.max(axis=0), -fields.min(axis=0)))
    return np.where(high > low, high, -low)


def _coarse(frame: Frame) -> Frame:
    """Take the largest pixel of each block of (H, W)."""
    height, width = (max(1, length // BLOCK) for length in frame.shape)
    down, right = (min(BLOCK, length) for length in frame.shape)
    rows = frame[: height * down, : width * right].reshape(height, down, -1).max(axis=1)
    return np.asarray(rows.reshape(height, width, right).max(axis=2))
