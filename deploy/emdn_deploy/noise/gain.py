"""Gain, offset and read noise of a camera, each with its standard error.

The variance of blocks of pixels against their mean is a line of two numbers, while a
camera has three: variance = gain (mean - offset) + read noise^2. Without a known offset,
either it or the read noise is taken as 0, whichever the constant's sign allows.
"""

from math import isfinite, nan, sqrt
from typing import NamedTuple

from emdn_deploy import intensity, motion
from emdn_deploy.intensity import Relation
from emdn_deploy.sampling import Blocks, trimmed_mean
from emdn_models.errors import EmdnError

# Counting cameras lose a few electrons that arrive together.
_COUNTS = 0.05
_STEEP = 0.1  # how far the slope of counts may be from 1 besides
_TOGETHER = "offset and read noise cannot be told apart without the camera's offset"


class Scale(NamedTuple):
    """What `emdn_deploy.noise.model.NoiseModel` says of the camera, and a pixel's variance."""

    gain: float
    gain_error: float
    offset: float
    offset_error: float
    read_noise_electrons: float
    read_noise_electrons_error: float
    method: str
    counting: bool
    doubts: tuple[str, ...]
    variance: float


def scale(
    blocks: Blocks, uneven: bool, closer: motion.Spectrum | None, offset: float | None
) -> Scale:
    """Find the scale of a stack.

    Parameters
    ----------
    uneven
        Whether differences hold more than the pixels' noise: motion, lines, jitter.
        The high-passed differences then stand in, unless the noise is correlated.
    closer
        What the spectrum of the differences says; None where there is none.

    Raises
    ------
    EmdnError
        If the offset is not below the mean.
    """
    if offset is not None and offset >= blocks.level:
        raise EmdnError(
            f"offset {offset:g} is not below the mean of the frames, {blocks.level:g}; "
            "give the intensity of a pixel without electrons"
        )
    correlated = closer is not None and closer.correlated
    high = uneven and not correlated and blocks.temporal_high.size > 0
    values = blocks.temporal_high if high else blocks.temporal
    # What is correlated and moves fast, only a single frame shows.
    blurred = correlated and intensity.noise(blocks, closer).variance < trimmed_mean(values)
    if not values.size or (uneven and not high) or blurred:
        return _from_intensity(blocks, offset, closer)
    mean, variance = trimmed_mean(blocks.mean), trimmed_mean(values)
    if high and variance > 0:
        left = motion.white_variance(blocks, closer.white if closer else 1.0) / variance
        values, variance = values * left, variance * left
    method = f"{'high-passed ' if high else ''}differences of neighbouring frames"
    # Blocks differ by their mean, too, and that is no error.
    rest = values - variance * (blocks.mean - (offset or 0.0)) / (mean - (offset or 0.0) or 1.0)
    error = float(rest.std(ddof=1)) / sqrt(values.size) if values.size > 1 else nan
    relation = intensity.relate(blocks.mean, values)
    if variance <= 0:
        doubts = ("gain, offset and read noise: there is no noise",)
        return Scale(nan, nan, offset or 0.0, nan, nan, nan, "none", False, doubts, 0.0)
    if relation is None or not relation.steep:
        why = "frames too even or too few for the variance-mean relation: "
        return _through(blocks, mean, variance, error, offset, closer, correlated, method, why)
    slope, constant = relation.slope, relation.constant
    if offset is not None:
        return _with_offset(relation, offset, method, variance, blocks.whole and not correlated)
    if abs(constant) <= 3 * relation.constant_error:
        if blocks.low < -0.5 * sqrt(variance):
            return _from_intensity(blocks, offset, closer)
        counts = abs(slope - 1) <= 3 * relation.slope_error + _STEEP
        return _through(
            blocks,
            mean,
            variance,
            error,
            None,
            closer,
            correlated or not counts,
            method,
            "",
            relation,
        )
    said = f"variance-mean relation of {method}"
    if constant < 0:
        at = -constant / slope
        return Scale(
            slope, relation.slope_error, at, _ratio_error(relation), nan, nan,
            f"{said}, read noise taken as 0", False,
            (f"{_TOGETHER}: with read noise the offset is above {at:.4g}",), variance,
        )  # fmt: skip
    read, read_error = _read_noise(constant, relation.constant_error, slope)
    return Scale(
        slope, relation.slope_error, 0.0, nan, read, read_error,
        f"{said}, offset taken as 0", False,
        (f"{_TOGETHER}: the read noise holds for an offset of 0",), variance,
    )  # fmt: skip


def _with_offset(
    relation: Relation, offset: float, method: str, variance: float, whole: bool
) -> Scale:
    square = relation.constant + relation.slope * offset
    spread = (
        relation.constant_error**2
        + (offset * relation.slope_error) ** 2
        + 2 * offset * relation.mixed
    )
    error = sqrt(max(0.0, spread))
    read, read_error = _read_noise(square, error, relation.slope)
    counting = (
        whole and offset == 0 and abs(relation.slope - 1) <= 3 * relation.slope_error + _COUNTS
    )
    doubts: tuple[str, ...] = ()
    if square < -3 * error:
        doubts = (
            f"read noise: at an offset of {offset:g} its square is negative, so the offset "
            "is wrong or the response bends",
        )
        read, read_error = nan, nan
    return Scale(
        relation.slope, relation.slope_error, offset, 0.0, read, read_error,
        f"variance-mean relation of {method}, offset given",
        counting and abs(square) <= 3 * error, doubts, variance,
    )  # fmt: skip


def _through(
    blocks: Blocks,
    mean: float,
    variance: float,
    error: float,
    offset: float | None,
    closer: motion.Spectrum | None,
    strange: bool,
    method: str,
    why: str,
    relation: Relation | None = None,
) -> Scale:
    """Take the line from the offset to the mean: no read noise."""
    if offset is None and (mean <= 0 or blocks.low < -0.5 * sqrt(max(0.0, variance))):
        return _from_intensity(blocks, offset, closer)
    above = mean - (offset or 0.0)
    gain, gain_error = variance / above, error / above
    near = 3 * (gain_error if isfinite(gain_error) else 0.0) + _COUNTS
    counting = (
        blocks.whole and not strange and not offset and blocks.low >= 0 and abs(gain - 1) <= near
    )
    given = "offset given" if offset is not None else "offset and read noise taken as 0"
    if relation is None:
        doubts = (f"read noise: {why}{method} give one number, the gain",)
        return Scale(
            gain, gain_error, offset or 0.0, nan if offset is None else 0.0, nan, nan,
            f"{method} by the mean, {given}", counting, doubts, variance,
        )  # fmt: skip
    _, read_error = _read_noise(0.0, relation.constant_error, gain)
    return Scale(
        gain, gain_error, 0.0, _ratio_error(relation), 0.0, read_error,
        f"variance-mean relation of {method}, through 0 within its error", counting,
        () if counting else (_TOGETHER,), variance,
    )  # fmt: skip


def _from_intensity(blocks: Blocks, offset: float | None, closer: motion.Spectrum | None) -> Scale:
    """Fall back on what denoising itself takes, where no error can be given."""
    taken = intensity.from_blocks(blocks, None, offset, closer)
    variance = intensity.noise(blocks, closer).variance
    doubts = ["errors of gain and offset: the noise is told from structure by assumption only"]
    if not blocks.temporal.size:
        doubts.insert(0, "read noise: one frame has no differences, its variance-mean relation "
                      "is the specimen's")  # fmt: skip
    else:
        doubts.insert(0, "read noise: the variance-mean relation is not the camera's alone")
    counting = blocks.whole and taken.gain == 1.0 and taken.offset == 0.0 and blocks.low >= 0
    return Scale(
        taken.gain, nan, taken.offset, nan, nan, nan, taken.note,
        counting and taken.sigma > 0, tuple(doubts), variance,
    )  # fmt: skip


def _read_noise(square: float, error: float, gain: float) -> tuple[float, float]:
    """Turn a variance into RMS electrons, and its error."""
    read = sqrt(max(0.0, square)) / gain
    return read, error / gain**2 / (2 * max(read, sqrt(error) / gain)) if error else 0.0


def _ratio_error(relation: Relation) -> float:
    """Return the standard error of constant / slope."""
    ratio = relation.constant / relation.slope
    square = (
        relation.constant_error**2
        + (ratio * relation.slope_error) ** 2
        - 2 * ratio * relation.mixed
    )
    return sqrt(max(0.0, square)) / relation.slope
