"""What kind of noise a stack has, and whether the shipped models have seen the like.

The variance of a block of pixels against its mean gives gain and one more number, into
which the camera's offset and its read noise both go: variance = gain (mean - offset) +
read noise^2. Spectra of differences (`emdn_deploy.noise.spectra`) tell noise that is
correlated, lines and interference. The models saw white counting noise, and scans whose
lines flicker by up to 2 % and jitter by up to a pixel (`emdn_train.noise`).
"""

from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdn_deploy import motion
from emdn_deploy.noise import findings, gain
from emdn_deploy.noise.shapes import Peak
from emdn_deploy.noise.spectra import Spectra
from emdn_deploy.sampling import Reader, collect


@dataclass(frozen=True)
class NoiseModel:
    """The noise of a stack; what cannot be told is NaN, and named in ``not_identifiable``.

    Attributes
    ----------
    frames
        How many were looked at.
    gain, gain_error
        Intensity units per electron, and its standard error. For noise that is
        correlated, of a pixel's variance: an electron spread out counts less.
    offset, offset_error
        Intensity of a pixel without electrons, in intensity units.
    read_noise_electrons, read_noise_electrons_error
        RMS of a pixel's noise without electrons, in electrons.
    method
        What gain and offset come from, and what was assumed.
    counting
        Whether pixels are counts of electrons: whole numbers, gain 1, no read noise.
    moves
        Whether frames two apart differ more than neighbours do.
    correlated
        Whether the noise of neighbouring pixels is correlated.
    correlation_x, correlation_y, correlation_error
        Their correlation along x and y.
    area_px
        Pixels over which an electron is spread, (sum of its share)^2 / sum of squares.
    spectrum
        Power of the differences in rings 0.1 cycles per pixel wide, from the centre,
        in units of the outermost.
    row_flicker, column_flicker
        RMS of a line's change from frame to frame, relative to the mean above the offset.
    fixed_rows, fixed_columns
        RMS of lines' constant offsets in intensity units; of one frame, constant or not.
    jitter_px
        RMS of the lines' shifts along themselves, in pixels.
    peaks
        Waves that come with another phase in every frame, the strongest first.
    brightness
        RMS of the frames' mean beyond noise, relative to the mean above the offset.
    findings
        What was found, in plain words.
    not_identifiable
        What cannot be told from these frames, and why.
    in_training
        Whether every finding is within what the shipped models saw.
    """

    frames: int
    gain: float
    gain_error: float
    offset: float
    offset_error: float
    read_noise_electrons: float
    read_noise_electrons_error: float
    method: str
    counting: bool
    moves: bool
    correlated: bool
    correlation_x: float
    correlation_y: float
    correlation_error: float
    area_px: float
    spectrum: tuple[float, ...]
    row_flicker: float
    column_flicker: float
    fixed_rows: float
    fixed_columns: float
    jitter_px: float
    peaks: tuple[Peak, ...]
    brightness: float
    findings: tuple[str, ...]
    not_identifiable: tuple[str, ...]
    in_training: bool

    def as_dict(self) -> dict[str, Any]:
        """Return what JSON can hold: None for NaN."""
        return {key: _plain(value) for key, value in asdict(self).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    return {key: _plain(one) for key, one in value.items()} if isinstance(value, dict) else value


def estimate(
    read: Reader,
    count: int,
    size: tuple[int, int],
    bad: NDArray[np.bool_] | None = None,
    offset: float | None = None,
) -> NoiseModel:
    """Measure the noise of a stack, on a sample of it (see `emdn_deploy.sampling`).

    Parameters
    ----------
    read
        ``read(start, stop)`` gives (k, H, W) float32.
    count
        Frames in the stack.
    size
        (H, W).
    bad
        (H, W), pixels that do not count.
    offset
        Intensity of a pixel without electrons, where it is known: only then can read
        noise be told.

    Raises
    ------
    EmdnError
        If a sampled pixel is not finite, or the offset is not below the mean.
    """
    spectra = Spectra()
    blocks = collect(read, count, size, bad, spectra.add)
    found = findings.look(spectra, blocks)
    area = findings.area(found)
    closer = motion.Spectrum(found.correlated, found.white, area) if found.pairs else None
    scale = gain.scale(blocks, found.uneven, closer, offset)
    above = blocks.level - scale.offset
    said, unknown, inside = findings.describe(found, above)
    variance = scale.variance * area
    brightness, dimmed = findings.brightness(spectra, above, variance)
    rows, columns = found.rows.sigma / above, found.columns.sigma / above
    x, y = found.correlation
    return NoiseModel(
        frames=sum(len(levels) for levels in spectra.levels),
        gain=scale.gain,
        gain_error=scale.gain_error,
        offset=scale.offset,
        offset_error=scale.offset_error,
        read_noise_electrons=scale.read_noise_electrons,
        read_noise_electrons_error=scale.read_noise_electrons_error,
        method=scale.method,
        counting=scale.counting,
        moves=found.moves,
        correlated=found.correlated,
        correlation_x=x,
        correlation_y=y,
        correlation_error=found.blur.error,
        area_px=found.area_px,
        spectrum=found.profile,
        row_flicker=rows,
        column_flicker=columns,
        fixed_rows=found.fixed_rows.sigma,
        fixed_columns=found.fixed_columns.sigma,
        jitter_px=found.jitter.pixels,
        peaks=found.peaks,
        brightness=brightness,
        findings=(*said, *dimmed),
        not_identifiable=(*scale.doubts, *unknown),
        in_training=inside,
    )
