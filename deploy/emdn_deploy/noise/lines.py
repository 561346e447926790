"""Lines that differ as wholes: offsets of rows and columns, and the jitter of a scan.

Offsets are power on an axis of the spectrum that its neighbourhood does not have; jitter
is structure's power at frequencies along y that the image does not have.
"""

from dataclasses import dataclass

import numpy as np

from emdn_deploy.noise.spectra import (
    INSIDE,
    MEDIAN,
    SKIP,
    Array,
    Spectra,
    frequencies,
    taper,
)


@dataclass(frozen=True)
class Line:
    """Power on an axis against that beside it.

    Attributes
    ----------
    sigma
        RMS of the lines' offsets in intensity units, 0 where there is no excess.
    error
        Its standard error.
    z
        The excess in standard deviations.
    level
        Power beside the axis: the variance of a pixel, for white noise.
    ratio, spread
        Power on the axis by ``level``, and the standard deviation of its cube root.
    unit
        Variance of a line's mean that ``level`` explains.
    """

    sigma: float
    error: float
    z: float
    level: float
    ratio: float
    spread: float
    unit: float


def lines(power: Array, shape: tuple[int, int], rank: float, axis: int, hann: bool = False) -> Line:
    """Compare the power of rows' offsets (axis 0) or columns' (axis 1) with that beside them.

    Only from `INSIDE` outwards: structure is smoother.
    """
    plane = power if axis == 0 else power.T
    length, across = shape[axis], shape[1 - axis]
    band = np.arange(int(np.ceil(INSIDE * length)), (length + 1) // 2)
    near = np.arange(SKIP, max(SKIP + 4, across // 16))
    mirrored = band if axis else np.concatenate([band, -band])
    beside = plane[np.ix_(mirrored, np.concatenate([near, -near]) if axis else near)]
    level = float(np.median(beside))
    if level <= 0:
        return Line(0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0)
    ratio = float(np.median(plane[band, 0])) / level
    edge = np.hanning(across) if hann else taper(across)
    unit = level / float(edge.sum() ** 2 / (edge**2).sum())
    return _line(ratio, 1.0, 1 / (3 * np.sqrt(band.size * rank * MEDIAN)), level, unit)


def fixed(average: Line, changing: Line, frames: int) -> Line:
    """Say what lines of the average of frames do not owe to those that change with each."""
    spread = float(np.hypot(average.spread, changing.spread))
    found = _line(average.ratio, changing.ratio, spread, average.level, average.unit / frames)
    return found


def _line(ratio: float, expected: float, spread: float, level: float, unit: float) -> Line:
    # Wilson and Hilferty, PNAS 17 (1931) 684: the cube root is nearly normal.
    scale = max(1.0, expected ** (1 / 3))
    z = (ratio ** (1 / 3) - max(1.0, expected) ** (1 / 3)) / (spread * scale)
    sigma = float(np.sqrt(max(0.0, ratio - max(1.0, expected)) * unit))
    deviation = 3 * spread * max(1.0, ratio) * unit
    error = deviation / (2 * max(sigma, float(np.sqrt(deviation)))) if deviation else 0.0
    return Line(sigma, error, float(z), level, ratio, spread, unit)


@dataclass(frozen=True)
class Jitter:
    """RMS of the lines' shifts along x in pixels, its standard error, and how clear it is."""

    pixels: float
    error: float
    z: float


def jitter(spectra: Spectra, flicker: float) -> Jitter:
    """Find lines that are displaced along themselves, differently in every frame.

    Shifts d that are white along y turn a line's spectrum S(qx), in the difference of two
    frames, into a power of (1 - exp(-(2 pi qx d)^2)) |S|^2 at all qy, also at those where
    the image has none; what two frames share keeps exp(-(2 pi qx d)^2) |S|^2. Lines that
    ``flicker``, by this share of the mean, put that share of it there as well.
    """
    shape, power = spectra.shape, spectra.power
    qy, qx = (q.ravel() for q in frequencies(shape))
    far = (np.abs(qy) >= INSIDE) & (np.abs(qy) < 0.5)
    column = np.median(power[far], axis=0)
    band = (qx * shape[1] >= SKIP) & (qx > 0.02) & (qx < 0.2)
    beyond = (qx >= INSIDE) & (qx < 0.5)
    white = float(column[beyond].mean())
    if white <= 0 or not band.any():
        return Jitter(0.0, 0.0, 0.0)
    relative = 1 / np.sqrt(far.sum() / 2 * spectra.rank * 2 * MEDIAN)
    spread = relative * np.sqrt(1 / band.sum() + 1 / beyond.sum())
    shared = spectra.cross.real.mean(axis=0)[band]
    scattered = flicker**2 * shared.clip(0)
    z = (float((column[band] - scattered).mean()) / white - 1) / spread
    excess = power[far].mean(axis=0)[band] - power[np.ix_(far, beyond)].mean() - scattered
    angle = (2 * np.pi * qx[band]) ** 2
    # (e^k - 1) |S|^2 e^-k: weighted by what is shared, columns without structure do not count.
    useful = shared > 4 * white / np.sqrt(shape[0] * spectra.rank)
    if not useful.any():
        return Jitter(0.0, 0.0, z)
    strength, slope = shared[useful], angle[useful]
    k = np.log1p(np.maximum(excess[useful] / strength, -0.9))
    weight = (strength * slope) ** 2
    square = float((weight * k / slope).sum() / weight.sum())
    noise = relative * white * np.sqrt((weight**2 / (strength * slope) ** 2).sum()) / weight.sum()
    pixels = float(np.sqrt(max(0.0, square)))
    return Jitter(pixels, float(noise / (2 * max(pixels, np.sqrt(noise)))), z)
