"""What kind of noise a stack has, and whether the shipped models have seen the like.

The gain is that which denoising takes. Only where the camera's offset is known does the line
variance = gain (mean - offset) + read noise^2 over small blocks tell the read noise as well.
Spectra of differences tell noise that is correlated from pixel to pixel, and lines. The models saw
white counting noise, and scans whose lines flicker by up to 2 % (`emdn_train.noise`).
"""

from dataclasses import asdict, dataclass, replace
from math import isfinite, nan, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdn_deploy import dose
from emdn_deploy.dose import Intensity, Noise
from emdn_deploy.noise_level import Lines, NoiseLevel, Sample, line_noise

_FLICKER = 0.02  # of the mean: what the models saw at most (`emdn_train.noise`)
_COUNTS = 0.05  # counting cameras lose a few electrons that arrive together
OUTSIDE = "outside the models' training"


@dataclass(frozen=True)
class NoiseModel:
    """The noise of a stack; what cannot be told is NaN, and named in ``not_identifiable``.

    Attributes
    ----------
    gain, gain_error
        Intensity units per electron, and its standard error. For noise that is
        correlated, of a pixel's variance: an electron spread out counts less.
    offset
        Intensity of a pixel without electrons.
    read_noise_electrons
        RMS of a pixel's noise without electrons, in electrons.
    method
        What gain and offset come from, and what was assumed.
    counting
        Whether pixels are counts of electrons: whole numbers, gain 1, no read noise.
    moves
        Whether frames two apart differ more than neighbours do.
    correlated
        Whether the noise of neighbouring pixels is correlated.
    findings
        What was found, in plain words.
    not_identifiable
        What cannot be told from these frames, and why.
    in_training
        Whether every finding is within what the shipped models saw.
    """

    gain: float
    gain_error: float
    offset: float
    read_noise_electrons: float
    method: str
    counting: bool = False
    moves: bool = False
    correlated: bool = False
    findings: tuple[str, ...] = ()
    not_identifiable: tuple[str, ...] = ()
    in_training: bool = True

    def as_dict(self) -> dict[str, Any]:
        """Return what JSON can hold: None for NaN."""
        return {
            key: None if isinstance(value, float) and not isfinite(value) else value
            for key, value in asdict(self).items()
        }


def estimate(
    sample: Sample, bad: NDArray[np.bool_] | None = None, offset: float | None = None
) -> NoiseModel:
    """Measure the noise of a stack on a sample of it, whose ``bad`` pixels, (H, W), do not count.

    Only where the ``offset``, the intensity of a pixel without electrons, is known can read noise
    be told. EmdnError if it is not below the mean.
    """
    level = NoiseLevel(sample, bad)
    scale, found = dose.estimate(level, None, offset), dose.noise(level)
    camera = _camera(level, found, scale, offset)
    white, correlated = level.whiteness, found.spread > 1
    if white:
        correlated = white.correlated
    near = 3 * camera.gain_error + _COUNTS if found.blocks.size else 0.2
    counting = level.integers and scale.gain == 1 and camera.offset == 0 and level.low >= 0
    counting = counting and not correlated and abs(camera.gain - 1) <= near
    unknown = [] if counting and found.blocks.size else [*camera.not_identifiable]
    if level.spectrum is None:
        unknown.append("correlation and lines: frames are equal, or below 32 pixels")
    elif not white:
        unknown.append("motion, and whether lines stand out always: one frame only")
    outside, inside = list[str](), list[str]()
    if not scale.sigma:
        outside.append("no noise: a constant or synthetic stack")
    if level.repeats:
        pairs = sum(len(run) - 1 for run in sample.runs)
        outside.append(f"{level.repeats} of {pairs} frames repeat the one before")
    if correlated:
        amount = f" ({white.x:.2f} along x, {white.y:.2f} along y" if white else ""
        if white:
            spread = f", an electron covers {found.spread:.1f} pixels" if found.blocks.size else ""
            amount += f"{spread})"
        outside.append(
            f"the noise of neighbouring pixels is correlated{amount}, as by a camera's blur, "
            "interpolation or filtering"
        )
    above = level.level - camera.offset
    for name, lines in _lines(level).items():
        share, error = lines.sigma / above, lines.error / above
        seen = name.startswith("rows") and share - 2 * error <= _FLICKER
        (inside if seen else outside).append(f"{name} by {share:.1%} of the mean")
    if level.moves:
        inside.append("the specimen moves: frames two apart differ more than neighbours")
    return replace(
        camera,
        counting=counting,
        moves=level.moves,
        correlated=correlated,
        findings=(
            *(f"{text}: {OUTSIDE}" for text in outside),
            *(f"{text}: within the models' training" for text in inside),
        ),
        not_identifiable=tuple(unknown),
        in_training=not outside,
    )


def _camera(level: NoiseLevel, found: Noise, scale: Intensity, offset: float | None) -> NoiseModel:
    """Find gain, offset and read noise."""
    means = level.blocks.mean
    if not found.blocks.size or not scale.sigma:
        why = "one frame has no differences"
        if level.blocks.temporal.size:
            why = "differences hold more than the camera's noise"
        why = f"read noise, and the errors of gain and offset: {why}"
        gain = scale.pixel_gain
        return NoiseModel(gain, nan, scale.offset, nan, scale.note, not_identifiable=(why,))
    relation = None if offset is None else dose.relate(means, found.blocks)
    if relation and offset is not None:
        slope, error = relation.slope, relation.slope_error
        square = relation.constant + slope * offset
        mixed = 2 * offset * relation.mixed
        chance = 3 * sqrt(max(0.0, relation.constant_error**2 + (offset * error) ** 2 + mixed))
        method = f"variance-mean relation of {found.method}, offset given"
        if square >= -chance:
            return NoiseModel(slope, error, offset, sqrt(max(0.0, square)) / slope, method)
        why = f"read noise: at an offset of {offset:g} its square is negative: the offset is wrong"
        return NoiseModel(slope, error, offset, nan, method, not_identifiable=(why,))
    above = level.level - scale.offset
    # Blocks differ by their mean, too, and that is no error.
    rest = found.blocks - found.variance * (means - scale.offset) / above
    error = float(rest.std(ddof=1)) / sqrt(rest.size) / above if rest.size > 1 else nan
    why = "offset and read noise cannot be told apart without the camera's offset"
    if offset is not None:
        why = "read noise: frames are too even or too few"
    gain = found.variance / above
    return NoiseModel(gain, error, scale.offset, nan, scale.note, not_identifiable=(why,))


def _lines(level: NoiseLevel) -> dict[str, Lines]:
    """Return the rows and columns whose offsets are beyond chance, by what to say of them."""
    if (spectrum := level.spectrum) is None:
        return {}
    if level.whiteness is None:
        found = {"rows differ (noise of a scan, or an edge along them),": line_noise(spectrum, 0)}
    else:
        found = {
            "rows flicker from frame to frame,": line_noise(spectrum, 0),
            "columns flicker from frame to frame,": line_noise(spectrum, 1),
        }
    return {name: lines for name, lines in found.items() if lines.clear}


def line_notes(level: NoiseLevel, above: float) -> list[str]:
    """Name lines that differ from frame to frame, of which denoising leaves a part.

    ``above``: mean of the frames above the offset, in intensity units.
    """
    return [
        f"{name} by {lines.sigma / above:.2%} of the mean beyond counting noise: denoising takes "
        "out only a part of it"
        for name, lines in _lines(level).items()
    ]
