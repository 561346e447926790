"""Whether a result is sound, by the truth: not every honest one is.

What all frames are wrong by at one spatial frequency is told from the noise that they keep by
correlation with the truth, which moves as the specimen drifts. What they are wrong by at one
place is told from it by denoising the true frames with other noise.
"""

from collections.abc import Callable
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from emdn_deploy.checking.grounds import RUN
from emdn_deploy.checking.local import smoothed

DRAWS = 4
"""Frames of other noise: what their average keeps of it is seldom beyond 2.5 deviations."""
PLACE = 4.0  # standard deviations of the noise of a run's average, at any scale and place
SEEN = 2.0  # standard deviations of a frame's noise: of what is less, no frame shows much
TOLERATED = 0.15  # of a component, which ``check`` lets a denoiser take of a lattice's peak
KINDS = ("sound", "slight", "wrong")
_LARGE = 0.02  # cycles/pixel, below which there is the beam's profile

Stack = NDArray[np.float32]


def soundness(clean: Stack, denoised: Stack, again: Callable[[Stack], Stack], seed: int = 0) -> str:
    """Say how much of the truth is lost, or how much too strong it is.

    Parameters
    ----------
    clean, denoised
        (N, H, W), expected counts and what was made of them, in electrons.
    again
        Denoises other such frames, in electrons.
    seed
        Of their noise.

    Returns
    -------
    str
        ``sound`` where no Fourier component is off by `SEEN` standard deviations of a frame's
        noise, and no place by `PLACE` of a run's; ``slight`` where such components, but no
        place, are off, and keep within `TOLERATED` of themselves; ``wrong`` else.
    """
    strength, share = _shares(clean, denoised)
    off = np.abs(1 - share)
    seen = off * strength >= SEEN
    if (off[seen] > TOLERATED).any() or farthest(clean, again, seed) > PLACE:
        return KINDS[2]
    return KINDS[1] if seen.any() else KINDS[0]


def farthest(clean: Stack, again: Callable[[Stack], Stack], seed: int = 0) -> float:
    """Say how far off results are at a place, on average over a run of frames and `DRAWS` of it.

    Places are as ``check`` looks at them (`emdn_deploy.checking.local`).

    Parameters
    ----------
    clean, again, seed
        As of `soundness`.

    Returns
    -------
    float
        The farthest, in standard deviations of the noise of a run's average.
    """
    chance = np.random.default_rng([seed, DRAWS])  # not those of `emdn_train.righted`
    error = np.zeros(clean.shape)
    for _ in range(DRAWS):
        error += again(chance.poisson(clean).astype(np.float32)) - clean
    fields = np.stack([smoothed(one) for one in error / DRAWS / np.sqrt(clean)])
    starts = range(0, len(fields), RUN)
    runs = [fields[start : start + RUN] for start in starts]
    return max(float(np.abs(run.sum(axis=0)).max()) / sqrt(len(run)) for run in runs)


def _shares(clean: Stack, denoised: Stack) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the clear components' strengths, in units of the noise, and shares: (K,) each."""
    height, width = clean.shape[1:]
    window = np.outer(np.hanning(height), np.hanning(width))
    true, left = (
        np.fft.rfft2((stack - stack.mean(axis=(1, 2), keepdims=True)) * window)
        for stack in (clean, denoised)
    )
    square = (np.abs(true) ** 2).mean(axis=0)
    strength = np.sqrt(square / ((window**2).sum() * float(clean.mean())))
    y, x = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    clear = (strength > SEEN) & (np.hypot(y, x) > _LARGE)
    share = (left * true.conj()).real.mean(axis=0)[clear] / square[clear]
    return strength[clear], share
