"""From intensities to electrons: the one affine scale of a stack.

A net expects x = (e - s) / sqrt(s), with e the electrons of a pixel and s their
mean, so that the noise has unit variance at the mean. With frames f = gain * e +
offset, x depends only on the mean and the noise of the data at the mean:
gain = sigma**2 / (mean - offset) and s = (mean - offset)**2 / sigma**2. A camera's
gain is rarely written down, so sigma is measured, on frames sampled over the stack.

Where a camera spreads an electron over neighbouring pixels, each of these has less noise
than its electrons: their noise is whole only where many pixels are added up. So sigma**2 is
then the power of the noise at low frequencies, where images are, not its variance.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from emdn_deploy.noise_level import NoiseLevel, trimmed_mean
from emdn_models.errors import EmdnError

# Estimated gains this close to 1 are counts, when the data are whole numbers.
_COUNTS_TOLERANCE = 0.2
# Noise of this part of the mean is the rounding of float32.
_ROUNDING = 1e-7
# From here on float32 rounds a pixel's electrons by more than 0.1 % of their noise.
_MOST_ELECTRONS = 2.0**28
_EXPONENT = 20  # a gain of so many powers of two from 1 is in another unit
NO_NOISE = "no noise found: a constant or synthetic stack, whose frames are left as they are"
_MOVED = 1.1  # times a frame's noise, from which on differences of frames that move hold more


@dataclass(frozen=True)
class Intensity:
    """The affine scale of a stack and where it comes from."""

    scale: float  # mean electrons per pixel
    gain: float  # intensity units per electron
    offset: float  # intensity of a pixel without electrons
    sigma: float  # standard deviation of a pixel's noise at the mean, intensity units
    note: str  # what was measured and what was assumed, for people

    @property
    def numbers(self) -> tuple[float, float, float]:
        """Return scale, offset and gain for a net that computes in float32.

        All that have the same mean and noise give it the same input. Where noise is small
        against the mean, as above an unknown offset, these round it less.
        """
        if self.scale <= _MOST_ELECTRONS:
            return self.scale, self.offset, self.gain
        mean, few = self.offset + self.gain * self.scale, 100.0
        gain = self.gain * float(np.sqrt(self.scale / few))
        return few, mean - gain * few, gain

    @property
    def unit(self) -> float:
        """Return the power of two by which intensities are divided before float32 squares them."""
        exponent = float(np.floor(np.log2(abs(self.gain))))
        return 1.0 if abs(exponent) < _EXPONENT else float(2.0**exponent)

    def scaled(self, factor: float) -> "Intensity":
        """Return the scale of the stack times ``factor``."""
        gain, offset, sigma = (factor * one for one in (self.gain, self.offset, self.sigma))
        return replace(self, gain=gain, offset=offset, sigma=sigma)

    @property
    def pixel_gain(self) -> float:
        """Return a pixel's variance over its mean: less than ``gain`` where pixels share noise."""
        return self.sigma**2 / (self.gain * self.scale) if self.sigma else self.gain


def estimate(
    level: NoiseLevel, gain: float | None = None, offset: float | None = None
) -> Intensity:
    """Turn the noise of a stack into its scale; gain and offset are estimated where they are None.

    EmdnError if ``gain`` is not positive, or ``offset`` is not below the mean.
    """
    if gain is not None and not (np.isfinite(gain) and gain > 0):
        raise EmdnError(f"gain is {gain}, expected units per electron, more than 0")
    mean, found = level.level, noise(level)
    sigma = float(np.sqrt(found.variance))
    if sigma <= _ROUNDING * abs(mean):
        unit = gain or abs(mean) or 1.0
        return Intensity(1.0, unit, mean - unit, 0.0, NO_NOISE)
    if offset is None:
        offset, note = _offset(level, found)
    elif offset >= mean:
        raise EmdnError(
            f"offset {offset:g} is not below the mean of the frames, {mean:g}; "
            "give the intensity of a pixel without electrons"
        )
    else:
        note = "offset given"
    if gain is not None:
        note += ", gain given"
    else:
        gain = found.spread * found.variance / (mean - offset)
        if level.integers and offset == 0 and abs(gain - 1) <= _COUNTS_TOLERANCE:
            gain = 1.0
            note += ", whole numbers with the noise of counts"
        else:
            note += f", gain from {found.method}"
    scale = (mean - offset) / gain
    sigma = float(np.sqrt(gain * gain * scale / found.spread))
    return Intensity(scale, gain, offset, sigma, note)


class Noise(NamedTuple):
    """A pixel's noise at the mean.

    ``variance``, and the ``method`` that it is from; ``spread``: the power at low frequencies over
    it. ``blocks``: (B,) variances for those of `noise_level.Blocks`, empty where none are known;
    ``filtered``: whether they were high-passed, which leaves a little of the motion.
    """

    variance: float
    method: str
    spread: float = 1.0
    blocks: NDArray[np.float64] = np.zeros(0)
    filtered: bool = False


def noise(level: NoiseLevel) -> Noise:
    """Choose and average the estimate of the noise at the mean.

    Differences of neighbouring frames see no fixed structure. Where they are not
    white, either the noise is correlated from pixel to pixel, and they stand, or the
    specimen moves, and what is white in them does: their high-passed part, which
    smooth structure does not reach, or the power where no image is. Where both is so,
    a single frame's spectrum has to do.
    """
    blocks, white = level.blocks, level.whiteness if level.uneven else None
    if not blocks.temporal.size:
        variance, spread = level.single
        shared = "" if spread == 1 else ", its large scales (the noise is correlated)"
        return Noise(variance, "the spectrum of the frame" + shared, spread)
    variance, method = trimmed_mean(blocks.temporal), "differences of neighbouring frames"
    if not white:
        return Noise(variance, method, blocks=blocks.temporal)
    if not white.correlated:
        values = blocks.high * (level.white_variance / trimmed_mean(blocks.high))
        method = f"the white part of {method} (the frames move or flicker)"
        return Noise(level.white_variance, method, blocks=values, filtered=True)
    single, spread = level.single
    if variance > (_MOVED if level.moves or not blocks.lagged.size else 2) * single > 0:
        method = "the spectrum of the frame (the noise is correlated, frames differ by more)"
        return Noise(single, method, spread)
    method = f"{method}, their large scales (the noise is correlated)"
    return Noise(variance, method, white.spread, np.zeros(0) if level.moves else blocks.temporal)


def _offset(level: NoiseLevel, found: Noise) -> tuple[float, str]:
    """Choose the reading without electrons: zero unless the data say otherwise.

    That is, unless variance = gain * (mean - offset) over the blocks says so, which it cannot
    where the frames are too even or too few.
    """
    slope, constant, error = _relate(level.blocks.mean, found.blocks) or (1.0, 0.0, 1.0)
    if abs(constant) >= max(5 * error, 1e-3 * found.variance):
        fitted = -constant / slope
        # Moving structure and saturation bend the relation; electrons are not negative. What the
        # filter leaves of the motion adds to the constant.
        if fitted < min(level.low, level.level) and not (found.filtered and fitted < 0):
            return fitted, "offset from the variance-mean relation"
    sigma = float(np.sqrt(found.variance))
    if level.level > 0 and level.low > -0.5 * sigma:
        return 0.0, "offset taken as 0"
    # Below zero there are no electrons: the darkest pixels stand for none.
    return min(level.low, level.level - sigma), "offset taken from the darkest pixels"


def _relate(
    means: NDArray[np.float64], variances: NDArray[np.float64]
) -> tuple[float, float, float] | None:
    """Fit variance = slope * mean + constant through 12 bins of blocks (B,).

    Returns slope, constant and its standard error; None for few blocks or an unknown slope.
    """
    if variances.size < 256:
        return None
    edges = np.quantile(means, np.linspace(0, 1, 13))
    which = np.clip(np.searchsorted(edges, means, side="right") - 1, 0, 11)
    bins = [which == one for one in np.unique(which)]
    if len(bins) < 6 or min(map(np.count_nonzero, bins)) < 8:
        return None
    centres = np.array([means[one].mean() for one in bins])
    levels = np.array([trimmed_mean(variances[one]) for one in bins])
    errors = np.array([variances[one].std(ddof=1) / np.sqrt(one.sum()) for one in bins])
    if not (errors > 0).all():
        return None
    # In units near 1, and exactly so: of others the fit would take one column for rounding.
    of_mean, of_variance = (
        2.0 ** np.floor(np.log2(np.abs(part).max())) for part in (centres, levels)
    )
    centres, levels, errors = centres / of_mean, levels / of_variance, errors / of_variance
    design = np.stack([centres, np.ones_like(centres)], axis=1) / errors[:, None]
    covariance = np.linalg.pinv(design.T @ design)
    slope, constant = covariance @ design.T @ (levels / errors)
    chi = float(np.mean(((levels - slope * centres - constant) / errors) ** 2))
    units = np.array([of_variance / of_mean, of_variance])
    covariance *= max(1.0, chi) * np.outer(units, units)
    slope_error, constant_error = np.sqrt(np.diag(covariance)).tolist()
    slope, constant = (np.array([slope, constant]) * units).tolist()
    return None if slope < 10 * slope_error else (slope, constant, constant_error)
