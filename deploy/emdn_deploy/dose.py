"""From intensities to electrons: gain, offset and dose of a stack, and what kind of noise it has.

A net expects x = (e - s) / sqrt(s), with e the electrons of a pixel and s their
mean, so that the noise has unit variance at the mean. With frames f = gain * e +
offset, x depends only on the mean and the noise of the data at the mean:
gain = sigma**2 / (mean - offset) and s = (mean - offset)**2 / sigma**2. A camera's
gain is rarely written down, so sigma is measured, on frames sampled over the stack.

Where a camera spreads an electron over neighbouring pixels, each of these has less noise
than its electrons: their noise is whole only where many pixels are added up. So sigma**2 is
then the power of the noise at low frequencies, where images are, not its variance.
"""

from dataclasses import dataclass
from math import nan, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from emdn_deploy.noise_level import NoiseLevel, trimmed_mean
from emdn_models.errors import EmdnError

NO_NOISE = "no noise found: a constant or synthetic stack, whose frames are left as they are"
_COUNTS_TOLERANCE = 0.2  # estimated gains this close to 1 are counts, of whole numbers
_LOST = 0.05  # counting cameras lose a few electrons that arrive together
_ROUNDING = 1e-7  # noise of this part of the mean is the rounding of float32
_MOST_ELECTRONS = 2.0**28  # float32 rounds a pixel's electrons by 0.1 % of their noise
_FLOAT32 = 1e-16, 1e16  # gains between which float32 holds the square of an intensity
_MOVED = 1.1  # times a frame's noise, from which on differences of frames that move hold more
_FLICKER = 0.02  # of the mean: what the models saw at most (`emdn_train.noise`)


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
        gain = self.gain * sqrt(self.scale / few)
        return few, mean - gain * few, gain

    @property
    def pixel_gain(self) -> float:
        """Return a pixel's variance over its mean: less than ``gain`` where pixels share noise."""
        return self.sigma**2 / (self.gain * self.scale) if self.sigma else self.gain


def estimate(
    level: NoiseLevel, gain: float | None = None, offset: float | None = None
) -> Intensity:
    """Turn the noise of a stack into its scale; gain and offset are estimated where they are None.

    EmdnError if ``gain`` is not a positive number of float32, or ``offset`` not below the mean.
    """
    mean, found = level.level, noise(level)
    sigma = sqrt(found.variance)
    if sigma <= _ROUNDING * abs(mean):
        unit = gain or abs(mean) or 1.0
        return Intensity(1.0, unit, mean - unit, 0.0, NO_NOISE)
    if offset is None:
        offset, note = _offset(level, found)
    elif offset >= min(mean, found.mean):
        raise EmdnError(
            f"offset {offset:g} is not below the mean of the frames, {mean:g}; "
            "give the intensity of a pixel without electrons"
        )
    else:
        note = "offset given"
    if gain is not None:
        note += ", gain given"
    else:
        gain = found.spread * found.variance / (found.mean - offset)
        if level.integers and offset == 0 and abs(gain - 1) <= _COUNTS_TOLERANCE:
            gain = 1.0
            note += ", whole numbers with the noise of counts"
        else:
            note += f", gain from {found.method}"
    if not _FLOAT32[0] < gain < _FLOAT32[1]:
        raise EmdnError(
            f"gain is {gain:g} units per electron, expected {_FLOAT32[0]:g} to {_FLOAT32[1]:g}; "
            "give the frames in another unit"
        )
    scale = (mean - offset) / gain
    return Intensity(scale, gain, offset, gain * sqrt(scale / found.spread), note)


class Noise(NamedTuple):
    """A pixel's noise.

    ``variance``, at which ``mean`` intensity, and the ``method`` that it is from; ``spread``: the
    power at low frequencies over it. ``blocks``: (B,) variances for those of `noise_level.Blocks`, empty where none are known;
    ``filtered``: whether they were high-passed, which leaves a little of the motion.
    """

    variance: float
    mean: float
    method: str
    spread: float = 1.0
    blocks: NDArray[np.float64] = np.zeros(0)
    filtered: bool = False


def noise(level: NoiseLevel) -> Noise:
    """Choose and average the estimate of the noise.

    Differences of neighbouring frames see no fixed structure. Where they are not
    white, either the noise is correlated from pixel to pixel, and they stand, or the
    specimen moves, and what is white in them does: their high-passed part, which
    smooth structure does not reach, or the power where no image is. Where both is so,
    a single frame's spectrum has to do.
    """
    blocks, white = level.blocks, level.whiteness if level.uneven else None
    if not blocks.temporal.size:
        variance, mean, spread = level.single
        shared = "" if spread == 1 else ", its large scales (the noise is correlated)"
        return Noise(variance, mean, "the spectrum of the frame" + shared, spread)
    mean = trimmed_mean(blocks.mean)
    variance, method = trimmed_mean(blocks.temporal), "differences of neighbouring frames"
    if not white or not blocks.high.size:
        return Noise(variance, mean, method, blocks=blocks.temporal)
    if not white.correlated:
        values = blocks.high * (level.white_variance / trimmed_mean(blocks.high))
        method = f"the white part of {method} (the frames move or flicker)"
        return Noise(level.white_variance, mean, method, blocks=values, filtered=True)
    single, middle, spread = level.single
    if variance > (_MOVED if level.moves or not blocks.lagged.size else 2) * single > 0:
        method = "the spectrum of the frame (the noise is correlated, frames differ by more)"
        return Noise(single, middle, method, spread)
    method = f"{method}, their large scales (the noise is correlated)"
    values = np.zeros(0) if level.moves else blocks.temporal
    return Noise(variance, mean, method, white.spread, values)


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
        if fitted < min(level.low, found.mean) and not (found.filtered and fitted < 0):
            return fitted, "offset from the variance-mean relation"
    sigma = sqrt(found.variance)
    if min(level.level, found.mean) > 0 and level.low > -0.5 * sigma:
        return 0.0, "offset taken as 0"
    # Below zero there are no electrons: the darkest pixels stand for none.
    return min(
        level.low, min(level.level, found.mean) - sigma
    ), "offset taken from the darkest pixels"


def _relate(
    means: NDArray[np.float64], variances: NDArray[np.float64]
) -> tuple[float, float, float] | None:
    """Fit variance = slope * mean + constant through 12 bins of blocks (B,).

    Returns slope, constant and its standard error; None for few blocks or an unknown slope.
    """
    if variances.size < 256:
        return None
    bins = np.array_split(np.argsort(means), 12)
    centres = np.array([means[one].mean() for one in bins])
    levels = np.array([trimmed_mean(variances[one]) for one in bins])
    errors = np.array([variances[one].std(ddof=1) / sqrt(one.size) for one in bins])
    if not (errors > 0).all() or centres[0] == centres[-1]:
        return None
    (slope, constant), covariance = np.polyfit(centres, levels, 1, w=1 / errors, cov="unscaled")
    chi = float(np.mean(((levels - slope * centres - constant) / errors) ** 2))
    slope_error, constant_error = np.sqrt(np.diag(covariance) * max(1.0, chi))
    return None if slope < 10 * slope_error else (slope, constant, float(constant_error))


class NoiseModel(NamedTuple):
    """The noise of a stack; numbers that cannot be told are NaN.

    Read noise lowers an offset that is not given.
    """

    # Intensity units per electron, and its standard error. For noise that is correlated, of a
    # pixel's variance: an electron spread out counts less.
    gain: float
    gain_error: float
    offset: float  # intensity of a pixel without electrons
    method: str  # what gain and offset come from, and what was assumed
    counting: bool  # whether pixels are counts of electrons: whole numbers, gain 1
    correlated: bool  # whether the noise of neighbouring pixels is correlated
    # In plain words, what the shipped models have not seen: theirs is white counting noise, and
    # scans whose lines flicker by up to 2 % (`emdn_train.noise`).
    findings: tuple[str, ...]


def noise_model(level: NoiseLevel, offset: float | None = None) -> NoiseModel:
    """Say what kind of noise a stack has, whose ``offset`` is measured where it is None.

    EmdnError if the offset is not below the mean.
    """
    scale, found, white = estimate(level, None, offset), noise(level), level.whiteness
    gain, error, above = scale.pixel_gain, nan, level.level - scale.offset
    if found.blocks.size and scale.sigma:
        gain = found.variance / (found.mean - scale.offset)
        # Blocks differ by their mean, too, and that is no error.
        rest = found.blocks - gain * (level.blocks.mean - scale.offset)
        error = float(rest.std(ddof=1)) / sqrt(rest.size) / above if rest.size > 1 else nan
    correlated = white.correlated if white else found.spread > 1
    near = 3 * error + _LOST if found.blocks.size else _COUNTS_TOLERANCE
    counting = level.integers and scale.gain == 1 and scale.offset == 0 and level.low >= 0
    findings = [] if scale.sigma else ["no noise: a constant or synthetic stack"]
    if correlated:
        amount = f" ({white.x:.2f} along x, {white.y:.2f} along y)" if white else ""
        findings.append(
            f"the noise of neighbouring pixels is correlated{amount}, as by a camera's blur, "
            "interpolation or filtering"
        )
    for name, sigma, seen in zip(("rows", "columns"), level.lines, (_FLICKER, 0.0), strict=True):
        if sigma > seen * above:
            findings.append(
                f"{name} flicker from frame to frame, by {sigma / above:.2%} of the mean beyond "
                "counting noise: denoising takes out only a part of it"
            )
    return NoiseModel(
        gain, error, scale.offset, scale.note,
        counting and not correlated and abs(gain - 1) <= near, correlated, tuple(findings),
    )  # fmt: skip
