"""Whether a result is sound, by the truth: not every honest one is.

What all frames are wrong by at one spatial frequency is told from the noise that they keep by
correlation with the truth, which moves as the specimen drifts.
"""

import numpy as np
from numpy.typing import NDArray

SEEN = 2.0  # standard deviations of a frame's noise: of what is less, no frame shows much
TOLERATED = 0.15  # of a component, which ``check`` lets a denoiser take of a lattice's peak
KINDS = ("sound", "slight", "wrong")
_LARGE = 0.02  # cycles/pixel, below which there is the beam's profile

Stack = NDArray[np.float32]


def soundness(clean: Stack, denoised: Stack) -> str:
    """Say how much of the truth's Fourier components is lost, or how much too strong they are.

    Parameters
    ----------
    clean, denoised
        (N, H, W), expected counts and what was made of them, in electrons.

    Returns
    -------
    str
        ``sound`` where no component is off by `SEEN` standard deviations of a frame's noise,
        ``slight`` where those that are keep within `TOLERATED` of themselves, ``wrong`` else.
    """
    strength, share = _shares(clean, denoised)
    off = np.abs(1 - share)
    seen = off * strength >= SEEN
    if not seen.any():
        return KINDS[0]
    return KINDS[2] if (off[seen] > TOLERATED).any() else KINDS[1]


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
