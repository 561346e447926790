"""What kind of noise a stack has, and whether the shipped models have seen the like.

Gain and offset are those of the line variance = gain (mean - offset): read noise lowers an offset
that is not given. Spectra of differences tell noise that is correlated from pixel to pixel, and
lines. The models saw white counting noise, and scans whose lines flicker by up to 2 %
(`emdn_train.noise`).
"""

from math import nan, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from emdn_deploy import dose
from emdn_deploy.noise_level import NoiseLevel, Sample, line_noise

_FLICKER = 0.02  # of the mean: what the models saw at most (`emdn_train.noise`)
_COUNTS = 0.05  # counting cameras lose a few electrons that arrive together
OUTSIDE = "outside the models' training"


class NoiseModel(NamedTuple):
    """The noise of a stack; numbers that cannot be told are NaN."""

    # Intensity units per electron, and its standard error. For noise that is correlated, of a
    # pixel's variance: an electron spread out counts less.
    gain: float
    gain_error: float
    offset: float  # intensity of a pixel without electrons
    method: str  # what gain and offset come from, and what was assumed
    counting: bool  # whether pixels are counts of electrons: whole numbers, gain 1
    correlated: bool  # whether the noise of neighbouring pixels is correlated
    findings: tuple[str, ...]  # in plain words
    in_training: bool  # whether every finding is within what the shipped models saw


def estimate(
    sample: Sample, bad: NDArray[np.bool_] | None = None, offset: float | None = None
) -> NoiseModel:
    """Measure the noise of a stack on a sample of it, whose ``bad`` pixels, (H, W), do not count.

    EmdnError if the ``offset``, the intensity of a pixel without electrons, is not below the mean.
    """
    level = NoiseLevel(sample, bad)
    scale, found = dose.estimate(level, None, offset), dose.noise(level)
    gain, error = scale.pixel_gain, nan
    above = level.level - scale.offset
    if found.blocks.size and scale.sigma:
        gain = found.variance / above
        # Blocks differ by their mean, too, and that is no error.
        rest = found.blocks - gain * (level.blocks.mean - scale.offset)
        error = float(rest.std(ddof=1)) / sqrt(rest.size) / above if rest.size > 1 else nan
    white = level.whiteness
    correlated = white.correlated if white else found.spread > 1
    near = 3 * error + _COUNTS if found.blocks.size else 0.2
    counting = level.integers and scale.gain == 1 and scale.offset == 0 and level.low >= 0
    outside, inside = list[str](), list[str]()
    if not scale.sigma:
        outside.append("no noise: a constant or synthetic stack")
    if level.repeats:
        pairs = sum(len(run) - 1 for run in sample.runs)
        outside.append(f"{level.repeats} of {pairs} frames repeat the one before")
    if correlated:
        amount = f" ({white.x:.2f} along x, {white.y:.2f} along y)" if white else ""
        outside.append(
            f"the noise of neighbouring pixels is correlated{amount}, as by a camera's blur, "
            "interpolation or filtering"
        )
    for name, (sigma, wrong) in _lines(level).items():
        share, spare = sigma / above, wrong / above
        seen = name.startswith("rows") and share - 2 * spare <= _FLICKER
        (inside if seen else outside).append(f"{name} by {share:.1%} of the mean")
    if level.moves:
        inside.append("the specimen moves: frames two apart differ more than neighbours")
    return NoiseModel(
        gain, error, scale.offset, scale.note,
        counting=counting and not correlated and abs(gain - 1) <= near,
        correlated=correlated,
        findings=(
            *(f"{text}: {OUTSIDE}" for text in outside),
            *(f"{text}: within the models' training" for text in inside),
        ),
        in_training=not outside,
    )  # fmt: skip


def _lines(level: NoiseLevel) -> dict[str, tuple[float, float]]:
    """Return `line_noise` of rows and columns beyond chance, by what to say of them."""
    if (spectrum := level.spectrum) is None:
        return {}
    if level.whiteness is None:
        found = {"rows differ (noise of a scan, or an edge along them),": line_noise(spectrum, 0)}
    else:
        found = {
            "rows flicker from frame to frame,": line_noise(spectrum, 0),
            "columns flicker from frame to frame,": line_noise(spectrum, 1),
        }
    return {name: lines for name, lines in found.items() if lines}


def line_notes(level: NoiseLevel, above: float) -> list[str]:
    """Name lines that differ from frame to frame, of which denoising leaves a part.

    ``above``: mean of the frames above the offset, in intensity units.
    """
    return [
        f"{name} by {sigma / above:.2%} of the mean beyond counting noise: denoising takes "
        "out only a part of it"
        for name, (sigma, _) in _lines(level).items()
    ]
