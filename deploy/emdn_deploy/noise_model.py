"""What kind of noise a stack has, and whether the shipped models have seen the like.

The variance of a block of pixels against its mean gives gain and one more number, into
which the camera's offset and its read noise both go: variance = gain (mean - offset) +
read noise^2. Without a known offset, either it or the read noise is taken as 0, whichever the
constant's sign allows. Spectra of differences tell noise that is correlated, lines and
interference. The models saw white counting noise, and scans whose lines flicker by up to 2 % and
jitter by up to a pixel (`emdn_train.noise`).
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from math import isfinite, nan, sqrt
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from emdn_deploy import dose
from emdn_deploy.dose import Relation
from emdn_deploy.noise_level import (
    INSIDE,
    MEDIAN,
    SKIP,
    Array,
    Blur,
    NoiseLevel,
    Sample,
    Spectra,
    blur,
    cell_medians,
    cells,
    corner,
    frequencies,
    off_axes,
    taper,
    trimmed_mean,
)
from emdn_models.errors import EmdnError

# White noise alone passes these in less than 1 % of stacks, all tests together:
# `python benchmarks/noise_power.py null` counts.
_LINE_Z = 4.5
_PEAK_CHANCE = 3e-4  # that noise alone makes a peak
_LEAST_SHARE = 0.03  # of the noise: what is weaker does not matter
# What the models saw at most (`emdn_train.noise`).
_FLICKER = 0.02
_HANN_RANK = 0.55  # of one spectrum in a Hann window, against one in `taper`
_HIDDEN = 1.5  # how far structure may raise the power beside lines that hold still
_COUNTS = 0.05  # counting cameras lose a few electrons that arrive together
_STEEP = 0.1  # how far the slope of counts may be from 1 besides
OUTSIDE = "outside the models' training"
_TOGETHER = "offset and read noise cannot be told apart without the camera's offset"


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

    gain: float = nan
    gain_error: float = nan
    offset: float = 0.0
    read_noise_electrons: float = nan
    method: str = "none"
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
    be told. EmdnError if a sampled pixel is not finite, or the offset is not below the mean.
    """
    level = NoiseLevel(sample, bad, everywhere=True)
    if offset is not None and offset >= level.level:
        raise EmdnError(
            f"offset {offset:g} is not below the mean of the frames, {level.level:g}; "
            "give the intensity of a pixel without electrons"
        )
    spectra, whiteness = level.spectra, level.whiteness
    # Of two frames, nothing tells motion from noise: never trust their low frequencies.
    rough = level.rough or not level.lagged.size
    correlation, lines = Blur(nan, nan, clear=False), [Line(), Line()]
    if spectra and whiteness:
        correlation = blur(spectra.power, spectra.shape)
        lines = [offsets_of(spectra, axis) for axis in (0, 1)]
        rough = rough or whiteness.uneven
    elif spectra:
        correlation = blur(spectra.average, spectra.shape, single=True)
    uneven = level.moves or (rough and not correlation.clear) or any(one.clear for one in lines)
    camera = _camera(level, correlation.clear, uneven, offset)
    above = level.level - camera.offset
    silent = not (level.temporal.any() if level.temporal.size else level.single)
    outside = ["no noise: a constant or synthetic stack"] if silent else []
    inside = []
    if level.moves:
        inside.append("the specimen moves: frames two apart differ more than neighbours")
    unknown = list(camera.not_identifiable)
    if not spectra:
        unknown.append("correlation, lines and waves: frames below 32 pixels have no spectrum")
    else:
        if spectra.repeats:
            outside.append(f"{spectra.repeats} of {spectra.frames} frames repeat the one before")
        if correlation.clear:
            outside.append(_correlated(level, spectra, correlation))
        fixed = [offsets_of(spectra, axis, changing) for axis, changing in enumerate(lines)]
        # Where structure reaches as far out, its lines would be taken for the camera's.
        least = min(one.level for one in lines) or float(
            np.median(corner(spectra.average, spectra.shape))
        )
        if max(one.level for one in fixed) > _HIDDEN * least:
            fixed = [Line(), Line()]
            unknown.append("constant offsets of rows and columns: structure reaches as far out")
        for text, seen in _lines(spectra, lines, fixed, above):
            (inside if seen else outside).append(text)
        if whiteness and (wave := strongest_wave(spectra)):
            outside.append(wave)
        if not whiteness:
            unknown.append("motion, waves, and whether lines stand out always: one frame only")
    return replace(
        camera,
        moves=level.moves,
        correlated=correlation.clear,
        findings=(
            *(f"{text}: {OUTSIDE}" for text in outside),
            *(f"{text}: within the models' training" for text in inside),
        ),
        not_identifiable=tuple(unknown),
        in_training=not outside,
    )


def _correlated(level: NoiseLevel, spectra: Spectra, found: Blur) -> str:
    x, y, spread = found.x, found.y, ""
    if level.whiteness and not level.moves and not level.beyond_frames:
        qy, qx = frequencies(spectra.shape)
        power = off_axes(spectra.shape) * spectra.power
        x, y = ((power * np.cos(2 * np.pi * q)).sum() / power.sum() for q in (qx, qy))
        spread = f", an electron covers {level.whiteness.spread:.1f} pixels"
    return (
        f"the noise of neighbouring pixels is correlated ({x:.2f} along x, {y:.2f} along y"
        f"{spread}), as by a camera's blur, interpolation or filtering"
    )


class Line(NamedTuple):
    """Offsets of lines: power on an axis of the spectrum against that beside it.

    ``sigma``, ``error``: RMS of the offsets in intensity units, 0 where there is no excess, and its
    standard error. ``z``: the excess in standard deviations. ``level``: power beside the axis, the
    variance of a pixel for white noise. ``ratio``, ``spread``: power on the axis by ``level``, and
    the standard deviation of its cube root.
    """

    sigma: float = 0.0
    error: float = 0.0
    z: float = 0.0
    level: float = 0.0
    ratio: float = 1.0
    spread: float = 0.0

    @property
    def clear(self) -> bool:
        """Whether it is beyond chance, and strong enough to matter."""
        return self.z > _LINE_Z and self.sigma > _LEAST_SHARE * sqrt(self.level)


def _lines(
    spectra: Spectra, changing: list[Line], fixed: list[Line], above: float
) -> Iterator[tuple[str, bool]]:
    """Say which rows and columns differ, and whether the models saw the like."""
    for name, one, still in zip(("rows", "columns"), changing, fixed, strict=True):
        if one.clear:
            share = one.sigma / above
            seen = name == "rows" and share - 2 * one.error / above <= _FLICKER
            yield f"{name} flicker from frame to frame by {share:.1%} of the mean", seen
        if still.clear:
            share = still.sigma / above
            often = "stand out" if spectra.frames == 1 else "are offset in all frames"
            seen = name == "rows" and spectra.frames == 1  # which may flicker
            seen = seen and share - 2 * still.error / above <= _FLICKER
            yield f"{name} {often} by {share:.1%} of the mean", seen


def _outermost(spectra: Spectra) -> float:
    return float(np.median(corner(spectra.average, spectra.shape)))


def line_notes(level: NoiseLevel, above: float) -> list[str]:
    """Name lines that differ from frame to frame, of which denoising leaves a part.

    ``above``: mean of the frames above the offset, in intensity units.
    """
    spectra = level.spectra
    found = {}
    if spectra and spectra.pairs:
        found["rows flicker from frame to frame"] = offsets_of(spectra, 0)
        found["columns flicker from frame to frame"] = offsets_of(spectra, 1)
    elif spectra and spectra.frames == 1:
        rows = offsets_of(spectra, 0, Line())
        if rows.level <= _HIDDEN * _outermost(spectra):
            found["rows differ (noise of a scan, or an edge along them)"] = rows
    return [
        f"{name}, by {line.sigma / above:.2%} of the mean beyond counting noise: denoising takes "
        "out only a part of it"
        for name, line in found.items()
        if line.clear
    ]


def offsets_of(spectra: Spectra, axis: int, changing: Line | None = None) -> Line:
    """Compare the power of rows' offsets (axis 0) or columns' (axis 1) with that beside them.

    Only from `INSIDE` outwards: structure is smoother. Of the average of frames, those beyond such
    as are ``changing`` with each frame; None for those of the differences.
    """
    shape, power, rank = spectra.shape, spectra.power, spectra.rank
    if changing is not None:
        power, rank = spectra.average, _HANN_RANK
    plane = power if axis == 0 else power.T
    length, across = shape[axis], shape[1 - axis]
    band = np.arange(int(np.ceil(INSIDE * length)), (length + 1) // 2)
    near = np.arange(SKIP, max(SKIP + 4, across // 16))
    mirrored = band if axis else np.concatenate([band, -band])
    beside = plane[np.ix_(mirrored, np.concatenate([near, -near]) if axis else near)]
    level = float(np.median(beside))
    if level <= 0:
        return Line()
    ratio = float(np.median(plane[band, 0])) / level
    edge = taper(across) if changing is None else np.hanning(across)
    unit = level / float(edge.sum() ** 2 / (edge**2).sum())  # variance of a line's mean
    own = spread = 1 / (3 * np.sqrt(band.size * rank * MEDIAN))
    expected = 1.0
    if changing is not None:
        unit /= spectra.frames
        expected, spread = max(1.0, changing.ratio), float(np.hypot(own, changing.spread))
    # Wilson and Hilferty, PNAS 17 (1931) 684: the cube root is nearly normal.
    z = (ratio ** (1 / 3) - expected ** (1 / 3)) / (spread * expected ** (1 / 3))
    sigma = sqrt(max(0.0, ratio - expected) * unit)
    deviation = 3 * spread * max(1.0, ratio) * unit
    error = deviation / (2 * max(sigma, sqrt(deviation))) if deviation else 0.0
    return Line(sigma, error, z, level, ratio, own)


def strongest_wave(spectra: Spectra) -> str | None:
    """Find the strongest wave that comes with another phase in every frame; None for none.

    Only from `INSIDE` outwards, and not where there are peaks within, as those of a lattice that
    moves: its harmonics are no interference.
    """
    power, shape, rank = spectra.power, spectra.shape, spectra.rank
    qy, qx = frequencies(shape)
    expected = _surroundings(spectra) / (1 - 1 / (9 * rank)) ** 3
    expected[expected <= 0] = np.inf
    ratio = power / expected
    real = [np.flatnonzero((2 * q.ravel()) % 1 == 0) for q in (qy, qx)]
    ratio[np.ix_(*real)] /= 2  # of one degree of freedom, not two
    z = (np.cbrt(ratio) - 1 + 1 / (9 * rank)) * 3 * np.sqrt(rank)
    high = z > NormalDist().inv_cdf(1 - _PEAK_CHANCE / z.size)
    inside = np.hypot(qy, qx) < INSIDE
    outside = high & ~inside
    if not outside.any() or (high & inside & off_axes(shape)).any():
        return None
    row, column = np.unravel_index(np.argmax(np.where(outside, ratio, 0)), ratio.shape)
    # A frequency between two of the grid's shares its power among them.
    near = np.arange(row - 1, row + 2) % shape[0], slice(max(0, column - 1), column + 2)
    amplitude = 2 * sqrt((power - expected)[near].clip(0).sum() / (shape[0] * shape[1]))
    return (
        f"a wave of {amplitude:.3g} units at ({qy[row, 0]:.3f}, {qx[0, column]:.3f}) cycles per "
        "pixel along y, x, with another phase in each frame: interference"
    )


def _surroundings(spectra: Spectra) -> Array:
    """Return the power around every frequency, along the axes for those near one.

    Medians, raised by two standard errors: a low one would make peaks of its neighbours.
    """
    power, shape, rank = spectra.power, spectra.shape, spectra.rank
    qy, qx = frequencies(shape)
    cell = cells(shape)
    labels, counts, medians = cell_medians(power, cell)
    around = np.full(cell.max() + 1, np.inf)
    around[labels] = medians * (1 + 2 / np.sqrt(counts * rank * MEDIAN))
    far_x, far_y = qx[0] >= INSIDE, np.abs(qy[:, 0]) >= INSIDE
    # Jitter raises whole columns, flicker the axis.
    rise = 1 + 2 / np.sqrt(np.array([far_x.sum(), far_y.sum() / 2]) * rank * MEDIAN)
    rows = np.median(power[:, far_x], axis=1) * rise[0]
    columns = np.median(power[far_y], axis=0) * rise[1]
    return np.asarray(np.maximum(around[cell], np.maximum(rows[:, None], columns[None, :])))


def _camera(level: NoiseLevel, correlated: bool, uneven: bool, offset: float | None) -> NoiseModel:
    """Find gain, offset and read noise.

    Where differences hold more than the pixels' noise, their high-passed part stands in, unless
    the noise is correlated.
    """
    dark = offset or 0.0
    high = uneven and not correlated and level.temporal_high.size > 0
    values = level.temporal_high if high else level.temporal
    # What is correlated and moves fast, only a single frame shows.
    blurred = correlated and dose.noise(level).variance < trimmed_mean(values)
    doubts: tuple[str, ...]
    if not values.size or (uneven and not high) or blurred:
        return _by_assumption(level, offset)
    mean, variance = trimmed_mean(level.mean), trimmed_mean(values)
    if variance <= 0:
        return NoiseModel(offset=dark, not_identifiable=("gain and read noise: there is none",))
    if high:
        share = level.whiteness.share if level.whiteness else 1.0
        values = values * (level.white_variance(share) / variance)
        variance = level.white_variance(share)
    method = f"{'high-passed ' if high else ''}differences of neighbouring frames"
    counts = level.integers and not correlated and not dark
    relation = dose.relate(level.mean, values)
    if relation and not relation.steep:
        relation = None
    if relation and (offset is not None or abs(relation.constant) > 3 * relation.constant_error):
        return _related(relation, offset, method, counts)
    # From the offset to the mean: no read noise.
    if offset is None and (mean <= 0 or level.low < -0.5 * sqrt(variance)):
        return _by_assumption(level, offset)
    # Blocks differ by their mean, too, and that is no error.
    rest = values - variance * (level.mean - dark) / (mean - dark)
    error = float(rest.std(ddof=1)) / sqrt(values.size) if values.size > 1 else nan
    gain, error = variance / (mean - dark), error / (mean - dark)
    near = 3 * (error if isfinite(error) else 0.0) + _COUNTS
    counts = counts and level.low >= 0 and abs(gain - 1) <= near
    if relation:
        counts = counts and abs(relation.slope - 1) <= 3 * relation.slope_error + _STEEP
        method = f"variance-mean relation of {method}, through 0"
        doubts = () if counts else (_TOGETHER,)
        return NoiseModel(gain, error, dark, 0.0, method, counts, not_identifiable=doubts)
    doubts = (f"read noise: {method} give the gain only, as frames are too even or too few",)
    given = "offset and read noise taken as 0" if offset is None else "offset given"
    method = f"{method} by the mean, {given}"
    return NoiseModel(gain, error, dark, nan, method, counts, not_identifiable=doubts)


def _related(relation: Relation, offset: float | None, method: str, counts: bool) -> NoiseModel:
    """Take gain and read noise, or the offset, from the line variance = slope * mean + constant."""
    slope, error = relation.slope, relation.slope_error
    dark = max(0.0, -relation.constant / slope) if offset is None else offset
    square = relation.constant + slope * dark
    read, method = sqrt(max(0.0, square)) / slope, f"variance-mean relation of {method}"
    if offset is None:
        read, given = (nan, "read noise") if dark else (read, "offset")
        method, doubts = f"{method}, {given} taken as 0", (_TOGETHER,)
        return NoiseModel(slope, error, dark, read, method, not_identifiable=doubts)
    mixed = 2 * offset * relation.mixed
    chance = 3 * sqrt(max(0.0, relation.constant_error**2 + (offset * error) ** 2 + mixed))
    counts = counts and abs(slope - 1) <= 3 * error + _COUNTS and abs(square) <= chance
    found = NoiseModel(slope, error, dark, read, f"{method}, offset given", counts)
    if square >= -chance:
        return found
    why = f"read noise: at an offset of {offset:g} its square is negative: the offset is wrong"
    return replace(found, read_noise_electrons=nan, not_identifiable=(why,))


def _by_assumption(level: NoiseLevel, offset: float | None) -> NoiseModel:
    """Fall back on what denoising itself takes, where no error can be given."""
    taken = dose.of_noise(level, None, offset)
    counts = level.integers and taken.gain == 1.0 and taken.offset == 0.0 and level.low >= 0
    why = "differences hold more than the camera's noise"
    if not level.temporal.size:
        why = "one frame has no differences"
    doubts = (f"read noise, and the errors of gain and offset: {why}",)
    counts = counts and taken.sigma > 0
    return NoiseModel(
        taken.gain, nan, taken.offset, nan, taken.note, counts, not_identifiable=doubts
    )
