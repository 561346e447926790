"""What the spectra of a stack's noise show, in plain words, and what the models have seen."""

from dataclasses import dataclass
from math import nan, sqrt

import numpy as np

from emdn_deploy import motion
from emdn_deploy.noise import lines, shapes
from emdn_deploy.noise import spectra as noise_spectra
from emdn_deploy.noise.lines import Jitter, Line
from emdn_deploy.noise.shapes import Blur, Peak
from emdn_deploy.noise.spectra import Spectra
from emdn_deploy.sampling import Blocks

# White noise alone passes these in less than 1 % of stacks, all tests together:
# `python benchmarks/noise_power.py null` counts.
LINE_Z, JITTER_Z = 4.5, 4.5
# What is too weak to matter, as parts of the noise's or the mean's size.
LEAST_SHARE, LEAST_BRIGHTNESS = 0.03, 0.01
# What the models saw at most (`emdn_train.noise`).
FLICKER, JITTER_PIXELS = 0.02, 1.0
OUTSIDE = "outside the models' training"

_NO_LINE = Line(nan, nan, 0.0, 0.0, 1.0, 0.0, 0.0)


@dataclass(frozen=True)
class Found:
    """Everything that was measured on the spectra; NaN for what was not.

    Attributes
    ----------
    silent
        Whether there is no noise at all.
    rough
        Whether the differences have more power than white noise at high frequency has.
    white
        Power of the differences where no image is, as a share of all of it.
    hidden
        Whether structure reaches so far out that lines cannot be told from it.
    """

    frames: int
    pairs: int
    repeats: int
    silent: bool
    moves: bool
    rough: bool
    white: float
    blur: Blur
    correlated: bool
    correlation: tuple[float, float]
    area_px: float
    profile: tuple[float, ...]
    rows: Line
    columns: Line
    fixed_rows: Line
    fixed_columns: Line
    hidden: bool
    jitter: Jitter
    peaks: tuple[Peak, ...]

    @property
    def uneven(self) -> bool:
        """Whether the differences hold more than the pixels' own noise."""
        jitters = _displaced(self.jitter)
        uneven = _clear(self.rows) or _clear(self.columns)
        rough = self.rough and not self.correlated  # blur alone makes them so
        return bool(self.moves or rough or jitters or uneven)


def look(spectra: Spectra, blocks: Blocks) -> Found:
    """Measure everything."""
    shape, moves = getattr(spectra, "shape", (0, 0)), motion.moves(blocks)
    silent = not (blocks.temporal.any() if blocks.temporal.size else blocks.single)
    blur, area = Blur(nan, nan, nan, 0.0), nan
    rings: tuple[float, ...] = ()
    peaks: tuple[Peak, ...] = ()
    rows = columns = fixed_rows = fixed_columns = _NO_LINE
    jitter, hidden, white = Jitter(nan, nan, 0.0), True, 1.0
    # Of two frames, nothing tells motion from noise: never trust their low frequencies.
    rough = motion.rough(blocks) or not blocks.lagged.size
    if spectra.pairs:
        power, rank = spectra.power, spectra.rank
        blur = shapes.blur(power, shape, single=False)
        rows, columns = (lines.lines(power, shape, rank, axis) for axis in (0, 1))
        flicker = rows.sigma / blocks.level if _clear(rows) and blocks.level > 0 else 0.0
        jitter = lines.jitter(spectra, flicker)
        peaks = shapes.peaks(spectra)
        white, also = noise_spectra.white(power, shape, rank)
        rough = rough or also
        rings = noise_spectra.profile(power, shape)
    if spectra.frames and not silent:
        average = spectra.average
        if not spectra.pairs:
            blur = shapes.blur(average, shape, single=True)
            rings = noise_spectra.profile(average, shape)
        one, two = (
            lines.lines(average, shape, noise_spectra.HANN_RANK, axis, hann=True) for axis in (0, 1)
        )
        # Where structure reaches as far out, its lines would be taken for the camera's.
        least = min(rows.level, columns.level) or float(
            np.median(noise_spectra.corner(average, shape))
        )
        hidden = max(one.level, two.level) > 1.5 * least
        if not hidden:
            fixed_rows = lines.fixed(one, rows, spectra.frames)
            fixed_columns = lines.fixed(two, columns, spectra.frames)
    correlated = blur.clear
    xy = (blur.x, blur.y)
    if correlated and spectra.pairs and not moves and not motion.beyond_frames(blocks):
        xy = noise_spectra.autocorrelation(power, shape)
        area = noise_spectra.area(power, shape)
    if correlated:
        jitter = Jitter(nan, nan, 0.0)  # it is the blur that makes power uneven
    return Found(
        spectra.frames, spectra.pairs, spectra.repeats, silent, moves, rough, white,
        blur, correlated, xy, area, rings, rows, columns, fixed_rows, fixed_columns, hidden,
        jitter, peaks,
    )  # fmt: skip


def describe(found: Found, above: float) -> tuple[list[str], list[str], bool]:
    """Say what was found, what cannot be told, and whether the models saw the like.

    Parameters
    ----------
    above
        Mean of the frames above the offset, in intensity units.
    """
    inside: list[str] = []
    outside: list[str] = []
    if found.silent:
        outside.append("no noise: a constant or synthetic stack")
    if found.repeats:
        outside.append(f"{found.repeats} of {found.frames} frames repeat the one before")
    if found.correlated:
        x, y = found.correlation
        spread = f", an electron covers {found.area_px:.1f} pixels" if found.area_px > 0 else ""
        outside.append(
            f"the noise of neighbouring pixels is correlated ({x:.2f} along x, {y:.2f} along y"
            f"{spread}), as by a camera's blur, interpolation or filtering"
        )
    for line, name in ((found.rows, "rows"), (found.columns, "columns")):
        if _clear(line):
            share = line.sigma / above
            text = f"{name} flicker from frame to frame by {share:.1%} of the mean"
            scanned = name == "rows" and share - 2 * line.error / above <= FLICKER
            (inside if scanned else outside).append(text)
    for line, name in ((found.fixed_rows, "rows"), (found.fixed_columns, "columns")):
        if _clear(line) and not (found.frames == 1 and name == "rows"):
            often = "stand out" if found.frames == 1 else "are offset in all frames"
            outside.append(f"{name} {often}, by {line.sigma:.3g} units RMS")
        elif _clear(line):
            share = line.sigma / above
            scanned = share - 2 * line.error / above <= FLICKER
            text = f"rows are offset by {share:.1%} of the mean"
            (inside if scanned else outside).append(text)
    if _displaced(found.jitter):
        pixels = found.jitter.pixels
        text = f"lines are displaced along x by about {pixels:.2f} pixels RMS"
        steady = pixels - 2 * found.jitter.error <= JITTER_PIXELS
        (inside if steady else outside).append(text)
    outside += [
        f"a wave of {peak.amplitude:.3g} units at ({peak.y:.3f}, {peak.x:.3f}) cycles per pixel "
        "along y, x, with another phase in each frame: interference"
        for peak in found.peaks[:3]
    ]
    if len(found.peaks) > 3:
        outside.append(f"{len(found.peaks) - 3} weaker waves besides")
    if found.moves:
        inside.append("the specimen moves: frames two apart differ more than neighbours")
    said = [f"{text}: {OUTSIDE}" for text in outside]
    said += [f"{text}: within the models' training" for text in inside]
    return said, _unknown(found), not outside


def lines_of(spectra: Spectra, above: float) -> list[str]:
    """Name lines that differ as wholes, of which denoising leaves a part.

    Parameters
    ----------
    above
        Mean of the frames above the offset, in intensity units.
    """
    if not spectra.frames:
        return []
    shape, rank = spectra.shape, spectra.rank
    found = {"rows flicker from frame to frame": _NO_LINE}
    if spectra.pairs:
        names = ("rows flicker from frame to frame", "columns flicker from frame to frame")
        both = (lines.lines(spectra.power, shape, rank, axis) for axis in (0, 1))
        found = dict(zip(names, both, strict=True))
    elif spectra.frames == 1:
        average = spectra.average
        rows = lines.lines(average, shape, noise_spectra.HANN_RANK, 0, hann=True)
        if rows.level <= 1.5 * float(np.median(noise_spectra.corner(average, shape))):
            found = {"rows differ (noise of a scan, or an edge along them)": rows}
    return [
        f"{name}, by {line.sigma / above:.2%} of the mean beyond counting noise: denoising takes "
        "out only a part of it"
        for name, line in found.items()
        if _clear(line)
    ]


def brightness(spectra: Spectra, above: float, variance: float) -> tuple[float, list[str]]:
    """Return the RMS change of the frames' mean beyond noise, and a finding if it is large.

    Parameters
    ----------
    variance
        Of a frame's noise at low frequency, a pixel.
    """
    levels = np.concatenate(spectra.levels)
    if len(levels) < 2:
        return nan, []
    expected = variance / spectra.pixels
    excess = float(levels.var(ddof=1)) - expected
    share = sqrt(max(0.0, excess)) / above
    if share < LEAST_BRIGHTNESS or excess < 10 * sqrt(2 / (len(levels) - 1)) * expected:
        return share, []
    return share, [
        f"the mean of the frames varies by {share:.1%}: taken out of the noise, "
        "within the models' training"
    ]


def area(found: Found) -> float:
    """Return how many times the noise at low frequency exceeds a pixel's variance."""
    return found.area_px if found.area_px > 0 else 1.0


def _clear(line: Line) -> bool:
    return bool(line.z > LINE_Z and line.sigma > LEAST_SHARE * sqrt(line.level))


def _displaced(jitter: Jitter) -> bool:
    # Strong flicker leaves power as well, but not the kind that grows with frequency.
    return bool(jitter.z > JITTER_Z and jitter.pixels > 3 * jitter.error)


def _unknown(found: Found) -> list[str]:
    if not found.frames:
        return ["correlation, lines and interference: frames below 32 pixels have no spectrum"]
    unknown = []
    if not found.pairs:
        unknown = [
            "motion, interference, and whether lines that stand out do so always: "
            "not identifiable from one frame"
        ]
    if found.hidden and not found.silent:
        unknown.append("constant offsets of rows and columns: structure reaches as far out")
    if found.correlated:
        unknown.append("jitter of lines: hidden by the correlation")
    return unknown
