"""Stacks of known noise, and of cameras with a known fault, for the tests of the noise model."""

from collections.abc import Callable

import numpy as np

from emdn_deploy import dose
from emdn_deploy.dose import NoiseModel
from emdn_deploy.noise_level import NoiseLevel, sample

Stack = np.ndarray
Chance = np.random.Generator


def estimate(frames: Stack, offset: float | None = None, bad: Stack | None = None) -> NoiseModel:
    """Measure frames (N, H, W)."""
    stack = np.asarray(frames, np.float32)
    runs = sample(lambda start, stop: stack[start:stop], len(stack), stack.shape[1:])
    return dose.noise_model(NoiseLevel(runs, bad), offset)


def lattice(count: int, side: int, shifts: Stack) -> Stack:
    """Return expected frames of mean 1, (count, side, side), a lattice shifted by (count, 2)."""
    y, x = (grid[None].astype(float) for grid in np.mgrid[:side, :side])
    y, x = y + shifts[:, :1, None], x + shifts[:, 1:, None]
    waves = sum(
        np.cos(2 * np.pi / 9 * (np.cos(angle) * y + np.sin(angle) * x))
        for angle in np.deg2rad((10, 70, 130))
    )
    return 1 + 0.2 * waves + 0.3 * (x / side - 0.5)


def blurred(rate: Stack, rng: Chance, share: float) -> Stack:
    """Give a share of every electron to the four neighbours."""
    frames = rng.poisson(rate).astype(float)
    near = sum(np.roll(frames, step, axis) for step in (-1, 1) for axis in (1, 2))
    return (1 - share) * frames + share / 4 * near


def trailed(rate: Stack, rng: Chance, share: float) -> Stack:
    """Leave a share of every pixel in the next of its row."""
    frames = rng.poisson(rate).astype(float)
    return (1 - share) * frames + share * np.roll(frames, 1, 2)


def flickering(rate: Stack, rng: Chance, share: float) -> Stack:
    """Make rows brighter and darker, by a share of the mean RMS, from frame to frame."""
    return rng.poisson((rate * (1 + rng.normal(0, share, (*rate.shape[:2], 1)))).clip(0))


def columns(rate: Stack, rng: Chance, share: float) -> Stack:
    """Add offsets of columns, a share of the mean RMS, others in each frame."""
    return rng.poisson(rate) + rng.normal(0, share * rate.mean(), (len(rate), 1, rate.shape[2]))


# What makes the fault, and the words that say so.
FAULTS: dict[str, tuple[Callable[[Stack, Chance, float], Stack], str]] = {
    "blur, share given to 4 neighbours": (blurred, "correlated"),
    "trail, share left in the next of a row": (trailed, "correlated"),
    "rows flicker, of mean": (flickering, "rows flicker"),
    "columns flicker, of mean": (columns, "columns flicker"),
}
