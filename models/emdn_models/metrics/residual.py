"""What a denoiser took away, in units of the noise that there should have been.

Structure left in the residual is signal that was removed; less power than the noise has is
noise that was left in. Even an ideal denoiser's residual is not exactly white, since it
keeps the part of the noise that it cannot tell from signal: judge against residuals of honest
denoisings (`emdn_models.metrics.honest`), never against pure Poisson noise only.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from emdn_models.errors import EmdnError
from emdn_models.metrics import accept
from emdn_models.metrics.accept import Floats
from emdn_models.metrics.rings import rings

_DARK = 0.01  # lowest noise variance, relative to the frame's mean
_NEIGHBOURS = slice(None, -1), slice(1, None)


@dataclass(frozen=True)
class Moments:
    """Statistics of frames or of their tiles, one number each, arrays of one shape.

    Attributes
    ----------
    mean
        0 where no intensity was made or lost.
    std
        1 where exactly the expected noise was taken away.
    lag_x, lag_y
        Correlation of neighbouring pixels along rows and along columns.
    peak
        Largest power of one spatial frequency, in units of the expected noise's mean
        power. Of white noise its excess over the logarithm of half the pixels is of order 1; a
        lattice that was removed stands far above.
    """

    mean: Floats
    std: Floats
    lag_x: Floats
    lag_y: Floats
    peak: Floats


@dataclass(frozen=True)
class Residual:
    """Statistics of the residuals of N frames; N is left out for a single frame (H, W).

    Attributes
    ----------
    frame
        Of each frame, (N,).
    tile
        Of each tile, (N, H // side, W // side); NaN where less than half is valid.
    side
        Of the tiles, pixels.
    frequency
        (R,) spatial frequency of each ring, cycles/pixel.
    power
        (N, R) mean power on each ring; 1 is the expected noise's.
    columns, rows
        (N, W) and (N, H), means of columns and rows about the frame's, as z scores:
        white residuals of unit variance give standard normal numbers. 0 without pixels.
    largest_column, largest_row
        (N,) the z score that is farthest from 0, without its sign.
    dark
        (N,) fraction of pixels whose expected variance was below 1 % of the frame's mean, and
        was raised to that.
    """

    frame: Moments
    tile: Moments
    side: int
    frequency: Floats
    power: Floats
    columns: Floats
    rows: Floats
    largest_column: Floats
    largest_row: Floats
    dark: Floats


def normalised(
    raw: ArrayLike, denoised: ArrayLike, gain: float, offset: float = 0, read: float = 0
) -> tuple[Floats, Floats]:
    """Divide what was taken away by the standard deviation of the noise expected there.

    (raw - denoised) / sqrt(gain * (denoised - offset) + read**2): counting noise of
    (denoised - offset) / gain electrons, and a camera's read noise.

    Parameters
    ----------
    raw, denoised
        (H, W) or (N, H, W), in the same intensity units.
    gain
        Intensity units per electron.
    offset
        Intensity of a pixel without electrons.
    read
        Standard deviation of the read noise, intensity units.

    Returns
    -------
    tuple of ndarray
        The residual, shaped as the frames; and the fraction of dark pixels, (N,) or ().

    Raises
    ------
    EmdnError
        If the shapes differ, a number of the camera is not possible, or a frame is on
        average not brighter than the offset.
    """
    given, clean = accept.frames(raw=raw, denoised=denoised)
    units = float(accept.positive("gain", gain, ()))
    if not (np.isfinite(offset) and np.isfinite(read) and read >= 0):
        raise EmdnError(
            f"offset, read: found {offset}, {read}, expected finite numbers, read 0 or more"
        )
    variance = units * (clean - offset) + read**2
    level = variance.mean(axis=(-2, -1), keepdims=True)
    if not (level > 0).all():
        raise EmdnError(
            f"denoised: found a frame with mean {float(clean.mean(axis=(-2, -1)).min()):g}, "
            f"expected more than the offset, {offset:g}; give the offset of the camera"
        )
    dark = (variance < _DARK * level).mean(axis=(-2, -1))
    np.maximum(variance, _DARK * level, out=variance)
    return (given - clean) / np.sqrt(variance), np.asarray(dark)


def residual_statistics(
    raw: ArrayLike,
    denoised: ArrayLike,
    gain: float,
    offset: float = 0,
    read: float = 0,
    tile: int = 64,
    valid: ArrayLike | None = None,
) -> Residual:
    """Take the statistics of the normalised residual, of each frame and each tile.

    Parameters
    ----------
    raw, denoised, gain, offset, read
        As for `normalised`.
    tile
        Side of the tiles, 8 pixels or more; smaller where a frame is smaller. Pixels beyond
        the last whole tile are in no tile.
    valid
        (H, W) or (N, H, W), the pixels that count; None for all. Leave out pixels that
        were filled from others.

    Raises
    ------
    EmdnError
        As `normalised`, if a frame is smaller than 8 x 8, or has no valid pixel.
    """
    scaled, dark = normalised(raw, denoised, gain, offset, read)
    height, width = scaled.shape[-2:]
    side = min(tile, height, width)
    if side < 8:
        raise EmdnError(
            f"tile: found {tile}, with frames of {height} x {width}, expected 8 pixels or more"
        )
    good = None if valid is None else accept.mask(valid, scaled.shape).astype(np.float64)
    count = scaled.shape[:-2]
    circles = rings(height, width)
    frame = np.empty((5, *count))
    tiles = np.empty((5, *count, height // side, width // side))
    power = np.empty((*count, circles.pixels.size))
    columns, rows = np.empty((*count, width)), np.empty((*count, height))
    for at in np.ndindex(count):
        used = None if good is None else good[at]
        everywhere = (slice(None), *at)
        frame[everywhere], about, spectrum = _moments(scaled[at], used)
        power[at] = circles.total(spectrum) / circles.pixels
        columns[at], rows[at] = (_scores(about, used, axis) for axis in (0, 1))
        inside = None if used is None else _tiles(used, side)
        tiles[everywhere], _, _ = _moments(_tiles(scaled[at], side), inside)
        if inside is not None:
            tiles[everywhere] = np.where(
                inside.mean(axis=(-2, -1)) < 0.5, np.nan, tiles[everywhere]
            )
    return Residual(
        Moments(*frame),
        Moments(*tiles),
        side,
        circles.frequency,
        power,
        columns,
        rows,
        np.abs(columns).max(axis=-1),
        np.abs(rows).max(axis=-1),
        dark,
    )


def _moments(values: Floats, used: Floats | None) -> tuple[Floats, Floats, Floats]:
    """Return the five `Moments` (5, ...) of (..., h, w), the values about their mean, their power.

    ``used`` is 1 for pixels that count and 0 for others; None is all. The power
    (..., h, w // 2 + 1) is 1 on average for white values of unit variance.
    """
    count = _count(values, used)
    mean = _dot(values, used) / count if used is not None else values.mean(axis=(-2, -1))
    about = values - mean[..., None, None]
    if used is not None:
        about *= used
    variance = _dot(about, about) / count
    transform = np.fft.rfft2(about)
    power = transform.real**2
    power += transform.imag**2
    power /= count[..., None, None]
    lags = []
    for axis in (-1, -2):
        before, after = ((..., part) + (slice(None),) * (-1 - axis) for part in _NEIGHBOURS)
        pairs = _count(about[before], None if used is None else used[before] * used[after])
        together = _dot(about[before], about[after]) / pairs
        lags.append(together / np.where(variance > 0, variance, 1))
    found = np.stack([mean, np.sqrt(variance), *lags, power.max(axis=(-2, -1))])
    return found, about, power


def _dot(one: Floats, two: Floats) -> Floats:
    return np.asarray(np.einsum("...ij,...ij->...", one, two))


def _count(values: Floats, used: Floats | None) -> Floats:
    if used is None:
        return np.full(values.shape[:-2], float(values.shape[-2] * values.shape[-1]))
    return np.asarray(np.maximum(used.sum(axis=(-2, -1)), 1))


def _scores(about: Floats, used: Floats | None, axis: int) -> Floats:
    """Means along an axis of values about the frame's mean, over their standard error."""
    count = about.shape[axis] if used is None else np.maximum(used.sum(axis=axis), 1)
    return np.asarray(about.sum(axis=axis) / np.sqrt(count))


def _tiles(frame: Floats, side: int) -> Floats:
    """View a frame (H, W) as its whole tiles, (H // side, W // side, side, side)."""
    down, right = (length // side for length in frame.shape)
    cut = frame[: down * side, : right * side]
    return np.asarray(cut.reshape(down, side, right, side).swapaxes(1, 2))
