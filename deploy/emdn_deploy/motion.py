"""Whether differences of neighbouring frames hold more than the pixels' noise.

White noise has as much power after a high-pass filter as before it. Where differences
have less, the specimen moves, lines of a scan change, or the noise itself is correlated
from pixel to pixel. Frames two apart differ more than neighbours where the specimen
drifts slowly. Where it has moved by more than its own structure within one frame, or
shakes, they do not, and only the outer part of the spectrum tells motion from correlated
noise (see `emdn_deploy.noise.shapes`).
"""

from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from emdn_deploy import spectrum
from emdn_deploy.noise import shapes
from emdn_deploy.noise import spectra as noise_spectra
from emdn_deploy.noise.spectra import Spectra
from emdn_deploy.sampling import Blocks, Reader, middle, sample_starts, trimmed_mean

_PIXELS = 2**20  # of all frames whose spectra are added up
_LEFT = 0.03  # how much more than white noise high-passed differences may hold


@dataclass(frozen=True)
class Spectrum:
    """What the spectrum of the differences says where no image reaches.

    Attributes
    ----------
    correlated
        Whether the noise of neighbouring pixels is correlated.
    white
        Share of white noise in the power of the differences.
    spread
        Their power at low frequencies over their mean power.
    """

    correlated: bool
    white: float
    spread: float


def moves(blocks: Blocks) -> bool:
    """Say whether frames two apart differ more than neighbours do, beyond chance."""
    if not blocks.lagged.size:
        return False
    near, far = trimmed_mean(blocks.temporal), trimmed_mean(blocks.lagged)
    return far > 1.03 * near + 3 * _chance(blocks.temporal, blocks.lagged)


def rough(blocks: Blocks) -> bool:
    """Say whether the differences have less power at high frequency than white noise."""
    parts = (blocks.temporal, blocks.temporal_high)
    if not all(part.size for part in parts):
        return False
    whole, high = (trimmed_mean(part) for part in parts)
    return whole > 1.01 * high + 3 * _chance(*parts)


def beyond_frames(blocks: Blocks) -> bool:
    """Say whether differences hold twice what the spectrum of single frames calls noise.

    This errs by a third where the noise is correlated.
    """
    return trimmed_mean(blocks.temporal) > 2 * blocks.single > 0


def uneven(blocks: Blocks) -> bool:
    """Say whether blocks alone show that the differences are not the pixels' white noise."""
    return rough(blocks) or moves(blocks)


def white_variance(blocks: Blocks, white: float) -> float:
    """Return the variance of the pixels' noise in differences that hold more than that.

    That of their high-passed part, or, where motion reaches it, the power at the highest
    frequencies, of which ``white`` is the share of all.
    """
    high, least = trimmed_mean(blocks.temporal_high), white * trimmed_mean(blocks.temporal)
    return least if least < (1 - _LEFT) * high else high


def _chance(*parts: NDArray[np.float64]) -> float:
    return sqrt(sum(float(part.var()) / part.size for part in parts))


def look(
    read: Reader, count: int, size: tuple[int, int], bad: NDArray[np.bool_] | None = None
) -> Spectrum | None:
    """Judge the spectra of some of a stack's frames (see `emdn_deploy.intensity.estimate`)."""
    return judge(gather(read, count, size, bad))


def gather(
    read: Reader, count: int, size: tuple[int, int], bad: NDArray[np.bool_] | None = None
) -> Spectra:
    """Add up the spectra of some of a stack's frames, of none that are too small."""
    spectra = Spectra()
    if min(size) < spectrum.SMALLEST:
        return spectra
    starts, run = sample_starts(count, size)
    part = middle(size, _PIXELS // run)
    good = (np.ones(size, bool) if bad is None else ~bad)[part]
    step = max(1, -(-len(starts) * run * good.size // _PIXELS))
    for start in starts[::step]:
        spectra.add(read(start, start + run)[:, *part].astype(np.float64), good)
    return spectra


def judge(spectra: Spectra) -> Spectrum | None:
    """Say what the spectra show; None where there are no differences."""
    if not spectra.pairs:
        return None
    blur = shapes.blur(spectra.power, spectra.shape, single=False)
    white, _ = noise_spectra.white(spectra.power, spectra.shape, spectra.rank)
    spread = noise_spectra.area(spectra.power, spectra.shape)
    return Spectrum(blur.clear, white, spread if spread > 0 else 1.0)
