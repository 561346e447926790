"""Fourier ring correlation: at which spatial frequencies two frames agree.

Saxton, Baumeister, Journal of Microscopy 127, 1982; van Heel, Schatz, Journal of Structural
Biology 151, 2005; Nieuwenhuizen et al., Nature Methods 10, 2013.

Between two denoised frames it is never a resolution: a denoiser that draws the same lattice
into both makes them agree. Compare FRC(denoised A, raw B) with FRC(raw A, raw B), for
frames A and B with independent noise. Of a lattice only a few rings hold signal, so that
"the first crossing of a threshold" says nothing; no function here gives it.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emdn_models.errors import EmdnError
from emdn_models.metrics import accept
from emdn_models.metrics.accept import Floats
from emdn_models.metrics.rings import label, rings

Window = Literal["none", "hann"]

ONE_SEVENTH = 1 / 7  # the fixed threshold of Nieuwenhuizen et al.; blind to the size of a ring


@dataclass(frozen=True)
class RingCorrelation:
    """Correlation of two frames, or of two stacks, on rings of spatial frequency.

    Attributes
    ----------
    frequency
        (R,) mean of each ring's spatial frequencies, cycles/pixel; the last ring ends at 0.5.
    correlation
        (R,) or, for stacks that were not pooled, (N, R), from -1 to 1; NaN where a
        frame has no power.
    pixels
        (R,) Fourier pixels of the ring, both of each Hermitian pair.
    independent
        (R,) independent complex values behind one correlation: half the pixels, fewer with
        a window, times the frames that were pooled.
    """

    frequency: Floats
    correlation: Floats
    pixels: NDArray[np.int64]
    independent: Floats


def ring_correlation(
    first: ArrayLike, second: ArrayLike, window: Window = "none", pooled: bool = False
) -> RingCorrelation:
    """Correlate the Fourier transforms of two frames, ring by ring.

    Saxton and Baumeister 1982: the sum of F conj(G) over a ring, over the root of the
    product of the sums of abs(F)**2 and abs(G)**2. `Rings` says what a ring is.

    Parameters
    ----------
    first, second
        (H, W) or (N, H, W), at least 4 x 4. Never both denoised: see the module's head.
    window
        ``hann`` fades the frames out towards their edges. That removes the cross that
        unequal opposite edges leave, and with it much of the statistics.
    pooled
        One curve for the stack, from sums over its frames. ``independent`` then counts
        the frames as if they shared no noise.

    Raises
    ------
    EmdnError
        If the shapes differ or are too small, or the window is unknown.
    """
    one, two = accept.frames(first=first, second=second)
    height, width = one.shape[-2:]
    if min(height, width) < 4:
        raise EmdnError(f"first: found {height} x {width} pixels, expected at least 4 x 4")
    if window not in ("none", "hann"):
        raise EmdnError(f"window: found {window!r}, expected 'none' or 'hann'")
    circles = rings(height, width)
    count = one.shape[:-2]
    sums = np.empty((3, *count, circles.pixels.size))
    for at in np.ndindex(count):
        f, g = (_transform(frames[at], window) for frames in (one, two))
        parts = ((f * g.conj()).real, f.real**2 + f.imag**2, g.real**2 + g.imag**2)
        for kind, part in enumerate(parts):
            sums[(kind, *at)] = circles.total(part)
    independent = _independent(height, width, window)
    if pooled and count:
        sums = sums.sum(axis=1)
        independent = independent * count[0]
    cross, power_one, power_two = sums
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = cross / np.sqrt(power_one * power_two)
    return RingCorrelation(circles.frequency, correlation, circles.pixels, independent)


def half_bit(independent: ArrayLike) -> Floats:
    """Threshold above which two frames together hold half a bit a Fourier pixel.

    van Heel and Schatz 2005, equation 17, for an object that fills the frame and has no
    symmetry, with their n the Fourier pixels of both Hermitian halves.

    Parameters
    ----------
    independent
        (R,) of a `RingCorrelation`.
    """
    root = np.sqrt(2 * np.asarray(independent, dtype=np.float64))
    return np.asarray((0.2071 + 1.9102 / root) / (1.2071 + 0.9102 / root))


def sigma(independent: ArrayLike, factor: float = 3) -> Floats:
    """Threshold of ``factor`` standard deviations, ``factor / sqrt(independent)``.

    As in van Heel and Schatz 2005, who count independent pixels as here. For real frames
    it is stricter than its name: without common signal a ring's correlation scatters by
    1 / sqrt(2 independent), since each complex value brings two real ones.

    Parameters
    ----------
    independent
        (R,) of a `RingCorrelation`.
    """
    return np.asarray(factor / np.sqrt(np.asarray(independent, dtype=np.float64)))


def spectral_snr(correlation: ArrayLike, average: bool = False) -> Floats:
    """Ratio of signal to noise power that a correlation of two equally noisy frames means.

    FRC / (1 - FRC) of each frame, twice that of the mean of the two (Saxton and Baumeister
    1982). Of raw frames only: denoised noise is neither independent of the signal nor,
    where a denoiser invents, of the other frame's.

    Parameters
    ----------
    correlation
        (..., R).
    average
        Of the mean of the two frames, and not of each.

    Returns
    -------
    ndarray
        (..., R); slightly negative where there is no signal, infinite at 1.
    """
    found = np.asarray(correlation, dtype=np.float64)
    with np.errstate(divide="ignore"):
        return np.asarray((2 if average else 1) * found / (1 - found))


def against_truth(denoised_raw: ArrayLike, raw_raw: ArrayLike) -> Floats:
    """Correlation of denoised frames with the truth that nobody has, ring by ring.

    FRC(denoised A, raw B) / sqrt(FRC(raw A, raw B)): the root is the correlation of a raw
    frame with the truth, when A and B have independent noise of the same power.

    Parameters
    ----------
    denoised_raw, raw_raw
        (..., R) the two correlations; pool a stack first, since the ratio of noisy numbers
        is biased.

    Returns
    -------
    ndarray
        (..., R), above 1 only by chance; NaN where the raw frames do not correlate.
    """
    found = np.asarray(denoised_raw, dtype=np.float64)
    raw = np.asarray(raw_raw, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(raw > 0, found / np.sqrt(raw), np.nan))


def _transform(frame: Floats, window: Window) -> NDArray[np.complex128]:
    frame = frame - frame.mean()
    if window == "hann":
        high, wide = (_hann(length) for length in frame.shape)
        frame = frame * high[:, None] * wide
    return np.fft.rfft2(frame)


def _hann(length: int) -> Floats:
    return np.asarray(0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(length) + 0.5) / length))


@lru_cache(maxsize=16)
def _independent(height: int, width: int, window: Window) -> Floats:
    """Complex values with independent noise in each ring, (R,).

    A window correlates white noise at neighbouring Fourier pixels p and q by rho(p - q),
    the transform of its square; n pixels then count as n**2 / sum of rho**2 over all pairs.
    """
    circles = rings(height, width)
    values = circles.pixels / 2
    if window == "hann":
        labels = label(height, width, width)
        pairs = np.zeros(circles.pixels.size)
        overlap = {0: 1.0, 1: 2 / 3, 2: 1 / 6}  # rho along one axis; 0 further out
        for down in range(-2, 3):
            for right in range(-2, 3):
                both = labels == np.roll(labels, (down, right), (0, 1))
                rho = overlap[abs(down)] * overlap[abs(right)]
                same = np.bincount(labels[both], minlength=pairs.size + 1)[1:]
                pairs += rho**2 * same
        values = circles.pixels**2 / pairs / 2
    values.flags.writeable = False
    return values
