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

from emdn_deploy.noise_level import NoiseLevel, Sample, trimmed_mean
from emdn_models.errors import EmdnError

# Estimated gains this close to 1 are counts, when the data are whole numbers; gains this close
# to a number that all data are multiples of are counts in another unit.
_COUNTS_TOLERANCE = 0.2
# Noise of this part of the mean is the rounding of float32.
_ROUNDING = 1e-7
# From here on float32 rounds a pixel's electrons by more than 0.1 % of their noise.
_MOST_ELECTRONS = 2.0**28
_EXPONENT = 20  # a gain of so many powers of two from 1 is in another unit
NO_NOISE = "no noise found: a constant or synthetic stack, whose frames are left as they are"
_UNEVEN = 1.1  # how much more than white noise differences must hold that show motion


@dataclass(frozen=True)
class Intensity:
    """The affine scale of a stack and where it comes from.

    Attributes
    ----------
    scale
        Mean electrons per pixel.
    gain
        Intensity units per electron.
    offset
        Intensity of a pixel without electrons.
    sigma
        Standard deviation of a pixel's noise at the mean, in intensity units.
    note
        What was measured and what was assumed, for people.
    """

    scale: float
    gain: float
    offset: float
    sigma: float
    note: str

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
        return replace(
            self,
            gain=self.gain * factor,
            offset=self.offset * factor,
            sigma=self.sigma * factor,
        )

    @property
    def pixel_gain(self) -> float:
        """Return a pixel's variance over its mean: less than ``gain`` where pixels share noise."""
        return self.sigma**2 / (self.gain * self.scale) if self.sigma else self.gain


def estimate(
    sample: Sample,
    gain: float | None = None,
    offset: float | None = None,
    bad: NDArray[np.bool_] | None = None,
) -> Intensity:
    """Find the scale of a stack from a sample, of which pixels that are ``bad``, (H, W), are none.

    EmdnError if a pixel is not finite, ``gain`` is not positive, or ``offset`` is not below the
    mean; either is estimated where it is None.
    """
    return of_noise(NoiseLevel(sample, bad), gain, offset)


def of_noise(level: NoiseLevel, gain: float | None, offset: float | None) -> Intensity:
    """Turn a noise level into the scale; see `estimate`."""
    if gain is not None and not (np.isfinite(gain) and gain > 0):
        raise EmdnError(f"gain is {gain}, expected units per electron, more than 0")
    mean, found = level.level, noise(level)
    sigma = float(np.sqrt(found.variance))
    if sigma <= _ROUNDING * abs(mean):
        unit = gain or abs(mean) or 1.0
        return Intensity(1.0, unit, mean - unit, 0.0, NO_NOISE)
    if offset is None:
        offset, note = _offset(level, sigma)
    elif offset >= mean:
        raise EmdnError(f"offset {offset:g} is not below the mean of the frames, {mean:g}")
    else:
        note = "offset given"
    if gain is not None:
        note += ", gain given"
    else:
        gain = found.spread * found.variance / (mean - offset)
        if level.integers and offset == 0 and abs(gain - 1) <= _COUNTS_TOLERANCE:
            gain = 1.0
            note += ", whole numbers with the noise of counts"
        elif level.step and offset == 0 and abs(gain / level.step - 1) <= _COUNTS_TOLERANCE:
            gain = level.step
            note += f", multiples of {gain:.6g} with the noise of counts"
        else:
            note += f", gain from {found.method}"
    scale = (mean - offset) / gain
    sigma = float(np.sqrt(gain * gain * scale / found.spread))
    return Intensity(scale, gain, offset, sigma, note)


class Noise(NamedTuple):
    """A pixel's variance at the mean, what it is from, and the low frequencies' power over it."""

    variance: float
    method: str
    spread: float = 1.0


def noise(level: NoiseLevel) -> Noise:
    """Choose and average the estimate of the noise at the mean.

    Differences of neighbouring frames see no fixed structure. Where they are not
    white, either the noise is correlated from pixel to pixel, and they stand, or the
    specimen moves, and what is white in them does: their high-passed part, which
    smooth structure does not reach, or the power where no image is. Where both is so,
    a single frame's spectrum has to do.
    """
    if not level.temporal.size:
        shared = "" if level.spread == 1 else ", its large scales (the noise is correlated)"
        return Noise(level.single, "the spectrum of the frame" + shared, level.spread)
    still = Noise(trimmed_mean(level.temporal), "differences of neighbouring frames")
    if not level.uneven:
        return still
    moving, whiteness = level.moves or not level.lagged.size, level.whiteness
    if whiteness is None:  # too small for a spectrum: only slow motion can be told
        high = min(trimmed_mean(level.temporal_high), level.single)
        if moving and still.variance > _UNEVEN * high:
            return Noise(high, f"high-passed {still.method} (the frames move)")
        return still
    if not whiteness.correlated:
        white = level.white_variance(whiteness.share)
        return Noise(white, f"the white part of {still.method} (the frames move or flicker)")
    if (moving and still.variance > _UNEVEN * level.single) or level.beyond_frames:
        method = "the spectrum of the frame (the noise is correlated, frames differ by more)"
        return Noise(level.single, method, level.spread)
    method = f"{still.method}, their large scales (the noise is correlated)"
    return Noise(still.variance, method, whiteness.spread)


def _offset(level: NoiseLevel, sigma: float) -> tuple[float, str]:
    """Choose the reading without electrons: zero unless the data say otherwise."""
    fitted = _fit_offset(level)
    if fitted is not None and fitted < level.level:
        return fitted, "offset from the variance-mean relation"
    if level.level > 0 and level.low > -0.5 * sigma:
        return 0.0, "offset taken as 0"
    # Below zero there are no electrons: the darkest pixels stand for none.
    return min(level.low, level.level - sigma), "offset taken from the darkest pixels"


def _fit_offset(level: NoiseLevel) -> float | None:
    """Fit variance = gain * (mean - offset) over the blocks of a stack.

    None where the frames are too even or too few to tell the offset from 0, or
    where motion adds to their differences and no spectrum shows what is white in them.
    """
    whiteness = level.whiteness if level.uneven else None
    moving = level.uneven and not (whiteness and whiteness.correlated)
    if moving and whiteness:
        values = level.temporal_high / trimmed_mean(level.temporal_high)
        relation = relate(level.mean, values * level.white_variance(whiteness.share))
    else:
        relation = None if moving or level.moves else relate(level.mean, level.temporal)
    if relation is None or not relation.steep:
        return None
    if abs(relation.constant) < 5 * relation.constant_error:
        return None
    offset = -relation.constant / relation.slope
    if moving and offset < 0:  # what the filter leaves of the motion adds to the constant
        return None
    # Moving structure and saturation bend the relation; electrons are not negative.
    return offset if offset < level.low else None


@dataclass(frozen=True)
class Relation:
    """The line variance = slope * mean + constant over blocks, with errors and their covariance."""

    slope: float
    slope_error: float
    constant: float
    constant_error: float
    mixed: float

    @property
    def steep(self) -> bool:
        """Whether the slope is known at all."""
        return self.slope >= 10 * self.slope_error


def relate(means: NDArray[np.float64], variances: NDArray[np.float64]) -> Relation | None:
    """Fit the line through 12 bins of blocks (B,); None for too few blocks."""
    if variances.size < 256:
        return None
    edges = np.quantile(means, np.linspace(0, 1, 13))
    which = np.clip(np.searchsorted(edges, means, side="right") - 1, 0, 11)
    bins = [variances[which == one] for one in range(12)]
    centres = np.array([means[which == one].mean() for one in range(12) if bins[one].size])
    kept = [values for values in bins if values.size]
    if len(kept) < 6 or min(values.size for values in kept) < 8:
        return None
    levels = np.array([trimmed_mean(values) for values in kept])
    errors = np.array([values.std(ddof=1) / np.sqrt(values.size) for values in kept])
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
    return Relation(slope, slope_error, constant, constant_error, float(covariance[0, 1]))
